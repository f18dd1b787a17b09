// Recurrent layers: x(t) = f(x(t-1), a(t)), one shared layer at every step of a sequence.
#pragma once

#include <mutex>
#include <utility>
#include <vector>

#include <deepnet/layer.hpp>

namespace deepnet {

/// What a recurrent layer carries on from call to call: the arrays of its state, or none. Any thread may ask; arrays
/// that were set are not written again.
class CarriedState {
 public:
  CarriedState() = default;
  CarriedState(const CarriedState& other) : arrays_(other.get()) {}

  std::vector<Tensor> get() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return arrays_;
  }
  void set(std::vector<Tensor> arrays) {
    std::lock_guard<std::mutex> lock(mutex_);
    arrays_ = std::move(arrays);
  }

 private:
  mutable std::mutex mutex_;
  std::vector<Tensor> arrays_;
};

/// What every recurrent layer can be asked beyond Layer: its state, at the end of a run and from step to step.
///
/// Inputs: the sequence (N, T, F) and, optionally, the initial state, one or more arrays (rows, N, S), where a row is
/// one direction of one layer of a stack. Where a call has a mask, a masked step carries the state through and outputs
/// 0.
class RecurrentLayer : public Layer {
 public:
  /// The arrays that the state consists of: 1, or 2 for an LSTM (h and c).
  virtual int state_count() const { return 1; }
  bool takes_inputs(int count) const override { return count == 1 || count == 1 + state_count(); }

  /// The final state, (rows, N, S) each, as views of the cache that forward filled for an input of this shape.
  virtual std::vector<Tensor> final_state(void* cache, const Shape& input) const = 0;
  /// |dE/dh(t)| over batch and features, (rows, T), as a view of that cache; the first number is -1 before a backward.
  virtual Tensor state_gradient_norms(void* cache, const Shape& input) const = 0;

  /// One step of streaming inference: x_t (N, F) -> (N, S). The state stays in the layer until the next step.
  virtual Tensor step(const Tensor& x_t) = 0;
  /// Forgets the state that step() and stateful runs carry on.
  void reset_state() override = 0;
};

}  // namespace deepnet
