// Optimizers: from a parameter and its gradient to the next parameter.
#pragma once

#include <map>
#include <mutex>
#include <string>
#include <vector>

#include <deepnet/layer.hpp>

namespace deepnet {

/// Base of the optimizers. What one remembers of a parameter is found by the parameter, wherever that is used.
/// Threads may share one: their calls take turns.
class Optimizer {
 public:
  virtual ~Optimizer() = default;
  /// The class's name, "SGD": opens every error message and identifies it in files.
  virtual std::string kind() const = 0;
  /// The settings, by name.
  virtual Config config() const = 0;

  /// Updates every parameter that has a gradient, each once; gradients stay as they are.
  void step(const NamedParameters& parameters);

  /// The buffers kept for a parameter (momentum, ...), by name, and the number of "step"s; empty where there are none.
  std::map<std::string, Tensor> state(const Parameter& parameter) const;
  /// Puts copies of saved ones back. ValueError for names, ShapeError for shapes that are not this optimizer's.
  void load_state(const ParameterPtr& parameter, const std::map<std::string, Tensor>& buffers);

 protected:
  /// Names of the buffers that update() wants; each is zeros of the parameter's shape at first.
  virtual std::vector<std::string> buffers() const = 0;
  /// Writes the parameter's next values from its grad(); `step` counts its updates from 1.
  virtual void update(Parameter& parameter, std::vector<Tensor>& buffers, Index step) const = 0;

 private:
  struct Slot {
    std::weak_ptr<Parameter> parameter;
    std::vector<Tensor> buffers;
    Index step = 0;
  };
  // A copy of an optimizer has a mutex of its own.
  struct Mutex : std::mutex {
    Mutex() = default;
    Mutex(const Mutex&) : Mutex() {}
    Mutex& operator=(const Mutex&) { return *this; }
  };
  Slot& slot(const ParameterPtr& parameter);
  std::map<const Parameter*, Slot> slots_;
  mutable Mutex mutex_;
};

/// Stochastic gradient descent (PyTorch's form):
///   g = dE/dW + weight_decay W;  v = momentum v + g;  W -= lr (nesterov ? g + momentum v : v)
/// where v begins as the first g. ValueError for settings that are negative or not finite.
class SGD : public Optimizer {
 public:
  explicit SGD(double lr, double momentum = 0.0, double weight_decay = 0.0, bool nesterov = false);

  std::string kind() const override { return "SGD"; }
  Config config() const override;

  double lr, momentum, weight_decay;  ///< may be changed between steps, which check them
  bool nesterov;                      ///< needs momentum > 0

 protected:
  std::vector<std::string> buffers() const override;
  void update(Parameter& parameter, std::vector<Tensor>& buffers, Index step) const override;
};

}  // namespace deepnet
