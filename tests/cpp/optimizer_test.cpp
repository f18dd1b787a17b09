// Optimizers against their equations in double precision, what they remember, and their checks.
#include <cmath>
#include <functional>
#include <thread>

#include <deepnet/deepnet.hpp>

#include "check.hpp"
#include "random.hpp"

using namespace deepnet;

namespace {

Tensor random_tensor(const Shape& shape, std::uint64_t key, double low = -3, double high = 3) {
  Tensor t(shape);
  for (Index i = 0; i < t.size(); ++i) {
    const auto word = philox(key, static_cast<std::uint64_t>(i))[0];
    t.data()[i] = static_cast<float>(low + (high - low) * philox_uniform(word));
  }
  return t;
}

constexpr Index count = 101;

ParameterPtr random_parameter() { return std::make_shared<Parameter>(random_tensor({count}, 4)); }

// Steps with fresh gradients, the same in every run.
void run(Optimizer& optimizer, const ParameterPtr& parameter, int first, int steps) {
  for (int t = first; t < first + steps; ++t) {
    parameter->grad() = random_tensor({count}, 10 + static_cast<std::uint64_t>(t));
    optimizer.step({{"w", parameter}, {"the same again", parameter}});
  }
}

bool same_weights(const ParameterPtr& a, const ParameterPtr& b) {
  return std::equal(a->data.data(), a->data.data() + count, b->data.data());
}

// 20 steps of `optimizer` against those of next(w, g, t, memory): the next w of one weight.
using Rule = std::function<double(double w, double g, int t, std::vector<double>& memory)>;
void compare(Optimizer&& optimizer, const Rule& next) {
  const ParameterPtr parameter = random_parameter();
  std::vector<double> w(parameter->data.data(), parameter->data.data() + count);
  std::vector<std::vector<double>> memory(w.size(), std::vector<double>(3, 0.0));
  for (int t = 1; t <= 20; ++t) {
    run(optimizer, parameter, t, 1);
    for (std::size_t i = 0; i < w.size(); ++i) w[i] = next(w[i], parameter->grad().data()[i], t, memory[i]);
  }
  for (std::size_t i = 0; i < w.size(); ++i) CHECK_NEAR(parameter->data.data()[i], w[i], 5e-6);
}

}  // namespace

TEST(sgd_follows_its_equations) {
  for (const auto& [momentum, decay, nesterov] :
       {std::make_tuple(0.0, 0.0, false), {0.0, 0.1, false}, {0.9, 0.0, false}, {0.9, 0.01, true}}) {
    SGD sgd(0.1, momentum, decay, nesterov);
    const Index n = 101;
    auto parameter = std::make_shared<Parameter>(random_tensor({n}, 4));
    std::vector<double> w(parameter->data.data(), parameter->data.data() + n), v(n, 0.0);
    for (int step = 0; step < 5; ++step) {
      parameter->grad() = random_tensor({n}, 10 + static_cast<std::uint64_t>(step));
      sgd.step({{"w", parameter}, {"the same again", parameter}});
      for (std::size_t i = 0; i < w.size(); ++i) {
        const double g = parameter->grad().data()[i] + decay * w[i];
        v[i] = momentum * v[i] + g;
        w[i] -= 0.1 * (nesterov ? g + momentum * v[i] : v[i]);
      }
    }
    for (std::size_t i = 0; i < w.size(); ++i) CHECK_NEAR(parameter->data.data()[i], w[i], 1e-6);
  }
}

TEST(sgd_state_can_be_put_back) {
  const auto start = [] { return std::make_shared<Parameter>(random_tensor({10}, 4)); };
  const auto run = [](SGD& sgd, const ParameterPtr& p, int steps) {
    p->grad() = random_tensor({10}, 5);
    for (int i = 0; i < steps; ++i) sgd.step({{"w", p}});
  };
  SGD whole(0.1, 0.9), first(0.1, 0.9), second(0.1, 0.9);
  const ParameterPtr a = start(), b = start();
  run(whole, a, 5);
  run(first, b, 3);
  CHECK(first.state(*a).empty());
  second.load_state(b, first.state(*b));
  run(second, b, 2);
  for (Index i = 0; i < 10; ++i) CHECK(a->data.data()[i] == b->data.data()[i]);
  CHECK_THROWS(ValueError, second.load_state(b, {{"velocity", Tensor::zeros({10})}}));
  CHECK_THROWS(ValueError, second.load_state(b, {}));
  CHECK_THROWS(ShapeError, second.load_state(b, {{"momentum_buffer", Tensor::zeros({9})}}));
}

