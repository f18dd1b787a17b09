#include "mask.hpp"

#include <deepnet/error.hpp>
#include <deepnet/model.hpp>

#include "../dispatch.hpp"

namespace deepnet {

void check_mask_shape(const std::string& who, const Shape& x, const Tensor& mask) {
  if (mask.dtype() != DType::float32) throw TypeError("[" + who + "] expected a mask of type float32, got int64");
  if (x.rank() < 2) {
    throw ShapeError("[" + who + "] expected an input of shape (N, T, ...) beside a mask or lengths, got " + x.str());
  }
  const Shape expected = {x[0], x[1]};
  if (mask.shape() != expected) {
    throw ShapeError("[" + who + "] expected a mask of shape (N, T) = " + expected.str() + " for input of shape " +
                     x.str() + ", got " + mask.shape().str());
  }
}

void check_mask(const std::string& who, const Shape& x, const Tensor& mask) {
  check_mask_shape(who, x, mask);
  for (Index i = 0; i < mask.size(); ++i) {
    const float value = mask.data()[i];
    if (value == 0.0f || value == 1.0f) continue;
    throw ValueError("[" + who + "] expected a mask of 0 and 1, got " + std::to_string(value) + " at [" +
                     std::to_string(i / x[1]) + ", " + std::to_string(i % x[1]) + "]");
  }
}

Tensor mask_of_lengths(const std::string& who, const Tensor& lengths, Index rows, Index steps) {
  if (lengths.dtype() != DType::int64) throw TypeError("[" + who + "] expected lengths of integers, got floats");
  if (lengths.shape() != Shape{rows}) {
    throw ShapeError("[" + who + "] expected " + std::to_string(rows) + " lengths, one a sequence, got shape " +
                     lengths.shape().str());
  }
  Tensor mask = Tensor::zeros({rows, steps});
  for (Index n = 0; n < rows; ++n) {
    const Index length = lengths.labels()[n];
    if (length < 1 || length > steps) {
      throw ValueError("[" + who + "] expected lengths in 1 to T = " + std::to_string(steps) + ", got " +
                       std::to_string(length) + " at position " + std::to_string(n));
    }
    for (Index t = 0; t < length; ++t) mask.data()[n * steps + t] = 1.0f;
  }
  return mask;
}

Place first_nonfinite(const Tensor& values, const Tensor& mask) {
  const Shape& shape = values.shape();
  const float* data = values.data();
  const bool sequences = shape.rank() == 3;
  const bool masked = mask.defined() && sequences && mask.shape() == Shape{shape[0], shape[1]};
  const Index rows = shape.rank() > 0 ? shape[0] : 1;
  const Index features = sequences ? shape[2] : (rows > 0 ? values.size() / rows : 0);
  for (Index i = 0; i < values.size();) {
    i += kernels().find_nonfinite(values.size() - i, data + i);
    if (i == values.size()) break;
    const Index item = i / features;  // a step of a sequence, or a row
    if (!masked || mask.data()[item] != 0.0f) {
      return sequences ? Place{item / shape[1], item % shape[1]} : Place{item, -1};
    }
    i = (item + 1) * features;
  }
  return {};
}

}  // namespace deepnet
