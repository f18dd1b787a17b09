// Elementary functions of vf.
//
// Reduction of exp and log after Cody and Waite, "Software Manual for the Elementary Functions" (1980): ln 2 in two
// parts, the upper one short enough for its products to be exact, so no fused multiply-add is needed for accuracy.
// Polynomials were fitted for this file: least squares at 600 Chebyshev nodes against 40-digit values, reweighted to
// equal ripple (Lawson 1961) in relative error; coefficients were then rounded to float one after the other, lowest
// first, refitting the rest. "fit" below is the largest relative error left by that, in exact arithmetic. The
// largest errors measured over all magnitudes, 13 million values, with and without fused multiply-add:
//   exp 1.1, expm1 1.0, log 0.9, log(1 + u) 1.5, sigmoid 1.7, tanh 1.3, softplus 1.7, |x| Phi(-|x|) 4.8 ulp;
// with the tables of segments.inl, of 14 million values,
//   sigmoid 1.5, tanh 1.6, softplus 1.4, x Phi(x) 4.0, its derivative 3.5 ulp, next to its zero too.
//
// NaN goes through. Subnormal inputs may count as zero and subnormal results may be zero.
namespace {

constexpr float infinity = __builtin_inff();
constexpr float largest = 0x1.fffffep127f;
constexpr float smallest_normal = 0x1p-126f;

// 355/512 and the rest of ln 2: n times the upper part is exact for |n| < 2^15.
constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;

// c0 + c1 x + c2 x^2 + ...
inline vf polynomial(vf x, float c0, float c1) { return x * c1 + c0; }
template <class... Floats>
inline vf polynomial(vf x, float c0, float c1, Floats... rest) {
  return polynomial(x, c1, rest...) * x + c0;
}

// x = n ln 2 + r, |r| <= ln(2) / 2. n comes as a float whose low bits hold it as an integer: adding 1.5 * 2^23 leaves
// no place for a fraction.
struct ExpReduction {
  vf r;
  vu n_bits;

