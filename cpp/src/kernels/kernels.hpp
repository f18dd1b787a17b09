// The table of one ISA's kernels, made from kernels.def. Plain structs only: this file is compiled into
// every ISA's object, where an inline function could leak instructions that the machine lacks.
#pragma once

#include <stddef.h>
#include <stdint.h>

// Element-wise nonlinearities, numbered as deepnet::ActivationKind.
enum KernelActivation {
  kActNone,
  kActRelu,
  kActSigmoid,
  kActTanh,
  kActSoftplus,
  kActLeakyRelu,
  kActElu,
  kActGelu,
  kActSilu
};

// Longest row of the unpacked left operand of gemm_row_runs, and the fixed distance between its rows: a constant, so
// that every row is one base register and a displacement; not a power of two, so that rows do not share cache sets.
enum { kRowRun = 256, kRowRunStride = 272 };

// Largest k of gemm_small.
enum { kSmallDepth = 128 };

// Most taps of a kernel that depthwise and depthwise_weight take.
enum { kDepthwiseTaps = 64 };

// Floats of a cache line.
enum { kCacheLine = 16 };

// Rows of cache lines, `stride` floats apart.
struct CacheLines {
  const float* from;
  int64_t rows, stride, lines;
};

// C (m x n) = A B [+ C] [+ bias] [relu], A and B packed by pack_a and pack_b where the kernel does not say otherwise;
// see gemm.inl.
struct GemmBlock {
  int64_t m, n, k;
  const float* a;  // pack_a's, m rows
  const float* b;  // pack_b's, n columns
  float* c;        // row i at c + i * ldc
  int64_t ldc;
  const float* bias_row;  // m values, added along rows; or null
  const float* bias_col;  // n values, added along columns; or null
  int accumulate;         // add to C instead of overwriting it
  int relu;
  CacheLines ahead[2];  // what is read next, some of which is asked for between tiles
};

// A vector a (k) times the rows of b, ldb apart; bias, one value a row of b, may be null.
struct GemvTerm {
  const float* a;
  const float* b;
  int64_t ldb, k;
  const float* bias;
};

// The column matrix of a convolution over images that hold a cell for every tap of every output pixel; see conv.inl.
struct ColumnGather {
  const float* image;
  int64_t image_stride, channel_stride, width;  // floats from one image, channel, and row of outputs to the next
  int64_t out_height, out_width;                // P, Q
  int64_t taps;                                 // kernel cells; column rows are ordered (c, t)
  const int64_t* tap;                           // from an output's place to the cell that the tap reads
};

// Every step-th cell of a plane, zeros where there is none: out[i, j] = image[h0 + i * step_h, w0 + j * step_w].
struct PhaseCopy {
  const float* image;
  int64_t height, width;  // of the image
  int64_t h0, w0, step_h, step_w;
  int64_t rows, columns;  // of out
};

// A convolution as it meets images as they lie: which input cell a tap of the kernel reads for output pixel (p, q):
//   h = p * stride_h + tap_h[t],  w = q * stride_w + tap_w[t]
// Forward, and each phase of dE/dx, are instances; see conv.inl.
struct ConvGather {
  const float* image;                    // input, (N, C, H, W)
  int64_t image_stride, channel_stride;  // floats from one image, and channel, to the next
  int64_t height, width;                 // H, W
  int64_t out_height, out_width;         // P, Q
  int64_t stride_h, stride_w;
  int64_t taps;  // kernel cells; column rows are ordered (c, t)
  const int32_t* tap_h;
  const int32_t* tap_w;
  // Of images in lanes (lanes.inl), for winograd.inl and lane_depthwise.inl, the floats from one cell to the next; else
  // 0. `image_stride` is then from one group of images to the next, and pixels are numbered (group, p, q, lane).
  int64_t cell_stride;
};

// Winograd's F(T x T, R x R): tiles of `outputs` x `outputs` pixels of a convolution with kernels of `taps` x `taps`;
// see winograd.inl for those there are.
struct WinogradTile {
  int outputs, taps;
};

// A row of outputs of a convolution on images in lanes, (height, width, channels, vector_width); see lanes.inl.
struct LaneProduct {
  int64_t rows;         // channels of the output
  const float* weight;  // rows x (tap row, tap column, channel), packed by pack_a
  const float* bias;    // one a row; or null
  int relu;
  int64_t channels, taps_h, taps_w;
  int64_t first_row, last_row;  // tap rows inside the image: [first_row, last_row)
  const int32_t* inside;        // of every output the tap columns inside, first and behind the last
  const float* cells;  // tap (r, s) of the first output reads `channels` vectors at cells + offset[r * taps_w + s]
  const int64_t* offset;
  int joined;     // one tap's vectors begin where the last one's end, along a row
  int64_t step;   // from one output's cells to the next one's
  int64_t width;  // outputs
  float* out;     // row k of the first output at out + k * vector_width
  int64_t out_step;
};

// Gradients of the weights that a run of cells meets, from one group of images in lanes.
struct LaneWeights {
  int64_t rows;  // vectors of the run
  int64_t filters;
  const float* errors;  // dE/dy packed by pack_b: row (output, image), column filter, `depth` deep
  int64_t depth, error_row_step;
  int64_t height, width;
  const float* cells;  // of row i and output (p, q) at cells + p * row_step + q * step + i * vector_width
  int64_t row_step, step;
  float* sums;  // rows x filters
  int accumulate;
};

struct Pool2dShape {
  int64_t height, width;          // H, W
  int64_t out_height, out_width;  // P, Q
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
};

// One step of a recurrent cell on `rows` sequences of `width` features; strides are from one sequence to the next, and
// `width` where there is none. See recurrent.inl.
struct CellForward {
  int64_t rows, width;
  float* gates;  // sums of the matrix products in, gates out
  int64_t gate_stride;
  const float* h_before;
  float* h;
  int64_t h_stride;
  const float* c_before;  // LSTM only
  float* c;
  float* y;  // the layer's output, or null
  int64_t y_stride;
  const float* mask;  // one value a sequence, 0 where this step is padding; or null
  int64_t mask_stride;
};

struct CellBackward {
  int64_t rows, width;
  const float* gates;  // not looked at by an RNN
  int64_t gate_stride;
  const float* h_before;
  const float* h;
  int64_t h_stride;
  const float* c_before;  // LSTM only
  const float* dy;        // or null
  int64_t dy_stride;
  const float* mask;
  int64_t mask_stride;
  float* dh;  // of the steps behind in; of h_before out, less d_gates W_hh
  float* dc;
  float* d_gates;  // dE/d(sums)
  int64_t d_gate_stride;
};

struct SgdStep {
  float lr, momentum, weight_decay;
  int nesterov;
};

struct AdamStep {
  float keep;                             // factor of the weights: decay apart from the gradient
  float weight_decay;                     // decay as a part of the gradient
  float mean_share, beta2, square_share;  // 1 - beta1, beta2, 1 - beta2
  float step_size, root_scale, eps;       // lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t)
};

struct RmspropStep {
  float lr, alpha, share, eps, weight_decay, momentum;  // share = 1 - alpha
};

struct KernelTable {
  const char* name;
  int32_t vector_width;      // floats in a vector
  int32_t gemm_mr;           // most rows of a micro-tile
  int32_t gemm_nr;           // columns of a micro-tile, and of pack_b's panels
  int32_t streaming_stores;  // whether stream() goes past the caches
#define DEEPNET_KERNEL(result, name, arguments) result(*name) arguments;
#include "kernels.def"
#undef DEEPNET_KERNEL
};
