// A task takes a strip of rows of one group of images. Images that are not in lanes are turned, outputs turned back,
// within the second-level cache. dE/dx is the same with dE/dy for the input, in stride_h x stride_w phases of output
// cells that are reached by the same taps. dE/dW is in lanes_weight.cpp.
#include "lanes.hpp"

#include "../parallel.hpp"
#include "activation.hpp"
#include "lanes_common.hpp"

namespace deepnet {
namespace {

// Taps of one axis that reach the output cells first, first + stride, ... of dE/dx, or all taps forward.
struct AxisTaps {
  Index count = 0;
  int32_t* place;  // in the kernel
  int32_t* cell;   // that the tap reads for output 0, rising
  Index lowest = 0, highest = 0;

  void add(Index tap, Index at) {
    if (count == 0) lowest = at;
    highest = at;
    place[count] = static_cast<int32_t>(tap);
    cell[count++] = static_cast<int32_t>(at);
  }
  // The taps [first, last) whose cells lie in [0, size), for an output whose cells are `at` further on.
  void inside(Index at, Index size, Index& first, Index& last) const {
    const auto is_inside = [&](Index i) { return cell[i] + at >= 0 && cell[i] + at < size; };
    for (first = 0; first < count && !is_inside(first);) ++first;
    for (last = first; last < count && is_inside(last);) ++last;
  }
};

// Output cells (a, b), (a + step_h, b), ..., made from the same taps.
struct Phase {
  Index a, b, height, width;  // first cell; outputs
  AxisTaps h, w;
  int32_t* inside;
  std::int64_t* offset;
  int32_t* place;  // of every tap in the kernel
  Index weights;   // where its packed weights begin among those of the group of channels
  bool joined;     // taps of a row read neighbouring cells

  Index taps() const { return h.count * w.count; }
};

// out (N, out_planes, ...) from in (N, in_planes, ...); an output (i, j) of a phase reads cells around (i stride_h, j
// stride_w) and is cell (a + i step_h, b + j step_w).
struct Convolution {
  Index images, in_planes, in_height, in_width, out_planes, out_height, out_width;
  Index stride_h, stride_w, step_h, step_w;
  Index kernel_h, kernel_w;

  Index phases_h() const { return std::min(step_h, out_height); }
  Index phases_w() const { return std::min(step_w, out_width); }
  Index most_rows() const { return ceil_div(out_height, step_h); }  // of a phase
  Index in_rows(Index strip, Index dilation_h) const {
    return std::min((strip - 1) * stride_h + dilation_h * (kernel_h - 1) + 1, in_height);
  }
  Index out_rows(Index strip) const { return std::min(strip * step_h, out_height); }
  Index in_row() const { return in_width * in_planes * lanes(); }  // floats
  Index out_row() const { return out_width * out_planes * lanes(); }
};

Convolution forward_of(const ConvShape& s) {
  return {s.N, s.C / s.groups, s.H, s.W, s.K / s.groups, s.P, s.Q, s.stride_h, s.stride_w, 1, 1, s.R, s.S};
}
Convolution backward_of(const ConvShape& s) {
  return {s.N, s.K / s.groups, s.P, s.Q, s.C / s.groups, s.H, s.W, 1, 1, s.stride_h, s.stride_w, s.R, s.S};
}

// How a convolution is cut: rows of a phase a task, columns that are multiplied at once.
struct Strips {
  Index rows, count, groups, columns;
  Index in_floats, out_floats;  // of a strip

