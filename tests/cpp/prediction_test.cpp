// Predictions that are held for many runs.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#include <deepnet/deepnet.hpp>

#include "check.hpp"

namespace {
std::atomic<long> allocations{0};
}

// Every Tensor's owner and every container comes through here. Not inlined, for GCC would see a mistake.
[[gnu::noinline]] void* operator new(std::size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  ++allocations;
  return std::malloc(size);
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

using namespace deepnet;

namespace {

Model dense() { return Model{Linear(16, 24), ReLU(), Linear(24, 3), Softmax()}; }

Model convolutional() {
  return Model{Conv2d(1, 6, 5), ReLU(), MaxPool2d(2), Conv2d(6, 16, 5), Tanh(), Flatten(), Linear(16 * 8 * 8, 10)};
}

Model recurrent() { return Model{LSTM(8, 16), GRU(16, 12), Linear(12, 5)}; }

const std::vector<std::pair<Model, Shape>>& networks() {
  static const std::vector<std::pair<Model, Shape>> list = {
      {dense(), {8, 16}}, {convolutional(), {3, 1, 28, 28}}, {recurrent(), {4, 10, 8}}};
  return list;
}

Tensor normal(const Shape& shape) {
  Tensor x(shape);
  init::normal(x, 0.0, 1.0);
  return x;
}

bool same_bits(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && std::memcmp(a.raw(), b.raw(), a.bytes()) == 0;
}

// The layer's own memory instead of the plan's.
class Own : public Layer {
 public:
  std::string kind() const override { return "Own"; }
  Shape output_shape(const std::vector<Shape>& inputs) const override { return inputs[0]; }
  void forward(const ForwardCall& call) const override { *call.output = call.inputs[0].clone(); }
  void backward(const BackwardCall&) override {}
  Contract contract() const override {
    Contract contract;
    contract.makes_output = true;
    return contract;
  }
};

}  // namespace

TEST(a_prediction_is_what_forward_makes) {
  for (const auto& [net, input] : networks()) {
    Prediction prediction = net.prediction(input).value();
    for (int i = 0; i < 3; ++i) {
      const Tensor x = normal(input);
      Tensor y(prediction.output_shape());
      prediction.run(x.data(), y.data());
      CHECK(same_bits(y, net.forward(x)));
    }
  }
}

TEST(a_prediction_allocates_nothing_after_its_first_run) {
  for (const auto& [net, input] : networks()) {
    Prediction prediction = net.prediction(input).value();
    const Tensor x = normal(input);
    Tensor y(prediction.output_shape());
    prediction.run(x.data(), y.data());
    const long before = allocations;
    for (int i = 0; i < 10; ++i) prediction.run(x.data(), y.data());
    CHECK(allocations == before);
  }
}

TEST(weights_that_have_changed_count_in_the_next_run) {
  const Model net = convolutional();
  Prediction prediction = net.prediction({2, 1, 28, 28}).value();
  const Tensor x = normal({2, 1, 28, 28});
  Tensor y(prediction.output_shape());
  prediction.run(x.data(), y.data());
  for (const auto& [name, parameter] : net.parameters()) parameter->data.fill(0.25f);
  prediction.run(x.data(), y.data());
  CHECK(same_bits(y, net.forward(x)));
}

TEST(predictions_of_one_model_run_beside_each_other) {
  const Model net = dense();
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&net, &wrong, x = normal({1 + t, 16})] {
      for (int i = 0; i < 200; ++i) {
        Prediction prediction = net.prediction(x.shape()).value();
        Tensor y(prediction.output_shape());
        prediction.run(x.data(), y.data());
        wrong += !same_bits(y, net.forward(x));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
}

TEST(a_prediction_outlives_its_model_and_can_be_moved) {
  Tensor x = normal({8, 16}), expected, y({8, 3});
  auto prediction = [&] {
    const Model net = dense();
    expected = net.forward(x);
    return net.prediction(x.shape());
  }();
  Prediction moved = std::move(*prediction);
  *prediction = dense().prediction({8, 16}).value();  // of other weights
  moved.run(x.data(), y.data());
  CHECK(same_bits(y, expected));
}

TEST(small_dense_networks_are_brief) {
  CHECK(dense().prediction({8, 16})->brief());
  CHECK(!dense().prediction({4000, 16})->brief());
  CHECK(!Model{Linear(1000, 1000)}.prediction({1, 1000})->brief());
  CHECK(!convolutional().prediction({1, 1, 28, 28})->brief());
}

TEST(what_has_no_prediction_says_so) {
  CHECK(!(Model{Linear(2, 2), Own()}.prediction({1, 2})));
  CHECK_THROWS(ShapeError, dense().prediction({8, 15}));
  CHECK_THROWS(ShapeError, dense().prediction({}));
  CHECK_THROWS(StateError, Model().prediction({1, 2}));
  Prediction prediction = dense().prediction({8, 16}).value();
  Tensor y({8, 3});
  CHECK_THROWS(ValueError, prediction.run(nullptr, y.data()));
  CHECK_THROWS(ValueError, prediction.run(y.data(), nullptr));
}
