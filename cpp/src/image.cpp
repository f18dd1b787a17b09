// The convolution of a kernel over an array, and the image-to-column matrix that defines a convolution layer.
#include <deepnet/image.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include <deepnet/error.hpp>

#include "parallel.hpp"

namespace deepnet::image {
namespace {

std::string pair_text(Size2 size) { return "(" + std::to_string(size.h) + ", " + std::to_string(size.w) + ")"; }

void check_float(const char* function, const Tensor& tensor) {
  if (tensor.dtype() != DType::float32) {
    throw TypeError("[" + std::string(function) + "] expected float32, got " + name_of(tensor.dtype()));
  }
}

const Shape& planes_of(const char* function, const Tensor& array) {
  check_float(function, array);
  if (array.shape().rank() < 2) {
    throw ShapeError("[" + std::string(function) + "] expected an array of shape (..., H, W), got " +
                     array.shape().str());
  }
  return array.shape();
}

}  // namespace

// g(x, y) = exp(-(x^2 + y^2) / (2 sigma^2)) / sum = h(x) h(y), so one axis is enough.
Tensor gaussian_kernel(Index size, double sigma) {
  constexpr Index most = 16383;
  if (size < 1 || size % 2 == 0 || size > most) {
    throw ValueError("[gaussian_kernel] expected an odd size from 1 to " + std::to_string(most) + ", got " +
                     std::to_string(size));
  }
  if (!(sigma > 0.0) || !std::isfinite(sigma)) {
    throw ValueError("[gaussian_kernel] expected a finite sigma > 0, got " + std::to_string(sigma));
  }
  std::vector<double> axis(static_cast<std::size_t>(size));
  double sum = 0.0;
  for (Index i = 0; i < size; ++i) {
    const double steps = static_cast<double>(i - size / 2) / sigma;
    sum += axis[i] = std::exp(-0.5 * steps * steps);
  }
  Tensor kernel({size, size});
  for (Index i = 0; i < size; ++i) {
    for (Index j = 0; j < size; ++j) kernel.data()[i * size + j] = static_cast<float>(axis[i] / sum * (axis[j] / sum));
  }
  return kernel;
}

// y[p,q] = sum_{r,s} k[r,s] x[p + r - top, q + s - left], zeros outside of x. One kernel cell at a time over a
// whole row, so that the inner loop is a vector's y += k x.
Tensor convolve(const Tensor& array, const Tensor& kernel, Padding padding) {
  const Shape& shape = planes_of("convolve", array);
  check_float("convolve", kernel);
  if (kernel.shape().rank() != 2 || kernel.size() == 0) {
    throw ShapeError("[convolve] expected a kernel of shape (R, S), R and S >= 1, got " + kernel.shape().str());
  }
  const Index H = shape[-2], W = shape[-1], R = kernel.shape()[0], S = kernel.shape()[1];
  const bool same = padding == Padding::same;
  if (!same && (R > H || S > W)) {
    throw ShapeError("[convolve] expected an array at least as large as the kernel " + kernel.shape().str() +
                     " with padding \"valid\", got " + shape.str());
  }
  const Index top = same ? (R - 1) / 2 : 0, left = same ? (S - 1) / 2 : 0;
  const Index P = same ? H : H - R + 1, Q = same ? W : W - S + 1;
  Shape out_shape = shape;
  out_shape[-2] = P;
  out_shape[-1] = Q;
  Tensor out = Tensor::zeros(out_shape);
  if (out.size() == 0) return out;
  const Index planes = shape.size(0, shape.rank() - 2);
  const float *x = array.data(), *k = kernel.data();
  const double work = static_cast<double>(R * S) * static_cast<double>(Q) / 4;
  const FlushDenormals flush;  // as on the other threads
  parallel_for(planes * P, grain_for(work), [&](Index begin, Index end) {
    for (Index row = begin; row < end; ++row) {
      const Index plane = row / P, p = row % P;
      float* y = out.data() + row * Q;
      for (Index r = std::max<Index>(0, top - p); r < std::min(R, H + top - p); ++r) {
        const float* x_row = x + (plane * H + p + r - top) * W;
        for (Index s = 0; s < S; ++s) {
          const float weight = k[r * S + s];
          const Index shift = s - left, last = std::min(Q, W - shift);
          for (Index q = std::max<Index>(0, -shift); q < last; ++q) y[q] += weight * x_row[q + shift];
        }
      }
    }
  });
  return out;
}

// Gx is [1, 2, 1] down the columns, then [-1, 0, 1] along the rows; Gy the reverse. So Gx and Gy are
// scipy.ndimage.sobel(a, axis=-1 and -2, mode="nearest") of a float64 array: in double the eight terms add up exactly.
std::pair<Tensor, Tensor> sobel(const Tensor& array) {
  const Shape& shape = planes_of("sobel", array);
  std::pair<Tensor, Tensor> result{Tensor(shape), Tensor(shape)};
  if (array.size() == 0) return result;
  const Index H = shape[-2], W = shape[-1];
  const float* x = array.data();
  float *magnitude = result.first.data(), *angle = result.second.data();
  const FlushDenormals flush;  // as on the other threads
  parallel_for(array.size() / W, grain_for(20.0 * static_cast<double>(W)), [&](Index begin, Index end) {
    // A row of both, with the cell before the first and the one after the last.
    std::vector<double> smooth(static_cast<std::size_t>(W + 2)), change(smooth.size());
    for (Index row = begin; row < end; ++row) {
      const float* here = x + row * W;
      const float* above = row % H == 0 ? here : here - W;
      const float* below = row % H == H - 1 ? here : here + W;
      for (Index w = 0; w < W; ++w) {
        smooth[w + 1] = double{above[w]} + 2.0 * double{here[w]} + double{below[w]};
        change[w + 1] = double{below[w]} - double{above[w]};
      }
      smooth[0] = smooth[1], smooth[W + 1] = smooth[W];
      change[0] = change[1], change[W + 1] = change[W];
      for (Index w = 0; w < W; ++w) {
        const double gx = smooth[w + 2] - smooth[w];
        const double gy = change[w] + 2.0 * change[w + 1] + change[w + 2];
        magnitude[row * W + w] = static_cast<float>(std::sqrt(gx * gx + gy * gy));
        angle[row * W + w] = std::atan2(static_cast<float>(gy), static_cast<float>(gx));
      }
    }
  });
  return result;
}

// --- columns of receptive fields ---------------------------------------------------------------------------------
// columns[n, (c, r, s), (p, q)] = x[n, c, p stride + r dilation - padding, q stride + s dilation - padding]

namespace {

struct Columns {
  Index N, C, H, W, P, Q;
  Size2 kernel, stride, padding, dilation;
};

Columns column_shape(const char* function, Shape image, Size2 kernel, Size2 stride, Size2 padding, Size2 dilation) {
  const auto check = [&](const char* name, Size2 size, Index least) {
    constexpr Index most = std::numeric_limits<std::int32_t>::max() / 4;
    if (size.h < least || size.w < least || size.h > most || size.w > most) {
      throw ValueError("[" + std::string(function) + "] expected " + name + " in " + std::to_string(least) + " ... " +
                       std::to_string(most) + ", got " + pair_text(size));
    }
  };
  check("kernel_size", kernel, 1);
  check("stride", stride, 1);
  check("padding", padding, 0);
  check("dilation", dilation, 1);
  check("image height and width", {image[2], image[3]}, 0);
  const Size2 padded(image[2] + 2 * padding.h, image[3] + 2 * padding.w);
  const Size2 extent(dilation.h * (kernel.h - 1) + 1, dilation.w * (kernel.w - 1) + 1);
  if (padded.h < extent.h || padded.w < extent.w) {
    throw ShapeError("[" + std::string(function) + "] expected a padded image of at least " + pair_text(extent) +
                     " for kernel_size " + pair_text(kernel) + " and dilation " + pair_text(dilation) + ", got " +
                     pair_text(padded) + " from image " + pair_text({image[2], image[3]}));
  }
  const Index P = (padded.h - extent.h) / stride.h + 1, Q = (padded.w - extent.w) / stride.w + 1;
  Shape{image[1], kernel.h, kernel.w, P, Q}.size();  // throws where it overflows
  Shape{image[0], image[1], kernel.h, kernel.w, P, Q}.size();
  return {image[0], image[1], image[2], image[3], P, Q, kernel, stride, padding, dilation};
}

// Calls fn(cell, column) with the flat position in x's plane and in a row of P Q columns of every pair that
// lies within the image, for kernel cell (r, s).
template <class Fn>
inline void for_taps(const Columns& c, Index r, Index s, Fn fn) {
  for (Index p = 0; p < c.P; ++p) {
    const Index h = p * c.stride.h + r * c.dilation.h - c.padding.h;
    if (h < 0 || h >= c.H) continue;
    const Index shift = s * c.dilation.w - c.padding.w;
    const Index first = shift < 0 ? (-shift + c.stride.w - 1) / c.stride.w : 0;
    const Index last = c.W > shift ? std::min(c.Q, (c.W - 1 - shift) / c.stride.w + 1) : 0;
    for (Index q = first; q < last; ++q) fn(h * c.W + q * c.stride.w + shift, p * c.Q + q);
  }
}

// Calls fn(first cell of the plane, first column of the row, r, s) for every plane (n, c), which share nothing, and
// tap.
template <class Fn>
void for_channels(const Columns& c, Fn fn) {
  const double work = static_cast<double>(c.kernel.h * c.kernel.w) * static_cast<double>(c.P * c.Q);
  const FlushDenormals flush;  // as on the other threads
  parallel_for(c.N * c.C, grain_for(work), [&](Index begin, Index end) {
    for (Index channel = begin; channel < end; ++channel) {
      for (Index tap = 0; tap < c.kernel.h * c.kernel.w; ++tap) {
        fn(channel * c.H * c.W, (channel * c.kernel.h * c.kernel.w + tap) * c.P * c.Q, tap / c.kernel.w,
           tap % c.kernel.w);
      }
    }
  });
}

}  // namespace

Tensor im2col(const Tensor& x, Size2 kernel_size, Size2 stride, Size2 padding, Size2 dilation) {
  check_float("im2col", x);
  if (x.shape().rank() != 4) {
    throw ShapeError("[im2col] expected input of shape (N, C, H, W), got " + x.shape().str());
  }
  const Columns c = column_shape("im2col", x.shape(), kernel_size, stride, padding, dilation);
  Tensor columns = Tensor::zeros({c.N, c.C * c.kernel.h * c.kernel.w, c.P * c.Q});
  for_channels(c, [&](Index plane, Index row, Index r, Index s) {
    const float* from = x.data() + plane;
    float* to = columns.data() + row;
    for_taps(c, r, s, [&](Index cell, Index column) { to[column] = from[cell]; });
  });
  return columns;
}

Tensor col2im(const Tensor& columns, Size2 output_size, Size2 kernel_size, Size2 stride, Size2 padding,
              Size2 dilation) {
  check_float("col2im", columns);
  const Shape& shape = columns.shape();
  const bool has_rank = shape.rank() == 3;
  const Shape image = {has_rank ? shape[0] : 0, 1, output_size.h, output_size.w};
  Columns c = column_shape("col2im", image, kernel_size, stride, padding, dilation);
  const Index taps = c.kernel.h * c.kernel.w;
  if (!has_rank || shape[1] % taps != 0 || shape[2] != c.P * c.Q) {
    throw ShapeError("[col2im] expected columns of shape (N, C * " + std::to_string(taps) + ", " +
                     std::to_string(c.P * c.Q) + "), got " + shape.str());
  }
  c.C = shape[1] / taps;
  Tensor x = Tensor::zeros({c.N, c.C, c.H, c.W});
  for_channels(c, [&](Index plane, Index row, Index r, Index s) {
    const float* from = columns.data() + row;
    float* to = x.data() + plane;
    for_taps(c, r, s, [&](Index cell, Index column) { to[cell] += from[column]; });
  });
  return x;
}

}  // namespace deepnet::image
