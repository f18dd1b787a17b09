// Trainer: forward, loss, backward and update as one native call.
#pragma once

#include <memory>
#include <type_traits>

#include <deepnet/loss.hpp>
#include <deepnet/model.hpp>
#include <deepnet/optimizer.hpp>

namespace deepnet {

/// Trains a model's layer in place. Copies share their plans; one step runs at a time.
class Trainer {
 public:
  /// ValueError where one of them is null.
  Trainer(Model model, std::shared_ptr<Loss> loss, std::shared_ptr<Optimizer> optimizer);
  /// Trainer(net, CrossEntropyLoss{}, SGD{0.1, 0.9})
  template <class L, class O, std::enable_if_t<std::is_base_of_v<Loss, L> && std::is_base_of_v<Optimizer, O>, int> = 0>
  Trainer(Model model, L loss, O optimizer)
      : Trainer(std::move(model), std::shared_ptr<Loss>(std::make_shared<L>(std::move(loss))),
                std::shared_ptr<Optimizer>(std::make_shared<O>(std::move(optimizer)))) {}

  /// One step of training on a batch, always in training mode; returns the loss before the update. The
  /// gradients are this step's alone. Throws NonFiniteError, the weights unchanged, where the loss is not finite.
  /// An undefined mask means that there is no padding, see Model.
  float step(const Tensor& x, const Tensor& target, const Tensor& mask = Tensor());
  /// The same on the rows order[begin:end] of x, target and mask, gathered natively; `order` is int64.
  float step_rows(const Tensor& x, const Tensor& target, const Tensor& order, Index begin, Index end,
                  const Tensor& mask = Tensor());

  /// How many of the last step's rows were classified rightly; -1 where the target was not labels.
  Index last_correct() const;
  /// How many of its labels count, those not ignored; -1 likewise.
  Index last_counted() const;
  /// What the last step left to look at; empty for networks without such layers.
  Traces traces() const;

  /// What it was made of.
  const Model& model() const;
  const std::shared_ptr<Loss>& loss() const;
  const std::shared_ptr<Optimizer>& optimizer() const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace deepnet
