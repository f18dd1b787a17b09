// Speed of single kernels, on one thread, of every instruction set that this machine has: GFLOP/s of those that
// multiply, GB/s (read plus written) of the others, on operands that fit into the second-level cache.
//
//   $ bench_kernels            # all kernels
//   $ bench_kernels gemm relu  # those with one of these in their names
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "dispatch.hpp"
#include "machine.hpp"
#include "parallel.hpp"

using namespace deepnet;

namespace {

using Floats = std::vector<float>;

Floats random_floats(int64_t n) {
  static std::mt19937 engine(1);
  std::normal_distribution<float> normal;
  Floats values(static_cast<std::size_t>(n));
  for (float& value : values) value = normal(engine);
  return values;
}

// One call of a kernel with its operands, and how many flops or bytes it is.
struct Work {
  double amount;
  std::function<void()> call;
};

struct Bench {
  const char* name;
  bool multiplies;
  std::function<Work(const KernelTable&)> prepare;
};

constexpr double float_bytes = sizeof(float);

// --- matrix products ------------------------------------------------------------------------------------------
constexpr int64_t depth = 256;

Work gemm(const KernelTable& t, int64_t m, int64_t n) {
  auto a = random_floats(m * depth), b = random_floats(depth * n), packed_a = a, c = random_floats(m * n);
  Floats packed_b(static_cast<std::size_t>((n + t.gemm_nr - 1) / t.gemm_nr * t.gemm_nr * depth));
  t.pack_a(a.data(), depth, 1, m, depth, packed_a.data());
  t.pack_b(b.data(), n, 1, depth, n, depth, packed_b.data());
  return {2.0 * static_cast<double>(m * n * depth), [=, &t]() mutable {
            GemmBlock block = {};
            block.m = m;
            block.n = n;
            block.k = depth;
            block.a = packed_a.data();
            block.b = packed_b.data();
            block.c = c.data();
            block.ldc = n;
            t.gemm_packed(&block);
          }};
}

Work pack_a(const KernelTable& t, bool columns) {
  constexpr int64_t m = 128;
  auto a = random_floats(m * depth), packed = a;
  return {2 * float_bytes * m * depth,
          [=, &t]() mutable { t.pack_a(a.data(), columns ? 1 : depth, columns ? m : 1, m, depth, packed.data()); }};
}

Work pack_b(const KernelTable& t, bool transposed) {
  constexpr int64_t n = 384;  // whole panels of every instruction set
  auto b = random_floats(n * depth), packed = b;
  return {2 * float_bytes * n * depth, [=, &t]() mutable {
            t.pack_b(b.data(), transposed ? 1 : n, transposed ? depth : 1, depth, n, depth, packed.data());
          }};
}

// --- convolutions -----------------------------------------------------------------------------------------------
// Taps of a size x size kernel whose first one is at (from, from).
struct Taps {
  explicit Taps(int size, int from) : h(static_cast<std::size_t>(size * size)), w(h) {
    for (int i = 0; i < size * size; ++i) {
      h[static_cast<std::size_t>(i)] = i / size + from;
      w[static_cast<std::size_t>(i)] = i % size + from;
    }
  }
  std::vector<int32_t> h, w;
};

ConvGather square_gather(const float* image, int64_t side, int64_t out_side, int64_t channels, int64_t stride,
                         const Taps& taps) {
  ConvGather g = {};
  g.image = image;
  g.image_stride = channels * side * side;
  g.channel_stride = side * side;
  g.height = g.width = side;
  g.out_height = g.out_width = out_side;
  g.stride_h = g.stride_w = stride;
  g.taps = static_cast<int64_t>(taps.h.size());
  g.tap_h = taps.h.data();
  g.tap_w = taps.w.data();
  return g;
}

constexpr int64_t side = 32, channels = 16, tiles = side * side / 4, patch = 16;

Work winograd_input(const KernelTable& t) {
  const Taps taps(4, -1);
  auto image = random_floats(channels * side * side);
  const int64_t n = tiles / t.gemm_nr * t.gemm_nr, apart = channels * n + 16;
  Floats packed(static_cast<std::size_t>(patch * apart));
  return {float_bytes * static_cast<double>((4 + patch) * channels * n), [=, &t]() mutable {
            const ConvGather gather = square_gather(image.data(), side, side / 2, channels, 2, taps);
            t.winograd_pack_input({2, 3}, &gather, channels, 0, n, packed.data(), apart);
          }};
}

Work winograd_output(const KernelTable& t) {
  const Taps taps(1, 0);
  const int64_t apart = channels * tiles + 16;
  auto products = random_floats(patch * apart), y = random_floats(channels * side * side);
  return {float_bytes * static_cast<double>((4 + patch) * channels * tiles), [=, &t]() mutable {
            const ConvGather cells = square_gather(y.data(), side, side / 2, channels, 2, taps);
            t.winograd_output({2, 3}, &cells, channels, 0, tiles, products.data(), tiles, apart, nullptr, kActNone,
                              0.0f, y.data());
          }};
}

Work winograd_weight(const KernelTable& t) {
  constexpr int64_t filters = 64;
  const int64_t apart = filters * channels + 16;
  auto weight = random_floats(filters * channels * 9);
  Floats packed(static_cast<std::size_t>(patch * apart));
  return {float_bytes * static_cast<double>((9 + patch) * filters * channels), [=, &t]() mutable {
            t.winograd_pack_weight({2, 3}, weight.data(), channels * 9, 9, 0, filters, channels, 0, channels,
                                   packed.data(), apart);
          }};
}

// LeNet's second convolution, 20 channels to 50, 5 x 5, on one group of images in lanes.
struct LaneConvolution {
  static constexpr int64_t channels = 20, filters = 50, size = 5, in = 12, out = in - size + 1,
                           k = channels * size * size;
  static constexpr double multiply_adds(int64_t rows, int64_t images) {
    return static_cast<double>(rows * out * filters * k * images);
  }
};

// One row of its outputs.
Work lane_product(const KernelTable& t) {
  using L = LaneConvolution;
  const int64_t cell = L::channels * t.vector_width;
  auto weight = random_floats(L::filters * L::k), packed = weight, cells = random_floats(L::size * L::in * cell);
  auto out = random_floats(L::out * L::filters * t.vector_width);
  t.pack_a(weight.data(), L::k, 1, L::filters, L::k, packed.data());
  std::vector<int64_t> offset;
  std::vector<int32_t> inside;
  for (int64_t r = 0; r < L::size; ++r)
    for (int64_t s = 0; s < L::size; ++s) offset.push_back((r * L::in + s) * cell);
  for (int64_t j = 0; j < L::out; ++j) {
    inside.push_back(0);
    inside.push_back(L::size);
  }
  return {2 * L::multiply_adds(1, t.vector_width), [=, &t]() mutable {
            LaneProduct p = {};
            p.rows = L::filters;
            p.weight = packed.data();
            p.channels = L::channels;
            p.taps_h = p.taps_w = p.last_row = L::size;
            p.inside = inside.data();
            p.cells = cells.data();
            p.offset = offset.data();
            p.joined = 1;
            p.step = cell;
            p.width = L::out;
            p.out = out.data();
            p.out_step = L::filters * t.vector_width;
            t.lane_product(&p);
          }};
}

// The gradient of a row of its kernels' taps.
Work lane_weights(const KernelTable& t) {
  using L = LaneConvolution;
  const int64_t lanes = t.vector_width, depth = L::out * L::out * lanes, rows = L::size * L::channels;
  const int64_t nr = t.gemm_nr, panels = (L::filters + nr - 1) / nr;
  auto errors = random_floats(panels * nr * depth), cells = random_floats(L::in * L::in * L::channels * lanes);
  auto sums = random_floats(rows * L::filters);
  return {2 * L::multiply_adds(L::out, lanes) / L::size, [=, &t]() mutable {
            LaneWeights w = {};
            w.rows = rows;
            w.filters = L::filters;
            w.errors = errors.data();
            w.depth = depth;
            w.error_row_step = L::out * lanes * nr;
            w.height = w.width = L::out;
            w.cells = cells.data();
            w.row_step = L::in * L::channels * lanes;
            w.step = L::channels * lanes;
            w.sums = sums.data();
            t.lane_weights(&w);
          }};
}

Work depthwise(const KernelTable& t) {
  constexpr int64_t plane = 56;
  const Taps taps(3, -1);
  auto x = random_floats(plane * plane), y = x, weight = random_floats(9);
  return {2.0 * 9 * plane * plane, [=, &t]() mutable {
            const ConvGather gather = square_gather(x.data(), plane, plane, 1, 1, taps);
            t.depthwise(&gather, weight.data(), 0, 0, 0, y.data(), plane, 1);
          }};
}

Work max_pool(const KernelTable& t, bool backward) {
  constexpr int64_t in = 64, out = in / 2;
  const Pool2dShape shape = {in, in, out, out, 2, 2, 2, 2, 0, 0};
  auto x = random_floats(in * in), y = random_floats(out * out);
  std::vector<int32_t> position(y.size());
  t.max_pool(&shape, x.data(), y.data(), position.data());
  return {float_bytes * (in * in + 2 * out * out), [=, &t]() mutable {
            if (backward) {
              t.max_pool_backward(&shape, y.data(), position.data(), x.data());
            } else {
              t.max_pool(&shape, x.data(), y.data(), position.data());
            }
          }};
}

// --- element by element -----------------------------------------------------------------------------------------
constexpr int64_t elements = 16384;

Work activation(const KernelTable& t, int kind, bool backward) {
  auto x = random_floats(elements), y = x, dy = x;
  return {float_bytes * elements * (backward ? 3 : 2), [=, &t]() mutable {
            if (backward) {
              t.activation_backward(kind, 0, elements, x.data(), dy.data(), y.data());
            } else {
              t.activation_forward(kind, 0, elements, x.data(), y.data());
            }
          }};
}

Work softmax(const KernelTable& t, bool backward) {
  constexpr int64_t length = 1000, rows = 64;
  auto x = random_floats(length * rows), y = x, dy = x;
  return {float_bytes * length * rows * (backward ? 3 : 2), [=, &t]() mutable {
            if (backward) {
              t.softmax_backward(length, 1, rows, x.data(), dy.data(), y.data(), 0);
            } else {
              t.softmax(length, 1, rows, x.data(), y.data(), 0);
            }
          }};
}

Work dropout(const KernelTable& t) {
  auto x = random_floats(elements), y = x;
  return {float_bytes * elements * 2,
          [=, &t]() mutable { t.dropout(1, 0, elements, 1u << 31, 2.0f, x.data(), y.data()); }};
}

// Steps of a size too small to carry the weights anywhere.
Work sgd(const KernelTable& t) {
  auto weight = random_floats(elements), grad = weight, velocity = weight;
  return {float_bytes * elements * 5, [=, &t]() mutable {
            const SgdStep step = {1e-6f, 0.9f, 0, 0};
            t.sgd(&step, elements, weight.data(), grad.data(), velocity.data());
          }};
}

Work adam(const KernelTable& t) {
  auto weight = random_floats(elements), grad = weight, mean = weight;
  Floats square(weight.size(), 1.0f);
  return {float_bytes * elements * 7, [=, &t]() mutable {
            const AdamStep step = {1, 0, 0.1f, 0.999f, 0.001f, 1e-6f, 1, 1e-8f};
            t.adam(&step, elements, weight.data(), grad.data(), mean.data(), square.data(), nullptr);
          }};
}

const std::vector<Bench>& benches() {
  using T = const KernelTable&;
  static const std::vector<Bench> list = {
      {"gemm_packed, 4 x 4 tiles", true, [](T t) { return gemm(t, 4 * t.gemm_mr, 4 * t.gemm_nr); }},
      {"gemm_packed, 128 x 384", true, [](T t) { return gemm(t, 128, 384); }},
      {"pack_a, rows", false, [](T t) { return pack_a(t, false); }},
      {"pack_a, columns", false, [](T t) { return pack_a(t, true); }},
      {"pack_b, rows", false, [](T t) { return pack_b(t, false); }},
      {"pack_b, columns", false, [](T t) { return pack_b(t, true); }},
      {"winograd_pack_input", false, winograd_input},
      {"winograd_pack_weight", false, winograd_weight},
      {"winograd_output", false, winograd_output},
      {"lane_product, 5x5, 20 to 50", true, lane_product},
      {"lane_weights, 5x5, 20 to 50", true, lane_weights},
      {"depthwise, 3x3", true, depthwise},
      {"max_pool, 2x2", false, [](T t) { return max_pool(t, false); }},
      {"max_pool_backward", false, [](T t) { return max_pool(t, true); }},
      {"relu", false, [](T t) { return activation(t, kActRelu, false); }},
      {"relu, backward", false, [](T t) { return activation(t, kActRelu, true); }},
      {"sigmoid", false, [](T t) { return activation(t, kActSigmoid, false); }},
      {"tanh", false, [](T t) { return activation(t, kActTanh, false); }},
      {"gelu", false, [](T t) { return activation(t, kActGelu, false); }},
      {"gelu, backward", false, [](T t) { return activation(t, kActGelu, true); }},
      {"softmax, 64 x 1000", false, [](T t) { return softmax(t, false); }},
      {"softmax_backward", false, [](T t) { return softmax(t, true); }},
      {"dropout", false, dropout},
      {"sgd, momentum", false, sgd},
      {"adam", false, adam},
  };
  return list;
}

bool is_chosen(const char* name, int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    if (std::strstr(name, argv[i])) return true;
  }
  return argc == 1;
}

}  // namespace

