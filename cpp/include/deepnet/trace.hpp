// Trace: what a layer left in its cache during a run, for a user to look at.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include <deepnet/layer.hpp>

namespace deepnet {

/// Where one layer of a network whose contract says `inspectable` has its cache: a max pooling's positions, a recurrent
/// layer's final state. What is read is what the last run over that memory left there.
class Trace {
 public:
  Trace(Layer* layer, const Shape& input, const Shape& output, void* cache, std::size_t bytes,
        std::shared_ptr<void> memory, bool lanes = false);

  /// Alive for as long as the network is.
  Layer* layer() const { return layer_; }
  /// The shapes of its first input and its output.
  const Shape& input() const { return input_; }
  const Shape& output() const { return output_; }
  /// Calls look with the cache; where it is of the output's elements for images in lanes, with a copy in their order.
  void read(const std::function<void(void* cache)>& look) const;

  /// Goes on with a copy: the network's memory is about to go.
  void detach();

 private:
  Layer* const layer_;
  const Shape input_, output_;
  const std::size_t bytes_;
  const bool lanes_;
  mutable std::mutex mutex_;
  void* cache_;
  std::shared_ptr<void> memory_;
};

using Traces = std::vector<std::shared_ptr<Trace>>;

}  // namespace deepnet