TEST(sgd_skips_what_has_no_gradient_and_survives_a_changed_momentum) {
  SGD sgd(0.5);
  auto p = std::make_shared<Parameter>(Tensor::full({3}, 1.0f));
  sgd.step({{"w", p}});
  CHECK(p->data.data()[0] == 1.0f && !p->has_grad());
  p->grad().fill(1.0f);
  sgd.step({{"w", p}});
  sgd.momentum = 0.5;
  sgd.step({{"w", p}});
  sgd.step({{"w", p}});
  CHECK(p->data.data()[2] == 1.0f - 0.5f - 0.5f - 0.75f);
}

TEST(sgd_arguments) {
  CHECK_THROWS(ValueError, SGD(-0.1));
  CHECK_THROWS(ValueError, SGD(NAN));
  CHECK_THROWS(ValueError, SGD(0.1, -1));
  CHECK_THROWS(ValueError, SGD(0.1, 0, -1));
  CHECK_THROWS(ValueError, SGD(0.1, 0, 0, true));
}

TEST(adam_follows_its_equations) {
  for (const double decay : {0.0, 0.3}) {
    for (const bool amsgrad : {false, true}) {
      for (const bool decoupled : {false, true}) {
        const Rule rule = [=](double w, double g, int t, std::vector<double>& memory) {
          if (decoupled)
            w *= 1 - 0.01 * decay;
          else
            g += decay * w;
          double &m = memory[0], &v = memory[1], &largest = memory[2];
          m = 0.8 * m + 0.2 * g;
          v = 0.95 * v + 0.05 * g * g;
          largest = std::fmax(largest, v);
          const double m_hat = m / (1 - std::pow(0.8, t)), v_hat = (amsgrad ? largest : v) / (1 - std::pow(0.95, t));
          return w - 0.01 * m_hat / (std::sqrt(v_hat) + 1e-3);
        };
        if (decoupled)
          compare(AdamW(0.01, {0.8, 0.95}, 1e-3, decay, amsgrad), rule);
        else
          compare(Adam(0.01, {0.8, 0.95}, 1e-3, decay, amsgrad), rule);
      }
    }
  }
}

TEST(rmsprop_follows_its_equations) {
  for (const double decay : {0.0, 0.3}) {
    for (const double momentum : {0.0, 0.9}) {
      for (const bool centered : {false, true}) {
        compare(RMSprop(0.01, 0.9, 1e-3, decay, momentum, centered),
                [=](double w, double g, int, std::vector<double>& memory) {
                  g += decay * w;
                  double &s = memory[0], &a = memory[1], &u = memory[2];
                  s = 0.9 * s + 0.1 * g * g;
                  a = 0.9 * a + 0.1 * g;
                  u = momentum * u + g / (std::sqrt(centered ? s - a * a : s) + 1e-3);
                  return w - 0.01 * u;
                });
      }
    }
  }
}

// A gradient that never changes has no variance, and rounding makes that less than none.
TEST(centered_rmsprop_stays_finite_on_a_constant_gradient) {
  RMSprop rmsprop(0.01, 0.5, 1e-8, 0, 0, true);
  const ParameterPtr p = random_parameter();
  p->grad() = random_tensor({count}, 5);
  for (int t = 0; t < 200; ++t) rmsprop.step({{"w", p}});
  for (Index i = 0; i < count; ++i) CHECK(std::isfinite(p->data.data()[i]));
}

TEST(a_copy_of_an_optimizer_goes_on_by_itself) {
  Adam whole(0.1);
  const ParameterPtr a = random_parameter();
  run(whole, a, 1, 3);
  Adam copy = whole;
  const ParameterPtr b = std::make_shared<Parameter>(a->data.clone());
  copy.load_state(b, whole.state(*a));
  const Optimizer::Buffers before = whole.state(*a);
  run(copy, a, 4, 2);
  for (const auto& [name, buffer] : whole.state(*a)) CHECK(buffer.data()[0] == before.at(name).data()[0]);
  CHECK(copy.state(*a).at("step").data()[0] == 5.0f);
  run(whole, b, 1, 1);
  whole = copy;
  CHECK(whole.state(*a).at("exp_avg").data()[0] == copy.state(*a).at("exp_avg").data()[0]);
}