  vu exponent() const { return n_bits << 23; }
  vf power() const { return (vf)(exponent() + 0x3f800000u); }  // 2^n where that is normal; times a NaN it stays one
};
inline ExpReduction reduce_exp(vf x) {
  constexpr float log2_e = 1.44269504f, rounder = 0x1.8p23f;
  const vf shifted = x * log2_e + rounder;
  const vf n = shifted - rounder;
  return {n * -ln2_low + (n * -ln2_high + x), (vu)shifted};
}

// e^r - 1 for |r| <= ln(2) / 2; fit 1.4e-8.
inline vf expm1_reduced(vf r) {
  const vf p = polynomial(r, 0.49999997f, 0.166665465f, 0.0416674353f, 0.00836626161f, 0.00138706574f);
  return (r * r) * p + r;
}

// 2^n e^r by adding n to the exponent; x = n ln 2 + r decides where that does not hold.
inline vf exp_of_parts(vf x, vf r, vu exponent) {
  constexpr float lowest = -87.3365402f, highest = 88.7228317f;  // of x with a normal, finite e^x
  vf y = (vf)((vu)(expm1_reduced(r) + 1.0f) + exponent);
  y = select(x < lowest, vf{}, y);
  return select(x <= highest, y, x * infinity);  // infinity, or a NaN with its exponent intact
}

inline vf vexp(vf x) {
  const ExpReduction parts = reduce_exp(x);
  return exp_of_parts(x, parts.r, parts.exponent());
}

// e^x for x <= 0; of x below -87 that of -87, which is next to nothing but normal.
inline vf vexp_nonpositive(vf x) {
  const ExpReduction parts = reduce_exp(maximum(broadcast(-87.0f), x));
  return (expm1_reduced(parts.r) + 1.0f) * parts.power();
}

// e^x for x <= 0, where it is not normal 0.
inline vf vexp_to_zero(vf x) {
  constexpr float lowest = -87.3365402f;
  const ExpReduction parts = reduce_exp(x);
  return select(x < lowest, vf{}, (expm1_reduced(parts.r) + 1.0f) * parts.power());
}

// e^(x + low), |low| < 0.05: for an x known to more than a float's precision.
inline vf vexp_extended(vf x, vf low) {
  const ExpReduction parts = reduce_exp(x);
  return exp_of_parts(x, parts.r + low, parts.exponent());
}

// e^x - 1 for x <= 0, accurate near 0.
inline vf vexpm1_nonpositive(vf x) {
  const ExpReduction parts = reduce_exp(maximum(broadcast(-30.0f), x));  // below: -1, and 2^n stays normal
  const vf scale = parts.power();
  return expm1_reduced(parts.r) * scale + (scale - 1.0f);
}

// e ln 2 + log(1 + f), 1 + f in [sqrt(1/2), sqrt(2)); fit 5.8e-9.
inline vf log_of_parts(vf e, vf f) {
  const vf p = polynomial(f, 0.333333313f, -0.250008196f, 0.200012416f, -0.166234091f, 0.142015815f, -0.131596133f,
                          0.127621993f, -0.0763639957f);
  const vf f2 = f * f;
  const vf low = e * ln2_low + ((f * f2) * p - 0.5f * f2);
  return e * ln2_high + (f + low);
}

inline vf vlog(vf x) {
  constexpr uint32_t sqrt_half = 0x3f3504f3u;
  const vu above = (vu)x - sqrt_half;
  const vf f = (vf)((above & 0x007fffffu) + sqrt_half) - 1.0f;
  vf y = log_of_parts(to_float((vi)above >> 23), f);
  y = select(x < smallest_normal, broadcast(-infinity), y);
  y = select(x < 0.0f, broadcast(__builtin_nanf("")), y);
  return select(x <= largest, y, x);
}

// log(1 + u) for 0 <= u <= 1, accurate near 0.
inline vf vlog1p_unit(vf u) {
  const vi halve = u > 0.414213562f;  // (1 + u) / 2 = 1 + (u - 1) / 2, exactly
  return log_of_parts(select(halve, broadcast(1.0f), vf{}), select(halve, 0.5f * u - 0.5f, u));
}

inline vf sigmoid_anywhere(vf x) {
  const vf e = vexp_to_zero(-absolute(x));
  const vf q = e / (1.0f + e);
  return select(x < 0.0f, e - e * q, 1.0f - q);
}
inline vf vsigmoid(vf x) {
  if constexpr (has_fast_lookup) {
    const vf numbered = number_line(x);
    return beyond_segments(x, numbered, evaluate(sigmoid_segments, x, numbered), sigmoid_anywhere);
  }
  return sigmoid_anywhere(x);
}

// x + x^3 p(x^2) near 0 (fit 4.5e-9), elsewhere 1 - 2 / (1 + e^(2|x|)), which is 1 from |x| = 10 on.
inline vf tanh_by_exp(vf x) {
  const vf a = absolute(x), x2 = x * x;
  const vf p = polynomial(x2, -0.333332807f, 0.133314103f, -0.0537372679f, 0.0206317231f, -0.00569734583f);
  const ExpReduction parts = reduce_exp(minimum(broadcast(20.0f), a + a));
  const vf e = (expm1_reduced(parts.r) + 1.0f) * parts.power();
  return select(a < 0.625f, (x * x2) * p + x, copy_sign(1.0f - 2.0f / (1.0f + e), x));
}

inline vf vtanh(vf x) {
  if constexpr (has_fast_lookup) {
    const vf a = minimum(broadcast(8.7f), absolute(x));
    return copy_sign(evaluate(tanh_segments, a, number_to_saturation(a)), x);
  }
  return tanh_by_exp(x);
}

// log(1 + e^x) = max(x, 0) + log(1 + e^-|x|)
inline vf softplus_anywhere(vf x) { return maximum(vf{}, x) + vlog1p_unit(vexp_to_zero(-absolute(x))); }
inline vf vsoftplus(vf x) {
  if constexpr (has_fast_lookup) {
    const vf numbered = number_line(x);
    return beyond_segments(x, numbered, evaluate(softplus_segments, x, numbered), softplus_anywhere);
  }
  return softplus_anywhere(x);
}

// The normal distribution at -|x|: its function Phi(-|x|) = ratio * gauss, gauss = e^(-x^2 / 2). The ratio times
// |x| + 2.5 is a smooth function of w = |x| / (|x| + 2.5); fit 1.6e-8. x^2 needs more bits than a float has for its
// exponential to be accurate: |x| = high + rest, high of 12 bits.
struct NormalTail {
  vf distance;  // |x|, at most 14, where Phi is already below the smallest normal float
  vf ratio, gauss;
};
inline NormalTail normal_tail(vf x) {
  const vf a = minimum(broadcast(14.0f), absolute(x));
  const vf high = (vf)((vi)a & (int32_t)0xfffff000);
  const vf gauss = vexp_extended(-0.5f * high * high, -0.5f * (a - high) * (a + high));
  const vf t = 1.0f / (a + 2.5f);
  const vf q = polynomial(a * t, 1.25f, -1.24339211f, 0.169602439f, 0.291935742f, 0.0555602834f, -0.147946611f,
                          0.134065345f, -0.3084144f, 0.276410222f, -0.0788779929f);
  return {a, t * q, gauss};
}

}  // namespace
