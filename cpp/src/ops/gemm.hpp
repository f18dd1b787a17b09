// Matrix products over threads: blocked for the caches, kernels inside.
#pragma once

#include <deepnet/layer.hpp>
#include <deepnet/tensor.hpp>

namespace deepnet {

/// A matrix in memory: element (i, j) at data[i * row_stride + j * col_stride].
struct MatrixView {
  const float* data;
  Index row_stride, col_stride;
  MatrixView transposed() const { return {data, col_stride, row_stride}; }
};

struct GemmEpilogue {
  const float* bias_col = nullptr;  ///< n values, one a column
  bool accumulate = false;          ///< add to C
  Activation activation = {};       ///< applied to the finished C
};

/// Floats of workspace that gemm wants for these sizes.
std::size_t gemm_workspace(Index m, Index n, Index k);

/// C (m x n, rows ldc apart) = A (m x k) B (k x n), with the epilogue. Serial where the product is small.
void gemm(Index m, Index n, Index k, MatrixView a, MatrixView b, float* c, Index ldc, const GemmEpilogue& epilogue,
          float* workspace);

/// Depth of the blocks that k is cut into: a panel of B that deep (48 KB with 32 columns) comes from the first- and
/// second-level cache. 256 and 640 were 1 to 3 % slower on the convolutions of a VGG.
constexpr Index gemm_depth = 384;

inline Index round_up(Index n, Index multiple) { return (n + multiple - 1) / multiple * multiple; }

/// Cuts n items into the fewest equal pieces of at most `most`; returns the piece's size.
inline Index even_piece(Index n, Index most) {
  const Index pieces = (n + most - 1) / most;
  return pieces == 0 ? 1 : (n + pieces - 1) / pieces;
}

}  // namespace deepnet
