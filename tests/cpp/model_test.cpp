// Whole networks: planned runs, training, threads, files.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <limits>
#include <numeric>
#include <string>
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

TEST(labels_are_checked) {
  Trainer trainer(small_network(), CrossEntropyLoss{}, SGD{0.1});
  Corners data(4);
  data.labels.labels()[2] = 4;
  CHECK_THROWS(ValueError, trainer.step(data.x, data.labels));
  data.labels.labels()[2] = -1;
  CHECK_THROWS(ValueError, trainer.step(data.x, data.labels));
  CHECK_THROWS(ShapeError, trainer.step(data.x, data.labels.rows(0, 3)));
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
