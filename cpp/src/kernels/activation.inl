// Element-wise nonlinearities y = f(x) and their derivatives, dx = f'(x) dy; n elements. y may be x, dx may be dy or
// saved.
//
// f' is written in terms of y wherever y determines it, so that a layer's input need not be kept: `saved` is y, but x
// for gelu and silu, which are not monotonic, and for leaky_relu and elu with a parameter < 0, for the same reason.
// At a kink the derivative is PyTorch's: relu'(0) = 0, leaky_relu'(0) = slope, elu'(0) = alpha.
namespace {

// One loop with a masked last turn: an element comes out the same wherever it stands. Two loops were no faster.
template <class F>
inline void map(int64_t n, const float* x, float* y, F f) {
  for (int64_t i = 0; i < n; i += W) store_first(y + i, n - i, f(load_first(x + i, n - i)));
}
template <class F>
inline void map(int64_t n, const float* a, const float* b, float* y, F f) {
  for (int64_t i = 0; i < n; i += W) store_first(y + i, n - i, f(load_first(a + i, n - i), load_first(b + i, n - i)));
}

// Finite, so that a product with 0 is 0, and far beyond where any f bends. NaN stays.
inline vf finite_below(vf x) { return maximum(broadcast(-1e30f), x); }
inline vf finite_above(vf x) { return minimum(broadcast(1e30f), x); }

// x Phi(x) = max(x, 0) - |x| Phi(-|x|), without cancellation on either side.
inline vf gelu_anywhere(vf x) {
  const NormalTail tail = normal_tail(x);
  return maximum(vf{}, x) - (tail.distance * tail.ratio) * tail.gauss;
}
inline vf gelu(vf x) {
  if constexpr (has_fast_lookup) {
    const vf a = absolute(x), numbered = number_tail(a);
    const vf y = maximum(vf{}, x) - a * evaluate(normal_tail_segments, a, numbered);
    return beyond_segments(x, numbered, y, gelu_anywhere);
  }
  return gelu_anywhere(x);
}

// Phi(x) + x phi(x); for x < 0 it is -bend, and gelu'(-x) = 1 - gelu'(x).
inline vf gelu_derivative_of_bend(vf x, vf bend) { return select(x < 0.0f, -bend, 1.0f + bend); }
inline vf gelu_derivative_anywhere(vf x) {
  constexpr float inverse_sqrt_2pi = 0.398942280f;
  const NormalTail tail = normal_tail(x);
  return gelu_derivative_of_bend(x, (tail.distance * inverse_sqrt_2pi - tail.ratio) * tail.gauss);
}
inline vf gelu_derivative(vf x) {
  if constexpr (has_fast_lookup) {
    const vf a = absolute(x), numbered = number_tail(a);
    const vf y = gelu_derivative_of_bend(x, evaluate(gelu_bend_segments, a, numbered));
    return beyond_segments(x, numbered, y, gelu_derivative_anywhere);
  }
  return gelu_derivative_anywhere(x);
}

inline vf silu(vf x) { return finite_below(x) * vsigmoid(x); }

inline vf silu_derivative(vf x) {
  const vf s = vsigmoid(x);
  return s * (finite_below(finite_above(x)) * (1.0f - s) + 1.0f);
}

// Softplus sharpened by beta, log(1 + e^(beta x)) / beta. 1 / beta in two parts makes one rounding of the division.
inline void softplus_forward(float beta, int64_t n, const float* x, float* y) {
  if (beta == 1.0f) return map(n, x, y, [](vf v) { return vsoftplus(v); });
  constexpr float linear_from = 20.0f;  // beta x above which the logarithm adds less than half an ulp
  const double inverse = 1.0 / (double)beta;
  const float high = (float)inverse, low = (float)(inverse - (double)high);
  map(n, x, y, [=](vf v) {
    const vf z = v * beta, s = vsoftplus(z);
    return select(z > linear_from, v, s * low + s * high);
  });
}

void activation_forward(int kind, float parameter, int64_t n, const float* x, float* y) {
  switch (kind) {
    case kActRelu:  // not a maximum: NaN must come out
      return map(n, x, y, [](vf v) { return select(v < 0.0f, vf{}, v); });
    case kActSigmoid:
      return map(n, x, y, [](vf v) { return vsigmoid(v); });
    case kActTanh:
      return map(n, x, y, [](vf v) { return vtanh(v); });
    case kActSoftplus:
      return softplus_forward(parameter, n, x, y);
    case kActLeakyRelu:
      return map(n, x, y, [=](vf v) { return select(v > 0.0f, v, v * parameter); });
    case kActElu:
      return map(n, x, y, [=](vf v) { return select(v > 0.0f, v, vexpm1_nonpositive(v) * parameter); });
    case kActGelu:
      return map(n, x, y, [](vf v) { return gelu(v); });
    case kActSilu:
      return map(n, x, y, [](vf v) { return silu(v); });
    default:
      return map(n, x, y, [](vf v) { return v; });
  }
}

// alpha e^x below 0, which is y + alpha where y is known; see the top for alpha < 0.
inline void elu_backward(float alpha, int64_t n, const float* saved, const float* dy, float* dx) {
  if (alpha < 0.0f)
    return map(n, saved, dy, dx, [=](vf x, vf d) { return select(x > 0.0f, d, d * (vexp(x) * alpha)); });
  map(n, saved, dy, dx, [=](vf y, vf d) { return select(y > 0.0f, d, d * (y + alpha)); });
}

void activation_backward(int kind, float parameter, int64_t n, const float* saved, const float* dy, float* dx) {
  switch (kind) {
    case kActRelu:
      return map(n, saved, dy, dx, [](vf y, vf d) { return select(y <= 0.0f, vf{}, d); });
    case kActSigmoid:
      return map(n, saved, dy, dx, [](vf y, vf d) { return d * (y * (1.0f - y)); });
    case kActTanh:
      return map(n, saved, dy, dx, [](vf y, vf d) { return d * ((1.0f - y) * (1.0f + y)); });
    case kActSoftplus:  // sigmoid(beta x) = 1 - e^(-beta y)
      return map(n, saved, dy, dx, [=](vf y, vf d) { return d * -vexpm1_nonpositive(y * -parameter); });
    case kActLeakyRelu:  // by the sign of x, which is y's unless the slope is negative; then saved is x
      return map(n, saved, dy, dx, [=](vf s, vf d) { return select(s > 0.0f, d, d * parameter); });
    case kActElu:
      return elu_backward(parameter, n, saved, dy, dx);
    case kActGelu:
      return map(n, saved, dy, dx, [](vf x, vf d) { return d * gelu_derivative(x); });
    case kActSilu:
      return map(n, saved, dy, dx, [](vf x, vf d) { return d * silu_derivative(x); });
    default:
      return map(n, dy, dx, [](vf d) { return d; });
  }
}

}  // namespace