  Strips(const ConvShape& s, const Convolution& c) {
    const auto floats = [&](Index r) { return c.in_rows(r, s.dilation_h) * c.in_row() + c.out_rows(r) * c.out_row(); };
    const double work = static_cast<double>(c.images * c.in_planes * c.out_planes) * c.kernel_h * c.kernel_w *
                        static_cast<double>(c.out_height * c.out_width) / static_cast<double>(c.step_h * c.step_w);
    groups = image_groups(c.images);
    rows = c.most_rows();
    while (!s.lanes && rows > 1 && floats(rows) > lanes_cache) rows = (rows + 1) / 2;
    while (rows > 1 && groups * ceil_div(c.most_rows(), rows) < 16 &&
           work / static_cast<double>(groups * ceil_div(c.most_rows(), rows)) >= 2 * least_work)
      rows = (rows + 1) / 2;
    count = ceil_div(c.most_rows(), rows);
    // Cells under these columns stay in the second-level cache while all outputs are made from them.
    const Index column = c.in_rows(1, s.dilation_h) * c.in_planes * c.stride_w * lanes();
    columns = even_piece(c.out_width, std::max<Index>(lanes_cache / 2 / std::max<Index>(column, 1), 8));
    in_floats = c.in_rows(rows, s.dilation_h) * c.in_row();
    out_floats = c.out_rows(rows) * c.out_row();
  }
};

// Asks for `count` images' cells, image_stride apart: runs too short, and too many side by side, for the hardware to
// see what comes next.
void prefetch(Index count, Index cells, const float* from, Index image_stride, bool write) {
  constexpr Index line = 16;
  for (Index i = 0; i < cells; i += line) {
    for (Index n = 0; n < count; ++n) {
      const float* at = from + n * image_stride + i;
      if (write) {
        __builtin_prefetch(at, 1, 2);
      } else {
        __builtin_prefetch(at, 0, 2);
      }
    }
  }
}

void find_forward_taps(Index kernel, Index dilation, Index pad, AxisTaps& taps) {
  for (Index tap = 0; tap < kernel; ++tap) taps.add(tap, tap * dilation - pad);
}

// Those that reach the cells first, first + stride, ... of dE/dx.
void find_backward_taps(Index first, Index kernel, Index dilation, Index pad, Index stride, AxisTaps& taps) {
  for (Index tap = kernel; tap-- > 0;) {
    const Index at = first + pad - tap * dilation;
    if (at % stride == 0) taps.add(tap, at / stride);
  }
}

// --- the plan of a group of channels, the same for all: phases with their tables; and its weights -------------------

struct Floats {
  float* next;
  template <class T>
  T* take(Index count) {
    T* here = reinterpret_cast<T*>(next);
    next += round_up(count, 16);
    return here;
  }
};

constexpr Index most_phases = 16;

struct Plan {
  Phase phase[most_phases];
  Index phases = 0;
};

Index tables_floats(const Convolution& c) {
  const Index taps = 2 * (round_up(c.kernel_h, 16) + round_up(c.kernel_w, 16));
  const Index cells = c.kernel_h * c.kernel_w, offsets = round_up(2 * cells, 16);  // 8 bytes each
  return c.phases_h() * c.phases_w() * (taps + round_up(2 * c.out_width, 16) + offsets + round_up(cells, 16));
}

// Of a group's packed weights, every phase's on a cache line of their own.
Index weights_floats(const Convolution& c) {
  const Index weights = round_up(c.out_planes * c.in_planes * c.kernel_h * c.kernel_w, 16);
  return weights + c.phases_h() * c.phases_w() * 16;
}

Plan make_plan(const ConvShape& s, const Convolution& c, bool backward, float* tables) {
  Floats memory = {tables};
  Plan plan;
  Index weights = 0;
  for (Index a = 0; a < c.phases_h(); ++a) {
    for (Index b = 0; b < c.phases_w(); ++b) {
      Phase& p = plan.phase[plan.phases++];
      p.a = a;
      p.b = b;
      p.height = ceil_div(c.out_height - a, c.step_h);
      p.width = ceil_div(c.out_width - b, c.step_w);
      p.h.place = memory.take<int32_t>(s.R);
      p.h.cell = memory.take<int32_t>(s.R);
      p.w.place = memory.take<int32_t>(s.S);
      p.w.cell = memory.take<int32_t>(s.S);
      if (backward) {
        find_backward_taps(a, s.R, s.dilation_h, s.pad_top, s.stride_h, p.h);
        find_backward_taps(b, s.S, s.dilation_w, s.pad_left, s.stride_w, p.w);
      } else {
        find_forward_taps(s.R, s.dilation_h, s.pad_top, p.h);
        find_forward_taps(s.S, s.dilation_w, s.pad_left, p.w);
      }
      p.joined = p.w.highest - p.w.lowest + 1 == p.w.count;
      p.inside = memory.take<int32_t>(2 * p.width);
      for (Index j = 0; j < p.width; ++j) {
        Index first, last;
        p.w.inside(j * c.stride_w, c.in_width, first, last);
        p.inside[2 * j] = static_cast<int32_t>(first);
        p.inside[2 * j + 1] = static_cast<int32_t>(last);
      }
      p.offset = memory.take<std::int64_t>(2 * p.taps());
      p.place = memory.take<int32_t>(p.taps());
      p.weights = weights;
      weights += round_up(c.out_planes * c.in_planes * p.taps(), 16);
      for (Index r = 0; r < p.h.count; ++r) {
        for (Index t = 0; t < p.w.count; ++t) {
          p.offset[r * p.w.count + t] = p.h.cell[r] * c.in_row() + p.w.cell[t] * c.in_planes * lanes();
          p.place[r * p.w.count + t] = static_cast<int32_t>(p.h.place[r] * c.kernel_w + p.w.place[t]);
        }
      }
    }
  }
  return plan;
}

// Every phase's weights of a group, (out plane) x (tap row, tap column, in plane), packed; the weight of output k,
// input c and tap t at weight + k * out_stride + c * in_stride + t.
void pack_weights(const Convolution& c, const Plan& plan, const float* weight, Index out_stride, Index in_stride,
                  float* packed) {
  const Index cells = c.kernel_h * c.kernel_w, tiles = ceil_div(c.out_planes, Index{kernels().gemm_mr});
  for (Index i = 0; i < plan.phases; ++i) {
    const Phase& p = plan.phase[i];
    float* to = packed + p.weights;
    if (cells == 1) {  // strides that pack_a is quicker with
      kernels().pack_a(weight, out_stride, in_stride, c.out_planes, c.in_planes * p.taps(), to);
      continue;
    }
    const double work = 4.0 * static_cast<double>(c.in_planes * p.taps()) * kernels().gemm_mr;
    parallel_for(tiles, grain_for(work), [&](Index begin, Index end) {
      kernels().lane_pack_weight(weight, out_stride, in_stride, c.out_planes, c.in_planes, p.taps(), p.place, begin,
                                 end, to);
    });
  }
}

// --- one strip -------------------------------------------------------------------------------------------------------

// Of a group of channels.
struct Operands {
  const float* in;
  Index in_image_stride;
  float* out;
  Index out_image_stride;
  const float* packed;  // weights
  const float* bias;
  Activation activation;
};

// A strip's rows of a group of images in lanes: `in` from input row `top`, `out` from output row `first`.
struct LaneRows {
  const float* in;
  Index top;
  float* out;
  Index first;
};

// Rows [i0, i1) of each phase.
void multiply_rows(const Convolution& c, const Plan& plan, const Strips& strips, const Operands& operands,
                   const LaneRows& lane_rows, Index i0, Index i1) {
  for (Index i = 0; i < plan.phases; ++i) {
    const Phase& p = plan.phase[i];
    LaneProduct product = {};
    product.rows = c.out_planes;
    product.weight = operands.packed + p.weights;
    product.bias = operands.bias;
    product.relu = is_fused(operands.activation);
    product.channels = c.in_planes;
    product.taps_h = p.h.count;
    product.taps_w = p.w.count;
    product.offset = p.offset;
    product.joined = p.joined;
    product.step = c.stride_w * c.in_planes * lanes();
    product.out_step = c.step_w * c.out_planes * lanes();
    for (Index row = i0; row < std::min(i1, p.height); ++row) {
      p.h.inside(row * c.stride_h, c.in_height, product.first_row, product.last_row);
      const float* cells = lane_rows.in + (row * c.stride_h - lane_rows.top) * c.in_row();
      float* out =
          lane_rows.out + (p.a + row * c.step_h - lane_rows.first) * c.out_row() + p.b * c.out_planes * lanes();
      for (Index j = 0; j < p.width; j += strips.columns) {
        product.inside = p.inside + 2 * j;
        product.cells = cells + j * product.step;
        product.out = out + j * product.out_step;
        product.width = std::min(strips.columns, p.width - j);
        kernels().lane_product(&product);
      }
    }
  }
}

// Of images that are not in lanes: turns the cells that rows [i0, i1) of group n0 / lanes() read, and the outputs back.
void turn_and_multiply(const Convolution& c, const Plan& plan, const Strips& strips, const Operands& operands, Index n0,
                       Index i0, Index i1) {
  float* cells = thread_scratch(Scratch::pack, static_cast<std::size_t>(strips.in_floats));
  float* outputs = thread_scratch(Scratch::tile, static_cast<std::size_t>(strips.out_floats));
  const Index in_size = c.in_height * c.in_width, out_size = c.out_height * c.out_width;
  Index top = c.in_height, bottom = 0;
  for (Index i = 0; i < plan.phases; ++i) {
    if (plan.phase[i].h.count == 0) continue;
    top = std::min(top, i0 * c.stride_h + plan.phase[i].h.lowest);
    bottom = std::max(bottom, (i1 - 1) * c.stride_h + plan.phase[i].h.highest + 1);
  }
  top = std::max<Index>(top, 0);
  bottom = std::min(bottom, c.in_height);
  const Index count = std::min(lanes(), c.images - n0), in_step = c.in_planes * lanes();
  for (Index k = 0; k < c.in_planes && top < bottom; ++k) {
    const float* from = operands.in + n0 * operands.in_image_stride + k * in_size + top * c.in_width;
    const Index here = (bottom - top) * c.in_width;
    if (k + 1 < c.in_planes) prefetch(count, here, from + in_size, operands.in_image_stride, false);
    turn_cells(count, here, from, operands.in_image_stride, cells + k * lanes(), in_step);
  }
  const Index first = i0 * c.step_h;
  multiply_rows(c, plan, strips, operands, {cells, top, outputs, first}, i0, i1);
  const Index made = (std::min(i1 * c.step_h, c.out_height) - first) * c.out_width;
  for (Index k = 0; k < c.out_planes; ++k) {
    float* to = operands.out + n0 * operands.out_image_stride + k * out_size + first * c.out_width;
    if (k + 1 < c.out_planes) prefetch(count, made, to + out_size, operands.out_image_stride, true);
    kernels().transpose(outputs + k * lanes(), c.out_planes * lanes(), made, count, to, operands.out_image_stride, 0);
    apply_unfused(operands.activation, count, made, to, operands.out_image_stride);
  }
}

// Of images in lanes.
void multiply_in_place(const Convolution& c, const Plan& plan, const Strips& strips, const Operands& operands, Index n0,
                       Index i0, Index i1) {
  const float* in = operands.in + n0 * operands.in_image_stride;
  float* out = operands.out + n0 * operands.out_image_stride;
  multiply_rows(c, plan, strips, operands, {in, 0, out, 0}, i0, i1);
  const Index first = i0 * c.step_h, last = std::min(i1 * c.step_h, c.out_height);
  apply_unfused(operands.activation, 1, (last - first) * c.out_row(), out + first * c.out_row(), 0);
}

// One group of channels.
void convolve(const ConvShape& s, const Convolution& c, const Plan& plan, const Operands& operands) {
  const Strips strips(s, c);
  const double work = static_cast<double>(lanes() * strips.rows * c.step_h * c.out_width) *
                      static_cast<double>(c.in_planes * c.out_planes * c.kernel_h * c.kernel_w) /
                      static_cast<double>(c.step_h * c.step_w);
  parallel_for(strips.groups * strips.count, product_grain(work), [&](Index begin, Index end) {
    for (Index task = begin; task < end; ++task) {
      const Index n0 = task / strips.count * lanes(), i0 = task % strips.count * strips.rows;
      const Index i1 = std::min(i0 + strips.rows, c.most_rows());
      (s.lanes ? multiply_in_place : turn_and_multiply)(c, plan, strips, operands, n0, i0, i1);
    }
  });
}

// Whether lanes are filled and a single row fits the cache.
bool applies(const ConvShape& s, const Convolution& c) {
  const Index row = c.in_rows(1, s.dilation_h) * c.in_row() + c.out_rows(1) * c.out_row();
  constexpr Index most_phases_turned = 4;
  return fills_lanes(s.N) && row <= lanes_cache && c.in_planes * s.R * s.S <= lanes_depth &&
         c.phases_h() * c.phases_w() <= most_phases_turned;
}

}  // namespace

bool lanes_can_multiply(Index depth, Index stride_h, Index stride_w) {
  return depth <= lanes_depth && stride_h * stride_w <= most_phases;
}

bool lanes_forward_applies(const ConvShape& s) { return s.lanes ? s.groups == 1 : applies(s, forward_of(s)); }
bool lanes_backward_data_applies(const ConvShape& s) { return s.lanes ? s.groups == 1 : applies(s, backward_of(s)); }

bool lanes_forward_wins(const ConvShape& s) {
  const Index taps = s.R * s.S, depth = s.C / s.groups * taps;
  const bool enough = taps >= many_taps && (s.C >= 8 * s.groups || !turning_is_cheap());
  const bool pays = turning_is_cheap() ? depth >= 32 : packs_more_than_turns(s, is_strided(s) ? 1.25 : 3);
  return taps >= some_taps && pays && (is_strided(s) || enough || is_cached(s)) && applies(s, forward_of(s));
}

bool lanes_backward_data_wins(const ConvShape& s) {
  const Index taps = s.R * s.S, C = s.C / s.groups, K = s.K / s.groups;
  // Products for what turning the errors costs.
  const bool enough = taps >= many_taps && (C >= 8 || K <= 16);
  const bool pays = turning_is_cheap() || is_strided(s) || enough || is_cached(s);
  // Of fewer channels too few sums are in flight.
  return taps >= some_taps && pays && (C >= 4 || K <= 8 * C) && applies(s, backward_of(s));
}

std::size_t lanes_packed(const ConvShape& s) {
  return static_cast<std::size_t>(s.groups * weights_floats(forward_of(s)));
}

std::size_t lanes_forward_workspace(const ConvShape& s) {
  return static_cast<std::size_t>(tables_floats(forward_of(s)));
}
std::size_t lanes_backward_data_workspace(const ConvShape& s) {
  const Convolution c = backward_of(s);
  return static_cast<std::size_t>(tables_floats(c) + weights_floats(c));
}

void lanes_pack(const ConvShape& s, const float* weight, float* packed) {
  const Convolution c = forward_of(s);
  const Index cells = s.R * s.S, filter = c.in_planes * cells;
  const Plan plan = make_plan(s, c, false, thread_scratch(Scratch::tile, static_cast<std::size_t>(tables_floats(c))));
  for (Index g = 0; g < s.groups; ++g)
    pack_weights(c, plan, weight + g * c.out_planes * filter, filter, cells, packed + g * weights_floats(c));
}

void lanes_forward(const ConvShape& s, const float* x, const float* packed, const float* bias, float* y,
                   Activation activation, float* workspace) {
  const Convolution c = forward_of(s);
  const Plan plan = make_plan(s, c, false, workspace);
  const Index input = s.H * s.W, output = s.P * s.Q;
  for (Index g = 0; g < s.groups; ++g) {
    convolve(s, c, plan,
             {x + g * c.in_planes * input, s.C * input, y + g * c.out_planes * output, s.K * output,
              packed + g * weights_floats(c), bias ? bias + g * c.out_planes : nullptr, activation});
  }
}

void lanes_backward_data(const ConvShape& s, const float* dy, const float* weight, float* dx, float* workspace) {
  const Convolution c = backward_of(s);
  const Plan plan = make_plan(s, c, true, workspace);
  float* packed = workspace + tables_floats(c);
  const Index input = s.H * s.W, output = s.P * s.Q, cells = s.R * s.S, filter = c.out_planes * cells;
  for (Index g = 0; g < s.groups; ++g) {
    pack_weights(c, plan, weight + g * c.in_planes * filter, cells, filter, packed);
    convolve(
        s, c, plan,
        {dy + g * c.in_planes * output, s.K * output, dx + g * c.out_planes * input, s.C * input, packed, nullptr, {}});
  }
}

}  // namespace deepnet
