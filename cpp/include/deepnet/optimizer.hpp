// Optimizers: from a parameter and its gradient to the next parameter.
#pragma once

#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include <deepnet/layer.hpp>

namespace deepnet {

/// Base of the optimizers. What one remembers of a parameter is found by the parameter, wherever that is used.
/// step(), state() and load_state() may be called by several threads at once: they take turns.
class Optimizer {
 public:
  /// A tensor for each name; looked up once a parameter and step.
  using Buffers = std::map<std::string, Tensor>;

  Optimizer() = default;
  /// A copy remembers the same and goes on by itself.
  Optimizer(const Optimizer& other);
  Optimizer& operator=(const Optimizer& other);
  virtual ~Optimizer() = default;
  /// The class's name, "SGD": opens every error message and identifies it in files.
  virtual std::string kind() const = 0;
  /// The settings, by name.
  virtual Config config() const = 0;

  /// Updates every parameter that has a gradient, each once; gradients stay as they are. ValueError for a setting
  /// that was changed to a value out of its range, before anything is updated.
  void step(const NamedParameters& parameters);

  /// Copies of the buffers kept for a parameter (momentum, ...), by name, and the number of "step"s; empty where there
  /// are none.
  Buffers state(const Parameter& parameter) const;
  /// Whether it has updated parameters that still are, but none of these.
  bool belongs_elsewhere(const NamedParameters& parameters) const;
  /// Puts copies of saved ones back. ValueError for names, ShapeError for shapes that are not this optimizer's.
  void load_state(const ParameterPtr& parameter, const Buffers& buffers);

 protected:
  /// Throws ValueError for settings out of their range.
  virtual void check() const {}
  /// Names of the buffers that update() wants; each is zeros of the parameter's shape at first.
  virtual std::vector<std::string> buffers() const = 0;
  /// Whether update() depends on `step`, so that saved buffers are of no use without it.
  virtual bool needs_step() const { return false; }
  /// Writes the parameter's next values from its grad(); `step` counts its updates from 1.
  virtual void update(Parameter& parameter, Buffers& buffers, Index step) const = 0;

 private:
  struct Slot {
    std::weak_ptr<Parameter> parameter;
    Buffers buffers;
    Index step = 0;
  };
  using Slots = std::map<const Parameter*, Slot>;
  Slot& slot(const ParameterPtr& parameter);
  Slots copy_slots() const;

  mutable std::mutex mutex_;  // of slots_
  Slots slots_;
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
  void check() const override;
  std::vector<std::string> buffers() const override;
  void update(Parameter& parameter, Buffers& buffers, Index step) const override;
};

/// Adam (Kingma and Ba 2015, algorithm 1), in PyTorch's form:
///   g = dE/dW + weight_decay W;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
///   W -= lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)     t = 1, 2, ... counts the parameter's updates
/// amsgrad (Reddi, Kale and Kumar 2018, algorithm 2): the largest v so far in place of v.
/// ValueError for settings that are negative or not finite, and betas of 1 or more.
class Adam : public Optimizer {
 public:
  explicit Adam(double lr = 1e-3, std::pair<double, double> betas = {0.9, 0.999}, double eps = 1e-8,
                double weight_decay = 0.0, bool amsgrad = false);

  std::string kind() const override { return kind_; }
  Config config() const override;

  double lr;  ///< this and the others may be changed between steps, which check them
  std::pair<double, double> betas;
  double eps, weight_decay;
  bool amsgrad;

 protected:
  /// For classes that differ in their name and in whether weights shrink by themselves, not through their gradient.
  Adam(std::string kind, bool decoupled_decay, double lr, std::pair<double, double> betas, double eps,
       double weight_decay, bool amsgrad);
  void check() const override;
  std::vector<std::string> buffers() const override;
  bool needs_step() const override { return true; }
  void update(Parameter& parameter, Buffers& buffers, Index step) const override;

 private:
  std::string kind_;
  bool decoupled_decay_;
};

/// Adam whose weight decay stays out of m and v (Loshchilov and Hutter 2019, algorithm 2), in PyTorch's form:
///   W *= 1 - lr weight_decay, then Adam's step with g = dE/dW
class AdamW : public Adam {
 public:
  explicit AdamW(double lr = 1e-3, std::pair<double, double> betas = {0.9, 0.999}, double eps = 1e-8,
                 double weight_decay = 1e-2, bool amsgrad = false);
};

/// RMSprop (Tieleman and Hinton 2012, lecture 6.5), in PyTorch's form:
///   g = dE/dW + weight_decay W;  s = alpha s + (1 - alpha) g^2
///   u = momentum u + g / (sqrt(s) + eps);  W -= lr u
/// centered (Graves 2013, equations 38 to 40): sqrt(s - a^2) with a = alpha a + (1 - alpha) g in place of sqrt(s).
/// ValueError for settings that are negative or not finite, and an alpha of 1 or more.
class RMSprop : public Optimizer {
 public:
  explicit RMSprop(double lr = 1e-2, double alpha = 0.99, double eps = 1e-8, double weight_decay = 0.0,
                   double momentum = 0.0, bool centered = false);

  std::string kind() const override { return "RMSprop"; }
  Config config() const override;

  double lr, alpha, eps, weight_decay, momentum;  ///< may be changed between steps, which check them
  bool centered;

 protected:
  void check() const override;
  std::vector<std::string> buffers() const override;
  void update(Parameter& parameter, Buffers& buffers, Index step) const override;
};

}  // namespace deepnet
