// Products of a matrix with the column matrix of an image (kernels/conv.inl), which is packed as it is needed or, of a
// 1x1 convolution, read where it lies.
#pragma once

#include <deepnet/layer.hpp>

#include "../kernels/kernels.hpp"
#include "convolution.hpp"

namespace deepnet {

// The input cell that each tap of a kernel reads, from that of its output pixel; int32 kept in a float workspace.
struct Taps {
  int32_t *h, *w;
};
inline std::size_t taps_floats(const ConvShape& s) { return static_cast<std::size_t>(2 * s.R * s.S); }
Taps forward_taps(const ConvShape& shape, float* workspace);

/// Of the stride_h x stride_w phases of dE/dx, those that have a cell.
inline Index phases_h(const ConvShape& s) { return s.stride_h < s.H ? s.stride_h : s.H; }
inline Index phases_w(const ConvShape& s) { return s.stride_w < s.W ? s.stride_w : s.W; }

/// The taps of forward that reach the input cells (a + stride_h i, b + stride_w j), as offsets into dy, and where they
/// in the kernel, by rising offset. Returns how many.
Index phase_taps(const ConvShape& shape, Index a, Index b, const Taps& taps, Index* position);

/// The columns that forward multiplies with: those of x, of one group's channels.
ConvGather forward_gather(const ConvShape& shape, const float* x, const Taps& taps);

/// Rows of outputs whose cells follow each other without a gap (1x1 kernels), taken as one: vectors end with the image
/// only.
inline ColumnGather with_rows_joined(ColumnGather g) {
  if (g.width != g.out_width) return g;
  g.width = g.out_width *= g.out_height;
  g.out_height = 1;
  return g;
}

/// About what rows [row0, row1) of columns [j, j + n) are packed from; nothing beyond the last image.
CacheLines cells_of(const ColumnGather& gather, Index images, Index row0, Index row1, Index j, Index n);

// A (rows x depth) times a column matrix, written to the planes of an image. A is packed in blocks of k or, for few
// columns, as it lies, its rows a_stride apart.
struct ColumnProduct {
  ColumnGather gather;
  Index images, rows, depth;
  const float* packed_a = nullptr;
  const float* a = nullptr;
  Index a_stride = 0;
  Index row_blocks = 1;  // of an A that is not packed, each kept to one core
  const float* bias = nullptr;
  Activation activation = {};
  float* out;  // cell (0, 0) of plane 0 of image 0
  Index out_image_stride, out_plane_stride;
  Index out_width;               // of the whole plane
  Index step_h = 1, step_w = 1;  // from one pixel's cell to the next; out is already at the first
};

void multiply_columns(ColumnProduct product);

/// Whether A had better stay as it lies: where it meets so few columns that packing would take as long as the product.
bool few_columns(Index images, Index pixels, Index a_stride);

/// Blocks that the filters of forward are cut into, each of which a core keeps to: two where weights are more than the
/// cells of the images, so that not all tasks read all of them.
Index forward_row_blocks(const ConvShape& shape);

/// Packs a rows x depth matrix, rows row_stride apart, for ColumnProduct::packed_a.
void pack_blocks(const float* a, Index row_stride, Index rows, Index depth, float* packed);

}  // namespace deepnet
