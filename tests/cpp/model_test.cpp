// Whole networks: planned runs, training, threads, files.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include <deepnet/deepnet.hpp>

#include "check.hpp"

using namespace deepnet;

namespace {

Model small_network() {
  manual_seed(3);
  return Model{Conv2d(1, 6, 3), ReLU(),    MaxPool2d(2), Conv2d(6, 8, 3),
               Tanh(),          Flatten(), Dropout(0.2), Linear(8 * 5 * 5, 4)};
}

// Class c is a bright square in corner c of noise.
struct Corners {
  explicit Corners(Index n) : x({n, 1, 16, 16}), labels({n}, DType::int64) {
    init::uniform(x, 0.0, 0.5);
    for (Index i = 0; i < n; ++i) {
      labels.labels()[i] = i % 4;
      float* square = x.data() + i * 256 + (i % 4 / 2) * 8 * 16 + (i % 2) * 8;
      for (Index row = 0; row < 8; ++row) std::fill_n(square + row * 16, 8, 1.0f);
    }
  }
  Tensor x, labels;
};

bool same_bits(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && std::memcmp(a.raw(), b.raw(), a.bytes()) == 0;
}

bool same_weights(const Model& a, const Model& b) {
  const NamedParameters p = a.parameters(), q = b.parameters();
  return std::equal(p.begin(), p.end(), q.begin(), q.end(), [](const auto& s, const auto& t) {
    return s.first == t.first && same_bits(s.second->data, t.second->data);
  });
}

Model trained(int threads, int steps) {
  const ThreadScope scope(threads);
  Model net = small_network();
  const Corners data(32);
  Trainer trainer(net, CrossEntropyLoss{}, SGD{0.05, 0.9, 1e-4, true});
  for (int i = 0; i < steps; ++i) trainer.step(data.x, data.labels);
  return net;
}

struct TemporaryFile {
  explicit TemporaryFile(const char* name) : path((std::filesystem::temp_directory_path() / name).string()) {}
  ~TemporaryFile() { std::remove(path.c_str()); }
  std::string path;
};

// Knows which target it was shown.
struct WatchedLoss : CrossEntropyLoss {
  explicit WatchedLoss(const void** seen) : seen(seen) {}
  void check(const Tensor& y, const Tensor& target) const override {
    *seen = target.raw();
    CrossEntropyLoss::check(y, target);
  }
  const void** seen;
};

// Calls back in the middle of a run.
struct CallingLayer : Layer {
  std::string kind() const override { return "CallingLayer"; }
  Shape output_shape(const std::vector<Shape>& inputs) const override { return inputs[0]; }
  void forward(const ForwardCall& call) const override {
    if (in_forward) in_forward();
    std::memcpy(call.output->data(), call.inputs[0].data(), call.inputs[0].bytes());
  }
  void backward(const BackwardCall& call) override {
    if (in_backward) in_backward();
    if (call.d_inputs[0].defined()) call.d_inputs[0].fill(0.0f);
  }
  std::function<void()> in_forward, in_backward;
};

}  // namespace

TEST(training_lowers_the_loss_and_classifies) {
  Model net = small_network();
  const Corners data(64);
  Trainer trainer(net, CrossEntropyLoss{}, SGD{0.05f, 0.9f});
  const float first = trainer.step(data.x, data.labels);
  float last = first;
  for (int i = 0; i < 30; ++i) last = trainer.step(data.x, data.labels);
  CHECK(last < 0.2f * first);
  CHECK(count_correct(net.predict(data.x, 10), data.labels) >= 62);
}

TEST(any_number_of_threads_gives_the_same_bits) {
  const Model one = trained(1, 5);
  for (const int threads : {2, 3, 5}) CHECK(same_weights(one, trained(threads, 5)));
}

