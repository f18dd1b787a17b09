// Losses: the mean over the batch of an error E(y, target), and dE/dy.
#pragma once

#include <memory>
#include <string>

#include <deepnet/error.hpp>
#include <deepnet/tensor.hpp>

namespace deepnet {

/// Where y has its classes, and the label of rows that do not count.
struct LabelOptions {
  int axis = 1;  ///< -1 for sequences (N, T, V)
  Index ignore_index = -100;
};

/// Base of the losses. They hold nothing but their options: several threads may call one at once.
class Loss {
 public:
  virtual ~Loss() = default;
  /// The class's name, "MSELoss": opens every error message.
  virtual std::string kind() const = 0;
  /// Whether an int64 target means class labels.
  virtual bool takes_labels() const { return false; }
  virtual LabelOptions label_options() const { return {}; }

  /// Checks y's and the target's shapes, types and label range; throws ShapeError, TypeError, ValueError.
  virtual void check(const Tensor& y, const Tensor& target) const = 0;
  /// The loss of y against a target that check() has accepted; writes dE/dy to d_y unless it is null.
  virtual double evaluate(const Tensor& y, const Tensor& target, Tensor* d_y) const = 0;
};

/// E = mean_n -log softmax(y_n)[label_n], y logits of shape (N, C) or (N, C, ...), or with their C classes along
/// another axis; target int64 labels of y's shape without that axis, or float32 probabilities of y's shape: E = mean_n
/// -sum_c t_nc log softmax(y_n)_c. The fused gradient is (softmax(y) - target) / N. Rows labelled ignore_index count
/// neither in the mean nor in the gradient.
class CrossEntropyLoss : public Loss {
 public:
  explicit CrossEntropyLoss(const LabelOptions& options = {}) : options(options) {}

  std::string kind() const override { return "CrossEntropyLoss"; }
  bool takes_labels() const override { return true; }
  LabelOptions label_options() const override { return options; }
  void check(const Tensor& y, const Tensor& target) const override;
  double evaluate(const Tensor& y, const Tensor& target, Tensor* d_y) const override;

  const LabelOptions options;
};

/// E = mean_n -y_n[label_n], y log-probabilities; shapes and ignored rows as with CrossEntropyLoss's labels.
class NLLLoss : public Loss {
 public:
  explicit NLLLoss(const LabelOptions& options = {}) : options(options) {}

  std::string kind() const override { return "NLLLoss"; }
  bool takes_labels() const override { return true; }
  LabelOptions label_options() const override { return options; }
  void check(const Tensor& y, const Tensor& target) const override;
  double evaluate(const Tensor& y, const Tensor& target, Tensor* d_y) const override;

  const LabelOptions options;
};

/// E = mean (y - target)^2 over all elements, target of y's shape; dE/dy = 2 (y - target) / size.
class MSELoss : public Loss {
 public:
  std::string kind() const override { return "MSELoss"; }
  void check(const Tensor& y, const Tensor& target) const override;
  double evaluate(const Tensor& y, const Tensor& target, Tensor* d_y) const override;
};

/// E = mean -(t log s(y) + (1 - t) log(1 - s(y))), s the sigmoid, as max(y, 0) - y t + log(1 + exp(-|y|));
/// over all elements, t of y's shape; dE/dy = (s(y) - t) / size.
class BCEWithLogitsLoss : public Loss {
 public:
  std::string kind() const override { return "BCEWithLogitsLoss"; }
  void check(const Tensor& y, const Tensor& target) const override;
  double evaluate(const Tensor& y, const Tensor& target, Tensor* d_y) const override;
};

/// How many rows of y have their (first) maximum, along the axis of the classes, at their label; ignored ones do not.
Index count_correct(const Tensor& y, const Tensor& labels, const LabelOptions& options = {});
/// How many labels are not ignored.
Index count_labels(const Tensor& labels, const LabelOptions& options = {});

}  // namespace deepnet
