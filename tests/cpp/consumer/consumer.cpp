// consumer MODEL INPUT SIZE...: the model's output for a raw float32 array of that shape, one hexadecimal float a line.
#include <cstdio>
#include <fstream>
#include <string>

#include <deepnet/deepnet.hpp>

int main(int argc, char** argv) try {
  if (argc < 4) {
    std::puts("usage: consumer MODEL INPUT SIZE...");
    return 2;
  }
  deepnet::Shape shape;
  for (int i = 3; i < argc; ++i) shape.push_back(std::stoll(argv[i]));

  deepnet::Tensor x(shape);
  std::ifstream file(argv[2], std::ios::binary);
  if (!file.read(static_cast<char*>(x.raw()), static_cast<std::streamsize>(x.bytes()))) {
    std::fprintf(stderr, "%s: expected %zu bytes\n", argv[2], x.bytes());
    return 1;
  }

  const deepnet::Model net = deepnet::load(argv[1]);
  const deepnet::Tensor y = net.predict(x);
  for (deepnet::Index i = 0; i < y.size(); ++i) std::printf("%a\n", static_cast<double>(y.data()[i]));
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