TEST(rows_in_order_are_a_batch) {
  Model a = small_network(), b = small_network();
  const Corners data(16);
  Trainer rows(a, MSELoss{}, SGD{0.1}), batch(b, MSELoss{}, SGD{0.1});
  const Tensor target = Tensor::zeros({16, 4});
  std::vector<Index> order(16);
  std::iota(order.begin(), order.end(), Index{0});
  manual_seed(5);
  const float e = rows.step_rows(data.x, target, Tensor::labels(order), 4, 12);
  manual_seed(5);
  CHECK(e == batch.step(data.x.rows(4, 12), target.rows(4, 12)));
  CHECK(same_weights(a, b));
}

TEST(a_loss_that_is_not_finite_leaves_the_weights) {
  Model net = small_network();
  const Model before = small_network();
  Corners data(4);
  data.x.data()[0] = std::numeric_limits<float>::quiet_NaN();
  Trainer trainer(net, CrossEntropyLoss{}, SGD{0.1});
  CHECK_THROWS(NonFiniteError, trainer.step(data.x, data.labels));
  CHECK(same_weights(net, before));
}

TEST(a_tensor_without_memory_has_a_clone_without) { CHECK(!Tensor().clone().defined()); }

TEST(labels_are_checked) {
  Trainer trainer(small_network(), CrossEntropyLoss{}, SGD{0.1});
  Corners data(4);
  data.labels.labels()[2] = 4;
  CHECK_THROWS(ValueError, trainer.step(data.x, data.labels));
  data.labels.labels()[2] = -1;
  CHECK_THROWS(ValueError, trainer.step(data.x, data.labels));
  CHECK_THROWS(ShapeError, trainer.step(data.x, data.labels.rows(0, 3)));
}

TEST(labels_are_read_from_a_copy) {
  const void* seen = nullptr;
  Trainer trainer(small_network(), WatchedLoss(&seen), SGD{0.1});
  const Corners data(4);
  trainer.step(data.x, data.labels);
  CHECK(seen != nullptr && seen != data.labels.raw());
}

// With a lock held while inputs go, or during backward, these would wait for themselves.
TEST(an_inputs_owner_may_ask_the_model_as_it_goes) {
  Model net{Linear(3, 2)};
  int asked = 0;
  for (int i = 0; i < 3; ++i) {
    float* memory = new float[12]();
    const std::shared_ptr<void> owner(memory, [&](void* p) {
      asked += net.recent_input_shape() == Shape({4, 3});
      delete[] static_cast<float*>(p);
    });
    net.run({Tensor::borrow(memory, {4, 3}, DType::float32, owner)});
  }
  CHECK(asked == 2);
  net.run({Tensor::zeros({1, 3})});
}

TEST(a_model_can_be_asked_during_its_backward_but_not_run_backward) {
  auto layer = std::make_shared<CallingLayer>();
  Model net{LayerPtr(layer)};
  net.run({Tensor::zeros({2, 5})});
  int called = 0;
  layer->in_backward = [&] {
    CHECK(net.recent_input_shape() == Shape({2, 5}));
    CHECK(net.traces().empty());
    CHECK_THROWS(StateError, net.backward(Tensor::zeros({2, 5})));
    ++called;
  };
  net.backward(Tensor::zeros({2, 5}));
  net.backward(Tensor::zeros({2, 5}));  // the run is still there
  CHECK(called == 2);
  layer->in_backward = [&] { net.run({Tensor::zeros({3, 5})}); };
  net.backward(Tensor::zeros({2, 5}));
  layer->in_backward = nullptr;
  CHECK(net.backward(Tensor::zeros({3, 5}))[0].shape() == Shape({3, 5}));
}

TEST(a_step_inside_a_step_is_refused) {
  auto layer = std::make_shared<CallingLayer>();
  Trainer trainer(Model(LayerPtr(layer)), MSELoss{}, SGD{0.1});
  const Tensor x = Tensor::zeros({2, 5});
  int called = 0;
  layer->in_forward = [&] {
    CHECK_THROWS(StateError, trainer.step(x, x));
    CHECK(trainer.traces().empty());
    ++called;
  };
  trainer.step(x, x);
  trainer.step(x, x);
  CHECK(called == 2);
}

