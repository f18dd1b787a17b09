// Which of several algorithms makes a product of a convolution: by a cost model or, after autotune(true), by time.
//
// A decision is made once for a key, when the first plan asks for the memory it takes, and holds until the process
// ends: workspaces are sized for it. So a decision of the cost model stays where autotune comes later.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include <deepnet/runtime.hpp>

namespace deepnet {

enum class ConvProduct { forward, backward_data, backward_weight };
enum class ConvAlgorithm { depthwise, lane_depthwise, implicit, lanes, winograd, turned_winograd, col2im };

/// What a decision is for; the instruction set, which the process keeps, is added in the file.
struct TuningKey {
  ConvProduct product;
  std::array<std::int64_t, 17> shape;
  bool operator<(const TuningKey& other) const {
    return product != other.product ? product < other.product : shape < other.shape;
  }
};

/// Whether autotune(true) was ever called, so that decisions have to be looked up.
bool is_tuning_in_use();

/// The decision there is, or `otherwise`.
ConvAlgorithm decided(const TuningKey& key, ConvAlgorithm otherwise);

/// Runs one algorithm on arrays of the shape in question.
class TuningTrial {
 public:
  virtual ~TuningTrial() = default;
  virtual void run(ConvAlgorithm algorithm) = 0;
};

/// Decides, if that is still to be done: by the file, by time, or for `by_model` where autotune is off. make() makes
/// the trial. Candidates, of which by_model is one, apply to the key's shape.
ConvAlgorithm decide(const TuningKey& key, ConvAlgorithm by_model, const std::vector<ConvAlgorithm>& candidates,
                     std::unique_ptr<TuningTrial> (*make)(const TuningKey&));

}  // namespace deepnet
