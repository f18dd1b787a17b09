// Trains a small convolutional network on MNIST, Fashion-MNIST or any other images in IDX files.
//
//   train_idx FOLDER [EPOCHS] [MODEL.safetensors]
//
// FOLDER has train-images-idx3-ubyte, train-labels-idx1-ubyte and the same of t10k. The model, if named, is saved, for
// classify or for deepnet.load in Python.
#include <algorithm>
#include <cstdio>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <deepnet/deepnet.hpp>

using deepnet::Index;

namespace {

constexpr Index batch_size = 64;

struct Dataset {
  Dataset(const std::string& folder, const std::string& part)
      : images(deepnet::read_idx_images(folder + "/" + part + "-images-idx3-ubyte")),
        labels(deepnet::read_idx_labels(folder + "/" + part + "-labels-idx1-ubyte")) {}

  Index size() const { return labels.size(); }

  deepnet::Tensor images, labels;
};

// Two convolutions, each halved in size by pooling, then a linear classifier. In braces, layers are made in the order
// in which they stand, and so draw the same initial weights from any compiler.
deepnet::Model small_network(const deepnet::Tensor& images, Index classes) {
  deepnet::Conv2dOptions same;
  same.padding_mode = "same";
  const Index h = images.shape()[2] / 2 / 2, w = images.shape()[3] / 2 / 2;
  return deepnet::Model{deepnet::Conv2d(1, 8, 3, same),
                        deepnet::ReLU(),
                        deepnet::MaxPool2d(2),
                        deepnet::Conv2d(8, 16, 3, same),
                        deepnet::ReLU(),
                        deepnet::MaxPool2d(2),
                        deepnet::Flatten(),
                        deepnet::Linear(16 * h * w, classes)};
}

// Fisher and Yates's shuffle, written out because std::shuffle differs between standard libraries.
void shuffle(std::vector<Index>& order, std::mt19937& random) {
  for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random() % i]);
}

double accuracy(const deepnet::Model& net, const Dataset& data) {
  const deepnet::Tensor y = net.predict(data.images);
  return static_cast<double>(deepnet::count_correct(y, data.labels)) / static_cast<double>(data.size());
}

double train_epoch(deepnet::Trainer& trainer, const Dataset& data, const std::vector<Index>& rows) {
  const deepnet::Tensor order = deepnet::Tensor::labels(rows);
  double sum = 0.0;
  for (Index begin = 0; begin < data.size(); begin += batch_size) {
    const Index end = std::min(begin + batch_size, data.size());
    sum += trainer.step_rows(data.images, data.labels, order, begin, end) * static_cast<double>(end - begin);
  }
  return sum / static_cast<double>(data.size());
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 2) {
    std::puts("usage: train_idx FOLDER [EPOCHS] [MODEL.safetensors]");
    return 2;
  }
  const Dataset train(argv[1], "train"), test(argv[1], "t10k");
  const int epochs = argc > 2 ? std::stoi(argv[2]) : 3;
  if (train.size() == 0 || test.size() == 0) throw deepnet::ValueError("expected images and labels, got empty files");
  const Index* labels = train.labels.labels();
  const Index classes = 1 + *std::max_element(labels, labels + train.size());

  deepnet::manual_seed(0);
  deepnet::Model net = small_network(train.images, classes);
  deepnet::Trainer trainer(net, deepnet::CrossEntropyLoss{}, deepnet::SGD{0.05, 0.9});

  std::mt19937 random(0);
  std::vector<Index> order(static_cast<std::size_t>(train.size()));
  std::iota(order.begin(), order.end(), Index{0});
  for (int epoch = 1; epoch <= epochs; ++epoch) {
    shuffle(order, random);
    const double loss = train_epoch(trainer, train, order);
    std::printf("epoch %d  loss %.6f  test accuracy %.4f\n", epoch, loss, accuracy(net, test));
    std::fflush(stdout);
  }
  if (argc > 3) deepnet::save(net, argv[3]);
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
