// Which layers of a network take a batch in tiles, and what they make of it.
#include "model/tiling.hpp"

#include <cstring>
#include <memory>
#include <vector>

#include <deepnet/deepnet.hpp>

#include "check.hpp"
#include "ops/layout.hpp"

using namespace deepnet;

namespace {

template <class... Layers>
std::vector<LayerPtr> layers_of(Layers... layers) {
  return {std::make_shared<Layers>(std::move(layers))...};
}

template <class... Layers>
Tiling tiling(const Shape& input, Layers... layers) {
  return tiling_of(graph_of(std::make_shared<Sequential>(layers_of(std::move(layers)...))), input);
}

Conv2d same_size(Index in, Index out) {
  Conv2dOptions options;
  options.padding = 1;
  return Conv2d(in, out, 3, options);
}

// The mean over the batch is taken off: a row depends on the others.
class Centre : public Layer {
 public:
  std::string kind() const override { return "Centre"; }
  Shape output_shape(const std::vector<Shape>& inputs) const override { return inputs[0]; }
  void forward(const ForwardCall& call) const override {
    const Index rows = call.inputs[0].shape()[0], row = call.inputs[0].shape().size() / rows;
    for (Index i = 0; i < row; ++i) {
      float mean = 0.0f;
      for (Index n = 0; n < rows; ++n) mean += call.inputs[0].data()[n * row + i] / static_cast<float>(rows);
      for (Index n = 0; n < rows; ++n) call.output->data()[n * row + i] = call.inputs[0].data()[n * row + i] - mean;
    }
  }
};

Tensor noise(const Shape& shape) {
  Tensor x(shape);
  init::normal(x, 0.0, 1.0);
  return x;
}

// What the layers make, each of the whole batch.
Tensor one_by_one(const std::vector<LayerPtr>& layers, Tensor x) {
  for (const LayerPtr& layer : layers) x = Model(layer).forward(x);
  return x;
}

void check_close(const Tensor& got, const Tensor& expected) {
  CHECK(got.shape() == expected.shape());
  float largest = 0.0f;
  for (Index i = 0; i < got.size(); ++i) largest = std::max(largest, std::fabs(got.data()[i] - expected.data()[i]));
  CHECK_NEAR(largest, 0.0, 1e-4);  // Winograd's tiles may be others
}

}  // namespace

TEST(images_go_in_tiles_as_far_as_their_layers_have_few_parameters) {
  const Tiling lenet = tiling({64, 1, 28, 28}, Conv2d(1, 20, 5), ReLU(), MaxPool2d(2), Conv2d(20, 50, 5), ReLU(),
                              MaxPool2d(2), Flatten(), Linear(800, 500), ReLU(), Linear(500, 10));
  CHECK(lenet.nodes == 7);  // before the linear layers
  CHECK(lenet.rows > 0 && lenet.rows % lanes() == 0);
  CHECK(tiling({1, 16, 32, 32}, same_size(16, 16), ReLU(), same_size(16, 16)).nodes == 3);
  CHECK(tiling({64, 784}, Linear(784, 256), ReLU(), Linear(256, 10)).nodes == 0);
}

TEST(nothing_goes_in_tiles_where_it_does_not_pay_or_rows_depend_on_each_other) {
  CHECK(tiling({64, 16, 32, 32}, same_size(16, 16), ReLU()).nodes == 0);  // nobody reads what is in the cache
  CHECK(tiling({64, 16, 32, 32}, same_size(16, 16), ReLU(), Dropout(0.5), Flatten()).nodes == 0);
  CHECK(tiling({64, 16, 0, 32}, ReLU(), ReLU()).nodes == 0);
  CHECK(tiling({4, 64, 512, 512}, same_size(64, 64), same_size(64, 64)).nodes == 0);  // too large for it
  CHECK(tiling({64, 16, 32, 32}, Centre(), same_size(16, 16), same_size(16, 16)).nodes == 0);
  CHECK(tiling({64, 16, 32, 32}, same_size(16, 16), same_size(16, 16), Centre(), same_size(16, 16)).nodes == 2);
  CHECK(tiling({64, 16, 32, 32}, same_size(16, 16), same_size(16, 16), Softmax(0)).nodes == 2);
  CHECK_THROWS(ShapeError, tiling({64, 3, 32, 32}, same_size(16, 16), same_size(16, 16)));
}

TEST(tiles_make_what_layers_make_of_the_whole_batch) {
  manual_seed(5);
  const std::vector<LayerPtr> layers = layers_of(same_size(3, 16), ReLU(), same_size(16, 24), GELU(), MaxPool2d(2),
                                                 Dropout(0.5), Centre(), same_size(24, 8), Flatten(), Linear(2048, 5));
  const Model net(std::make_shared<Sequential>(layers));
  for (const Index rows : {67, 64, 3}) {
    const Tensor x = noise({rows, 3, 32, 32});
    check_close(net.forward(x), one_by_one(layers, x));
  }
}

TEST(tiles_have_the_same_bits_on_any_number_of_threads) {
  manual_seed(6);
  const Model net{same_size(3, 16), ReLU(), same_size(16, 16), ReLU(), AvgPool2d(8), Flatten(), Linear(256, 10)};
  const Tensor x = noise({100, 3, 32, 32});
  const auto on = [&](int threads) {
    const ThreadScope scope(threads);
    return net.predict(x, 70);  // a batch of several tiles, and one of a part of a tile
  };
  const Tensor expected = on(1);
  for (const int threads : {2, 3, 7}) CHECK(std::memcmp(on(threads).raw(), expected.raw(), expected.bytes()) == 0);
}

TEST(weights_that_have_changed_count_in_the_next_prediction) {
  const std::vector<LayerPtr> layers = layers_of(same_size(3, 16), ReLU(), same_size(16, 16), Flatten());
  const Model net(std::make_shared<Sequential>(layers));
  const Tensor x = noise({80, 3, 32, 32}), before = net.forward(x);
  for (const auto& [name, parameter] : net.parameters()) init::normal(parameter->data, 0.0, 0.1);
  const Tensor after = net.forward(x);
  CHECK(std::memcmp(before.raw(), after.raw(), after.bytes()) != 0);
  check_close(after, one_by_one(layers, x));
}

TEST(shapes_that_do_not_fit_are_told_with_the_whole_batch) {
  const Model net{same_size(16, 16), ReLU(), same_size(16, 16)};
  try {
    net.forward(noise({80, 3, 32, 32}));
    CHECK(false);
  } catch (const ShapeError& error) {
    CHECK(std::strstr(error.what(), "(80, 3, 32, 32)") != nullptr);
  }
}
