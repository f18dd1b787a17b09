// Softmax p_i = e^(x_i) / sum_j e^(x_j), its logarithm, and their Jacobian products, along rows of `length` elements:
//   softmax      dx_i = p_i (dy_i - sum_j p_j dy_j)
//   log softmax  dx_i = dy_i - p_i sum_j dy_j
// Backward works from x: what forward has made is the caller's, and keeping a copy takes longer than the exponentials.
// stride == 1: `count` rows, one after the other. stride > 1: `count` rows whose elements lie side by side, element
// (row, i) at i * stride + row. y may be x, dx may be dy. The row's largest element is subtracted first, so nothing
// overflows; a row that holds NaN or +infinity, or only -infinity, becomes NaN, as in PyTorch.
namespace {

inline void softmax_row(int64_t length, const float* x, float* y, int logarithm) {
  const float largest_x = row_max(length, x);
  if (logarithm) {
    const float log_sum = log_of(row_exp(length, largest_x, x, nullptr));
    map(length, x, y, [=](vf v) { return (v - largest_x) - log_sum; });
  } else {
    const float inverse = 1.0f / row_exp(length, largest_x, x, y);
    map(length, y, y, [=](vf v) { return v * inverse; });
  }
}

// Up to W rows at once, one a lane.
inline void softmax_lanes(int64_t length, int64_t stride, int64_t lanes, const float* x, float* y, int logarithm) {
  vf largest_x = broadcast(-infinity), sum{};
  for (int64_t i = 0; i < length; ++i) largest_x = maximum(largest_x, load_first(x + i * stride, lanes));
  for (int64_t i = 0; i < length; ++i) {
    const vf e = vexp_to_zero(load_first(x + i * stride, lanes) - largest_x);
    if (!logarithm) store_first(y + i * stride, lanes, e);
    sum += e;
  }
  const vf last = logarithm ? vlog(sum) : 1.0f / sum;
  for (int64_t i = 0; i < length; ++i) {
    const vf result =
        logarithm ? (load_first(x + i * stride, lanes) - largest_x) - last : load_first(y + i * stride, lanes) * last;
    store_first(y + i * stride, lanes, result);
  }
}

void softmax(int64_t length, int64_t stride, int64_t count, const float* x, float* y, int logarithm) {
  if (stride == 1) {
    for (int64_t r = 0; r < count; ++r) softmax_row(length, x + r * length, y + r * length, logarithm);
  } else {
    for (int64_t r = 0; r < count; r += W) softmax_lanes(length, stride, count - r, x + r, y + r, logarithm);
  }
}

// e^(x - max x) again, which dx holds between the two passes unless it is dy. The second pass, which has less to do,
// fetches the next row.
inline void softmax_row_backward(int64_t length, const float* x, const float* dy, float* dx, int logarithm) {
  const float largest_x = row_max(length, x);
  const bool keeps = dx != dy;
  const auto exponential = [=](int64_t i, int64_t lanes) {
    return fill_from(lanes, 0.0f, vexp_to_zero(load_first(x + i, lanes) - largest_x));
  };
  vf total{}, s{};
  for_vectors(length, [&](int64_t i, int64_t lanes) {
    const vf e = exponential(i, lanes), d = load_first(dy + i, lanes);
    total += e;
    s = logarithm ? s + d : e * d + s;
    if (keeps) store_first(dx + i, lanes, e);
  });
  const float inverse = 1.0f / sum_lanes(total), sum = logarithm ? sum_lanes(s) : sum_lanes(s) * inverse;
  for_vectors(length, [&](int64_t i, int64_t lanes) {
    __builtin_prefetch(x + i + length);
    __builtin_prefetch(dy + i + length);
    const vf p = (keeps ? load_first(dx + i, lanes) : exponential(i, lanes)) * inverse;
    const vf d = load_first(dy + i, lanes);
    store_first(dx + i, lanes, logarithm ? d - p * sum : p * (d - sum));
  });
}

inline void softmax_lanes_backward(int64_t length, int64_t stride, int64_t lanes, const float* x, const float* dy,
                                   float* dx, int logarithm) {
  vf largest_x = broadcast(-infinity), total{}, s{};
  for (int64_t i = 0; i < length; ++i) largest_x = maximum(largest_x, load_first(x + i * stride, lanes));
  for (int64_t i = 0; i < length; ++i) {
    const vf e = vexp_to_zero(load_first(x + i * stride, lanes) - largest_x), d = load_first(dy + i * stride, lanes);
    total += e;
    s = logarithm ? s + d : e * d + s;
  }
  const vf inverse = 1.0f / total, sum = logarithm ? s : s * inverse;
  for (int64_t i = 0; i < length; ++i) {
    const vf p = vexp_to_zero(load_first(x + i * stride, lanes) - largest_x) * inverse,
             d = load_first(dy + i * stride, lanes);
    store_first(dx + i * stride, lanes, logarithm ? d - p * sum : p * (d - sum));
  }
}

void softmax_backward(int64_t length, int64_t stride, int64_t count, const float* x, const float* dy, float* dx,
                      int logarithm) {
  if (stride == 1) {
    for (int64_t r = 0; r < count; ++r)
      softmax_row_backward(length, x + r * length, dy + r * length, dx + r * length, logarithm);
  } else {
    for (int64_t r = 0; r < count; r += W)
      softmax_lanes_backward(length, stride, count - r, x + r, dy + r, dx + r, logarithm);
  }
}

}  // namespace