TEST(threads_share_an_optimizer) {
  SGD optimizer{0.5, 0.9};
  std::vector<std::thread> threads;
  std::vector<int> right(4);
  std::atomic<int> waiting{static_cast<int>(right.size())};
  for (int& count : right) {
    threads.emplace_back([&] {
      for (--waiting; waiting > 0;) std::this_thread::yield();
      for (int i = 0; i < 100000; ++i) {
        const auto weight = std::make_shared<Parameter>(Tensor::zeros({3}));
        weight->grad().fill(1.0f);
        optimizer.step({{"weight", weight}});
        optimizer.step({{"weight", weight}});
        count += std::fabs(optimizer.state(*weight).at("momentum_buffer").data()[0] - 1.9f) < 1e-6f;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const int count : right) CHECK(count == 100000);
}

TEST(a_model_without_a_layer_says_so) {
  Model none;
  CHECK(none.layer() == nullptr);
  CHECK_THROWS(StateError, none.parameters());
  CHECK_THROWS(StateError, none.output_shape({1, 2}));
  CHECK_THROWS(StateError, none.train());
  CHECK_THROWS(StateError, none.eval());
  CHECK_THROWS(StateError, none.forward(Tensor::zeros({1, 2})));
  CHECK_THROWS(StateError, none.predict(Tensor::zeros({1, 2})));
  CHECK_THROWS(StateError, none.step(Tensor::zeros({1, 2})));
  CHECK_THROWS(StateError, none.run({Tensor::zeros({1, 2})}));
  CHECK_THROWS(StateError, none.backward(Tensor::zeros({1, 2})));
  CHECK_THROWS(StateError, none.recent_input_shape());
  CHECK_THROWS(StateError, none.traces());
  CHECK_THROWS(StateError, Trainer(none, MSELoss{}, SGD{0.1}));
}

TEST(tensors_without_memory_or_of_labels_are_refused) {
  Model net{Linear(3, 2)};
  const Tensor empty = Tensor::borrow(nullptr, {4, 3}), x = Tensor::zeros({4, 3});
  CHECK_THROWS(ValueError, net.forward(empty));
  CHECK_THROWS(ValueError, net.run({empty}));
  net.run({x});
  CHECK_THROWS(ValueError, net.backward(Tensor::borrow(nullptr, {4, 2})));
  CHECK_THROWS(TypeError, net.backward(Tensor::zeros({4, 2}, DType::int64)));
  Trainer trainer(net, CrossEntropyLoss{}, SGD{0.1});
  const Tensor labels = Tensor::labels({0, 1, 0, 1});
  CHECK_THROWS(ValueError, trainer.step(empty, labels));
  CHECK_THROWS(ValueError, trainer.step(x, Tensor::borrow(nullptr, {4}, DType::int64)));
  CHECK_THROWS(ValueError, trainer.step_rows(x, labels, Tensor::borrow(nullptr, {4}, DType::int64), 0, 4));
  CHECK_THROWS(TypeError, Tensor::labels({1, 2}).fill(3.0f));
  CHECK(std::isfinite(trainer.step(x, labels)));
}

TEST(an_empty_batch_has_an_empty_answer) {
  CHECK(small_network().predict(Tensor::zeros({0, 1, 16, 16})).shape() == Shape({0, 4}));
}

TEST(a_saved_model_answers_alike) {
  const TemporaryFile file("deepnet_model_test.safetensors");
  const Model net = trained(1, 3);
  save(net, file.path);
  const Model loaded = load(file.path);
  const Corners data(5);
  CHECK(same_weights(net, loaded));
  CHECK(same_bits(net.forward(data.x), loaded.forward(data.x)));
}
