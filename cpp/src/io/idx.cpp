// The IDX format of MNIST (http://yann.lecun.com/exdb/mnist, "File formats"): two zero bytes, the element type (8:
// uint8), the number of axes, each axis's size as 4 bytes big-endian, then the elements.
#include <deepnet/io.hpp>

#include <algorithm>
#include <vector>

#include <deepnet/error.hpp>

#include "file.hpp"

namespace deepnet {
namespace {

// Reads the header, and checks it against what is wanted and against the file's size.
std::vector<Index> read_sizes(InputFile& file, unsigned axes) {
  const auto fail = [&](const std::string& problem) { throw ValueError(file.message(problem)); };
  unsigned char bytes[4] = {};
  const std::uint64_t header = 4 + 4 * static_cast<std::uint64_t>(axes);
  if (file.size() >= 4) file.read(bytes, 4);
  if (bytes[0] == 0x1f && bytes[1] == 0x8b) fail("the file is compressed; unpack it with gunzip first");
  if (file.size() < header || bytes[0] != 0 || bytes[1] != 0 || bytes[2] != 8 || bytes[3] != axes) {
    fail("expected an IDX file of uint8 with " + std::to_string(axes) +
         (axes == 1 ? " axis (labels)" : " axes (images)"));
  }
  std::vector<Index> sizes;
  const std::uint64_t content = file.size() - header;
  std::uint64_t expected = 1;
  for (unsigned axis = 0; axis < axes; ++axis) {
    file.read(bytes, 4);
    const std::uint64_t size = std::uint64_t{bytes[0]} << 24 | bytes[1] << 16 | bytes[2] << 8 | bytes[3];
    if (axis > 0 && size == 0) fail("expected images of 1 or more rows and columns, got 0");
    // Once beyond the content the product stays there, and so never overflows.
    expected = size == 0 || expected <= content / size ? expected * size : content + 1;
    sizes.push_back(static_cast<Index>(size));
  }
  if (expected != content) {
    fail("its header claims " + Shape(sizes).str() + " bytes, the file holds " + std::to_string(content));
  }
  return sizes;
}

// Calls take(index, value) for each of the n bytes that follow.
template <class Take>
void read_bytes(InputFile& file, Index n, Take take) {
  unsigned char chunk[16384];
  for (Index done = 0; done < n;) {
    const Index count = std::min<Index>(n - done, sizeof chunk);
    file.read(chunk, static_cast<std::size_t>(count));
    for (Index i = 0; i < count; ++i) take(done + i, chunk[i]);
    done += count;
  }
}

}  // namespace

Tensor read_idx_images(const std::string& path) {
  InputFile file("read_idx_images", path);
  const std::vector<Index> sizes = read_sizes(file, 3);
  Tensor images({sizes[0], 1, sizes[1], sizes[2]});
  float level[256];
  for (int i = 0; i < 256; ++i) level[i] = static_cast<float>(i) / 255.0f;
  read_bytes(file, images.size(), [&](Index i, unsigned char value) { images.data()[i] = level[value]; });
  return images;
}

Tensor read_idx_labels(const std::string& path) {
  InputFile file("read_idx_labels", path);
  Tensor labels(Shape(read_sizes(file, 1)), DType::int64);
  read_bytes(file, labels.size(), [&](Index i, unsigned char value) { labels.labels()[i] = value; });
  return labels;
}

}  // namespace deepnet