TEST(adam_state_can_be_put_back) {
  Adam whole, first, second;
  const ParameterPtr a = random_parameter(), b = random_parameter();
  run(whole, a, 1, 5);
  run(first, b, 1, 3);
  const Optimizer::Buffers state = first.state(*b);
  CHECK(state.size() == 3 && state.at("step").data()[0] == 3.0f);
  second.load_state(b, state);
  run(second, b, 4, 2);
  CHECK(same_weights(a, b));
  Optimizer::Buffers uncounted = state;
  uncounted.erase("step");
  CHECK_THROWS(ValueError, second.load_state(b, uncounted));
  CHECK_THROWS(ValueError, Adam(0.1, {0.9, 0.99}, 1e-8, 0, true).load_state(b, state));
  CHECK_THROWS(ValueError, RMSprop().load_state(b, state));
}

TEST(a_refused_step_is_not_counted) {
  Adam tried, other;
  const ParameterPtr a = random_parameter(), b = random_parameter();
  run(tried, a, 1, 1);
  tried.lr = -1;
  CHECK_THROWS(ValueError, run(tried, a, 2, 1));
  tried.lr = other.lr;
  run(tried, a, 2, 2);
  run(other, b, 1, 3);
  CHECK(same_weights(a, b));
}

TEST(settings_that_need_another_buffer_may_be_switched_on) {
  Adam adam;
  RMSprop rmsprop;
  const ParameterPtr a = random_parameter(), b = random_parameter();
  run(adam, a, 1, 2);
  run(rmsprop, b, 1, 2);
  adam.amsgrad = rmsprop.centered = true;
  rmsprop.momentum = 0.5;
  run(adam, a, 3, 2);
  run(rmsprop, b, 3, 2);
  CHECK(adam.state(*a).count("max_exp_avg_sq") == 1);
  CHECK(rmsprop.state(*b).count("grad_avg") == 1 && rmsprop.state(*b).count("momentum_buffer") == 1);
}

// Under a thread sanitizer this also shows that the slots are guarded.
TEST(one_optimizer_serves_several_threads) {
  Adam shared, own;
  const ParameterPtr expected = random_parameter();
  run(own, expected, 1, 50);
  std::vector<ParameterPtr> parameters;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) parameters.push_back(random_parameter());
  for (const ParameterPtr& parameter : parameters) {
    threads.emplace_back([&shared, parameter] {
      run(shared, parameter, 1, 25);
      shared.load_state(parameter, shared.state(*parameter));
      run(shared, parameter, 26, 25);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const ParameterPtr& parameter : parameters) CHECK(same_weights(parameter, expected));
}

TEST(trainers_take_every_optimizer) {
  Model net(Linear(4, 3));
  const Tensor x = random_tensor({6, 4}, 1), labels = Tensor::labels({0, 1, 2, 0, 1, 2});
  const auto lowers_the_loss = [&](Trainer trainer) {
    const float first = trainer.step(x, labels);
    float last = first;
    for (int i = 0; i < 20; ++i) last = trainer.step(x, labels);
    return last < first;
  };
  CHECK(lowers_the_loss(Trainer(net, CrossEntropyLoss{}, Adam{1e-3f})));
  CHECK(lowers_the_loss(Trainer(net, CrossEntropyLoss{}, AdamW{})));
  CHECK(lowers_the_loss(Trainer(net, CrossEntropyLoss{}, RMSprop{1e-3, 0.9})));
}

TEST(trainers_share_losses_and_optimizers) {
  const auto loss = std::make_shared<MSELoss>();
  const auto sgd = std::make_shared<SGD>(0.1);
  const Trainer of_classes(Model(Linear(2, 1)), loss, sgd);
  const Trainer of_bases(Model(Linear(2, 1)), std::shared_ptr<Loss>(loss), sgd);
  CHECK(of_classes.optimizer() == of_bases.optimizer());
  CHECK(of_classes.loss() == loss);
}

TEST(adam_and_rmsprop_arguments) {
  CHECK_THROWS(ValueError, Adam(-0.1));
  CHECK_THROWS(ValueError, Adam(0.1, {1.0, 0.999}));
  CHECK_THROWS(ValueError, Adam(0.1, {0.9, -0.1}));
  CHECK_THROWS(ValueError, Adam(0.1, {0.9, NAN}));
  CHECK_THROWS(ValueError, Adam(0.1, {0.9, 0.999}, -1));
  CHECK_THROWS(ValueError, AdamW(0.1, {0.9, 0.999}, 1e-8, INFINITY));
  CHECK_THROWS(ValueError, RMSprop(NAN));
  CHECK_THROWS(ValueError, RMSprop(0.1, 1.0));
  CHECK_THROWS(ValueError, RMSprop(0.1, 0.9, -1));
  CHECK_THROWS(ValueError, RMSprop(0.1, 0.9, 1e-8, -1));
  CHECK_THROWS(ValueError, RMSprop(0.1, 0.9, 1e-8, 0, -1));
}