int main(int argc, char** argv) {
  const FlushDenormals flush;  // as wherever the library calls a kernel
  const std::vector<const KernelTable*> tables = available_kernels();
  const double peak = machine::peak_gflops(1);
  std::printf("one thread: peak %.1f GFLOP/s (%s), memory %.1f GB/s\n\n", peak, machine::widest_fma_loop().name,
              machine::bandwidth_gbs(1));
  std::printf("| kernel | unit |");
  for (const KernelTable* table : tables) std::printf(" %s |", table->name);
  std::printf(" %s of peak |\n|---|---|", tables.front()->name);
  for (std::size_t i = 0; i <= tables.size(); ++i) std::printf("--:|");
  std::printf("\n");
  for (const Bench& bench : benches()) {
    if (!is_chosen(bench.name, argc, argv)) continue;
    double first = 0;
    std::printf("| %s | %s |", bench.name, bench.multiplies ? "GFLOP/s" : "GB/s");
    for (const KernelTable* table : tables) {
      const Work work = bench.prepare(*table);
      const double speed = work.amount / machine::seconds_per_call(work.call) / 1e9;
      if (table == tables.front()) first = speed;
      std::printf(" %.1f |", speed);
      std::fflush(stdout);
    }
    if (bench.multiplies) std::printf(" %.0f %% |\n", 100 * first / peak);
    if (!bench.multiplies) std::printf(" |\n");
  }
}
