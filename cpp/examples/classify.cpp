// Classifies images with a model that Python (net.save) or train_idx saved.
//
//   classify MODEL.safetensors IMAGE...
//
// An image is a binary PGM file, or an IDX file of many. Each class's probability is printed in percent and, exactly,
// as a hexadecimal float. The model is one that ends in logits, as trained with CrossEntropyLoss.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include <deepnet/deepnet.hpp>

namespace {

// "P5 width height maxval", one white space, then a byte a pixel. Comments in the header are not supported.
deepnet::Tensor read_pgm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string magic;
  deepnet::Index width = 0, height = 0, maximum = 0;
  file >> magic >> width >> height >> maximum;
  if (!file || magic != "P5" || width < 1 || height < 1 || width > 65535 || height > 65535 || maximum != 255) {
    throw deepnet::ValueError("[read_pgm] expected a binary PGM file of 8-bit pixels, got " + path);
  }
  file.get();
  std::vector<char> pixels(static_cast<std::size_t>(width * height));
  if (!file.read(pixels.data(), static_cast<std::streamsize>(pixels.size()))) {
    throw deepnet::ValueError("[read_pgm] expected " + std::to_string(pixels.size()) + " pixels in " + path);
  }
  deepnet::Tensor image({1, 1, height, width});
  std::transform(pixels.begin(), pixels.end(), image.data(),
                 [](char pixel) { return static_cast<float>(static_cast<unsigned char>(pixel)) / 255.0f; });
  return image;
}

deepnet::Tensor read_images(const std::string& path) {
  const bool is_pgm = std::ifstream(path, std::ios::binary).get() == 'P';
  return is_pgm ? read_pgm(path) : deepnet::read_idx_images(path);
}

void print_row(const char* path, deepnet::Index row, const float* probability, deepnet::Index classes) {
  const auto best = std::max_element(probability, probability + classes) - probability;
  std::printf("%s[%lld]: class %lld\n", path, static_cast<long long>(row), static_cast<long long>(best));
  for (deepnet::Index c = 0; c < classes; ++c) {
    const double p = probability[c];
    std::printf("%6lld %7.3f %%  %a\n", static_cast<long long>(c), 100.0 * p, p);
  }
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 3) {
    std::puts("usage: classify MODEL.safetensors IMAGE...");
    return 2;
  }
  const deepnet::Model logits = deepnet::load(argv[1]);
  const deepnet::Model net(std::make_shared<deepnet::Sequential>(
      std::vector<deepnet::LayerPtr>{logits.layer(), std::make_shared<deepnet::Softmax>()}));

  for (int i = 2; i < argc; ++i) {
    const deepnet::Tensor y = net.predict(read_images(argv[i]));
    const deepnet::Index classes = y.shape()[-1];
    for (deepnet::Index row = 0; row < y.shape()[0]; ++row) print_row(argv[i], row, y.data() + row * classes, classes);
  }
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
