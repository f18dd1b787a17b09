// Matrix products over threads: blocked for the caches, kernels inside.
#pragma once

#include <deepnet/layer.hpp>
#include <deepnet/tensor.hpp>

#include "blocking.hpp"

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

}  // namespace deepnet
