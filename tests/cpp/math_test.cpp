// Element-wise kernels of every ISA that this machine has, against double precision; random numbers; initial weights.
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>

#include <deepnet/deepnet.hpp>

#include "check.hpp"
#include "dispatch.hpp"
#include "parallel.hpp"
#include "random.hpp"

using namespace deepnet;

namespace {

constexpr float inf = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

using Function = std::function<double(double)>;

struct Nonlinearity {
  int kind;
  float parameter;
  Function f, derivative;
  double ulp;  // allowed
};

double sigmoid(double x) { return x < 0 ? std::exp(x) / (1 + std::exp(x)) : 1 / (1 + std::exp(-x)); }
double softplus(double x) { return std::fmax(x, 0) + std::log1p(std::exp(-std::fabs(x))); }
double normal_cdf(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }
double normal_density(double x) { return std::exp(-0.5 * x * x) / std::sqrt(2 * std::acos(-1.0)); }

const std::vector<Nonlinearity>& nonlinearities() {
  static const std::vector<Nonlinearity> list = {
      {kActRelu, 0, [](double x) { return x < 0 ? 0 : x; }, [](double x) { return x > 0 ? 1 : 0; }, 0},
      {kActSigmoid, 0, sigmoid, [](double x) { return sigmoid(x) * sigmoid(-x); }, 2},
      {kActTanh, 0, [](double x) { return std::tanh(x); }, [](double x) { return std::pow(std::cosh(x), -2); }, 2},
      {kActSoftplus, 1, softplus, sigmoid, 2},
      {kActSoftplus, 0.5f, [](double x) { return softplus(0.5 * x) / 0.5; }, [](double x) { return sigmoid(0.5 * x); },
       2},
      {kActLeakyRelu, 0.125f, [](double x) { return x > 0 ? x : 0.125 * x; },
       [](double x) { return x > 0 ? 1 : 0.125; }, 0},
      {kActLeakyRelu, -0.5f, [](double x) { return x > 0 ? x : -0.5 * x; }, [](double x) { return x > 0 ? 1 : -0.5; },
       0},
      {kActElu, 1, [](double x) { return x > 0 ? x : std::expm1(x); }, [](double x) { return x > 0 ? 1 : std::exp(x); },
       2},
      {kActElu, -2, [](double x) { return x > 0 ? x : -2 * std::expm1(x); },
       [](double x) { return x > 0 ? 1 : -2 * std::exp(x); }, 2},
      // Their products have more roundings, and Phi(-|x|) is relative to its own size however small.
      {kActGelu, 0, [](double x) { return x * normal_cdf(x); },
       [](double x) { return normal_cdf(x) + x * normal_density(x); }, 5},
      {kActSilu, 0, [](double x) { return x * sigmoid(x); },
       [](double x) { return sigmoid(x) * (1 + x * sigmoid(-x)); }, 3},
  };
  return list;
}

bool saves_input(const Nonlinearity& f) { return f.kind == kActGelu || f.kind == kActSilu || f.parameter < 0; }

float from_bits(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// Every 4099th float that is finite and not subnormal.
const std::vector<float>& sample() {
  static const std::vector<float> values = [] {
    std::vector<float> v;
    for (std::uint64_t bits = 0; bits < 0x100000000u; bits += 4099) {
      const float x = from_bits(static_cast<std::uint32_t>(bits));
      if (std::isnormal(x) || x == 0) v.push_back(x);
    }
    return v;
  }();
  return values;
}

double ulp_of(double reference) { return std::ldexp(1.0, std::max(std::ilogb(reference), -126) - 23); }

// The largest error in ulp. Results near the smallest normal number may be flushed to zero, those of x sigmoid(x) where
// sigmoid(x) is: below 90 times that number.
double worst_ulp(const std::vector<float>& got, const std::vector<double>& expected) {
  constexpr double tiny = 90.0 * FLT_MIN;
  double worst = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (std::fabs(expected[i]) <= tiny && std::fabs(got[i]) <= tiny) continue;
    if (std::fabs(expected[i]) > FLT_MAX && std::fabs(got[i]) >= FLT_MAX) continue;
    const double error = std::fabs(got[i] - expected[i]) / ulp_of(expected[i]);
    worst = error <= worst ? worst : error;  // NaN stays
  }
  return worst;
}

template <class Fn>
void on_every_isa(Fn fn) {
  FlushDenormals flush;
  for (const KernelTable* table : available_kernels()) {
    const int before = check::failed;
    fn(*table);
    if (check::failed != before) std::printf("  on %s\n", table->name);
  }
}

std::vector<float> values(std::size_t n) {  // between -4 and 4, never 0
  std::vector<float> v(n);
  for (std::size_t i = 0; i < n; ++i) v[i] = static_cast<float>(philox_uniform(philox(7, i)[0]) * 8 - 4);
  return v;
}

}  // namespace

TEST(activations_are_within_their_ulp) {
  const std::vector<float>& x = sample();
  for (const Nonlinearity& f : nonlinearities()) {
    std::vector<double> expected(x.size());
    for (std::size_t i = 0; i < x.size(); ++i) expected[i] = f.f(static_cast<double>(x[i]));
    on_every_isa([&](const KernelTable& k) {
      std::vector<float> y(x.size());
      k.activation_forward(f.kind, f.parameter, static_cast<Index>(x.size()), x.data(), y.data());
      const double worst = worst_ulp(y, expected);
      CHECK(worst <= f.ulp);
      if (!(worst <= f.ulp)) std::printf("  kind %d: %.3f ulp, allowed %.1f\n", f.kind, worst, f.ulp);
    });
  }
}

TEST(activations_at_infinity_and_nan) {
  on_every_isa([](const KernelTable& k) {
    for (const Nonlinearity& f : nonlinearities()) {
      const float x[3] = {-inf, inf, not_a_number};
      float y[3];
      k.activation_forward(f.kind, f.parameter, 3, x, y);
      double below = f.f(-1e30);
      if (f.kind == kActLeakyRelu) below = f.parameter > 0 ? -inf : inf;
      CHECK(y[0] == static_cast<float>(below));
      CHECK(y[1] == (f.kind == kActSigmoid || f.kind == kActTanh ? 1.0f : inf));
      CHECK(std::isnan(y[2]));
    }
  });
}

TEST(derivatives) {
  const std::vector<float> x = values(1003);
  const auto n = static_cast<Index>(x.size());
  on_every_isa([&](const KernelTable& k) {
    for (const Nonlinearity& f : nonlinearities()) {
      std::vector<float> y(x.size()), dx(x.size(), 2.0f);
      k.activation_forward(f.kind, f.parameter, n, x.data(), y.data());
      k.activation_backward(f.kind, f.parameter, n, saves_input(f) ? x.data() : y.data(), dx.data(), dx.data());
      double worst = 0;
      for (std::size_t i = 0; i < x.size(); ++i)
        worst = std::fmax(worst, std::fabs(dx[i] - 2 * f.derivative(static_cast<double>(x[i]))));
      CHECK_NEAR(worst, 0, 6e-7);
    }
  });
}

TEST(derivatives_at_kinks_are_pytorchs) {
  on_every_isa([](const KernelTable& k) {
    const float zero = 0, one = 1;
    float d;
    k.activation_backward(kActRelu, 0, 1, &zero, &one, &d);
    CHECK(d == 0.0f);
    k.activation_backward(kActLeakyRelu, 0.25f, 1, &zero, &one, &d);
    CHECK(d == 0.25f);
    k.activation_backward(kActElu, 0.75f, 1, &zero, &one, &d);
    CHECK(d == 0.75f);
  });
}

// 1 - e^-y for a y that a float 1 - y would lose
TEST(softplus_derivative_keeps_small_values) {
  on_every_isa([](const KernelTable& k) {
    const float x = -30.0f, one = 1.0f;
    float y, d;
    k.activation_forward(kActSoftplus, 1.0f, 1, &x, &y);
    k.activation_backward(kActSoftplus, 1.0f, 1, &y, &one, &d);
    CHECK_NEAR(d / sigmoid(-30.0), 1.0, 3e-7);
  });
}

TEST(tails_are_computed_alike_and_nothing_beyond_is_touched) {
  const std::vector<float> x = values(40);
  on_every_isa([&](const KernelTable& k) {
    for (const Nonlinearity& f : nonlinearities()) {
      std::vector<float> whole(40);
      k.activation_forward(f.kind, f.parameter, 40, x.data(), whole.data());
      for (Index n = 0; n < 40; ++n) {
        std::vector<float> y = x;
        k.activation_forward(f.kind, f.parameter, n, y.data(), y.data());
        CHECK(std::memcmp(y.data(), whole.data(), static_cast<std::size_t>(n) * sizeof(float)) == 0);
        CHECK(std::memcmp(y.data() + n, x.data() + n, static_cast<std::size_t>(40 - n) * sizeof(float)) == 0);
      }
    }
  });
}

// Kernels may compute different stretches of the axis by different means: 200 floats around each place where they
// could change over, those of AVX-512's tables among them.
TEST(activations_where_their_pieces_meet) {
  std::vector<float> x;
  const auto add_around = [&](double border) {
    float v = static_cast<float>(border);
    for (int i = 0; i < 100; ++i) v = std::nextafter(v, -inf);
    for (int i = 0; i < 200; ++i, v = std::nextafter(v, inf))
      if (std::isnormal(v)) x.insert(x.end(), {v, -v});
  };
  for (int k = 0; k <= 32; ++k) {
    add_around((k - 16.5) / 1.8);
    add_around((k + 0.5) / 3.61);
    add_around((std::sqrt(1.0 + 0.355 * (k + 0.5)) - 1.0) / 0.355);  // 0.355 x^2 + 2 x = k + 1/2
  }
  for (double border = 0.25; border <= 24; border += 0.25) add_around(border);
  for (const double border : {0.625, 0.75179152, 8.7, 17.328679, 20.0, 87.3365402, 88.7228317}) add_around(border);
  const auto n = static_cast<Index>(x.size());
  on_every_isa([&](const KernelTable& k) {
    for (const Nonlinearity& f : nonlinearities()) {
      std::vector<float> y(x.size()), dx(x.size(), 1.0f);
      std::vector<double> expected(x.size());
      for (std::size_t i = 0; i < x.size(); ++i) expected[i] = f.f(static_cast<double>(x[i]));
      k.activation_forward(f.kind, f.parameter, n, x.data(), y.data());
      CHECK(worst_ulp(y, expected) <= f.ulp);
      k.activation_backward(f.kind, f.parameter, n, saves_input(f) ? x.data() : y.data(), dx.data(), dx.data());
      double worst = 0;
      for (std::size_t i = 0; i < x.size(); ++i)
        worst = std::fmax(worst, std::fabs(dx[i] - f.derivative(static_cast<double>(x[i]))));
      CHECK_NEAR(worst, 0, 6e-7);
    }
  });
}

// GELU's falls as x e^(-x^2 / 2), SiLU's as x e^x, and both keep their precision.
TEST(derivatives_keep_small_values) {
  on_every_isa([](const KernelTable& k) {
    for (const Nonlinearity& f : nonlinearities()) {
      if (f.kind != kActGelu && f.kind != kActSilu) continue;
      for (float x = -12.0f; x < -2.0f; x += 0.0371f) {
        const float one = 1.0f;
        float d;
        k.activation_backward(f.kind, f.parameter, 1, &x, &one, &d);
        CHECK_NEAR(d / f.derivative(static_cast<double>(x)), 1.0, 1e-6);
      }
    }
  });
}

TEST(elements_do_not_depend_on_their_neighbours) {
  const Index n = 96;
  std::vector<float> x = values(n);  // with some that are large, infinite or NaN
  for (std::size_t i = 0; i < x.size(); i += 3) x[i] *= 4.0f;
  for (std::size_t i = 0; i < x.size(); i += 13) x[i] *= 30.0f;
  x[20] = inf, x[50] = -inf, x[80] = not_a_number;
  on_every_isa([&](const KernelTable& k) {
    for (const Nonlinearity& f : nonlinearities()) {
      std::vector<float> y(x.size()), dx(x.size(), 1.0f);
      k.activation_forward(f.kind, f.parameter, n, x.data(), y.data());
      const std::vector<float>& saved = saves_input(f) ? x : y;
      k.activation_backward(f.kind, f.parameter, n, saved.data(), dx.data(), dx.data());
      for (std::size_t i = 0; i < x.size(); ++i) {
        float alone, d_alone = 1.0f;
        k.activation_forward(f.kind, f.parameter, 1, &x[i], &alone);
        k.activation_backward(f.kind, f.parameter, 1, &saved[i], &d_alone, &d_alone);
        CHECK(std::isnan(x[i]) ? std::isnan(alone) : std::memcmp(&alone, &y[i], sizeof alone) == 0);
        CHECK(std::isnan(d_alone) ? std::isnan(dx[i]) : std::memcmp(&d_alone, &dx[i], sizeof d_alone) == 0);
      }
    }
  });
}

TEST(softmax_rows_and_columns) {
  const Index rows = 21, length = 37;
  const std::vector<float> x = values(static_cast<std::size_t>(rows * length));
  on_every_isa([&](const KernelTable& k) {
    for (int logarithm = 0; logarithm < 2; ++logarithm) {
      std::vector<float> y(x.size()), columns(x.size()), transposed(x.size()), dx(x.size()), d_columns(x.size());
      k.softmax(length, 1, rows, x.data(), y.data(), logarithm);
      for (Index r = 0; r < rows; ++r)
        for (Index i = 0; i < length; ++i)
          transposed[static_cast<std::size_t>(i * rows + r)] = x[static_cast<std::size_t>(r * length + i)];
      k.softmax(length, rows, rows, transposed.data(), columns.data(), logarithm);
      k.softmax_backward(length, 1, rows, x.data(), x.data(), dx.data(), logarithm);
      k.softmax_backward(length, rows, rows, transposed.data(), transposed.data(), d_columns.data(), logarithm);
      std::vector<float> in_place = x;
      k.softmax_backward(length, 1, rows, x.data(), in_place.data(), in_place.data(), logarithm);
      CHECK(in_place == dx);
      for (Index r = 0; r < rows; ++r) {
        double sum = 0, dot = 0, total = 0;
        const float* row = x.data() + r * length;
        for (Index i = 0; i < length; ++i) sum += std::exp(static_cast<double>(row[i]));
        for (Index i = 0; i < length; ++i) dot += row[i] * std::exp(static_cast<double>(row[i])) / sum, total += row[i];
        for (Index i = 0; i < length; ++i) {
          const double p = std::exp(static_cast<double>(row[i])) / sum, d = row[i];
          const auto at = static_cast<std::size_t>(r * length + i), column = static_cast<std::size_t>(i * rows + r);
          // x - max x is rounded before its exponential: half an ulp of 8 is 2.4e-7.
          CHECK_NEAR(y[at], logarithm ? std::log(p) : p, logarithm ? 1e-6 : 6e-7 * p);
          CHECK_NEAR(columns[column], logarithm ? std::log(p) : p, logarithm ? 1e-6 : 6e-7 * p);
          CHECK_NEAR(dx[at], logarithm ? d - p * total : p * (d - dot), 3e-6);
          CHECK_NEAR(d_columns[column], logarithm ? d - p * total : p * (d - dot), 3e-6);
        }
      }
    }
  });
}

TEST(softmax_of_extreme_rows) {
  on_every_isa([](const KernelTable& k) {
    for (const Index stride : {1, 2}) {  // stride 2: two equal rows side by side
      const auto row = [&](float a, float b, int logarithm) {
        std::vector<float> x = {a, b, 0, 0}, y(4);
        if (stride == 2) x = {a, a, b, b};
        k.softmax(2, stride, stride, x.data(), y.data(), logarithm);
        return std::make_pair(y[0], y[static_cast<std::size_t>(stride)]);
      };
      CHECK(row(3e38f, -3e38f, 0) == std::make_pair(1.0f, 0.0f));
      CHECK(row(-1000, -1000, 0) == std::make_pair(0.5f, 0.5f));
      CHECK(row(1000, 0, 1) == std::make_pair(0.0f, -1000.0f));
      CHECK(row(0, -inf, 0) == std::make_pair(1.0f, 0.0f));
      CHECK(std::isnan(row(-inf, -inf, 0).first));
      for (const std::uint32_t bits : {0x7fc00000u, 0xffc00000u, 0x7fc00001u, 0xffd23456u, 0x7fffffffu}) {
        float nan;
        std::memcpy(&nan, &bits, sizeof nan);
        const auto both = row(0, nan, 0), logarithms = row(nan, 0, 1);
        CHECK(std::isnan(both.first) && std::isnan(both.second));
        CHECK(std::isnan(logarithms.first) && std::isnan(logarithms.second));
      }
    }
  });
}

TEST(sums_of_integers_are_exact) {
  on_every_isa([](const KernelTable& k) {
    for (const Index cols : {1, 3, 16, 17, 64, 77, 130}) {
      const Index rows = 300, stride = cols + 2;
      std::vector<float> x(static_cast<std::size_t>(rows * stride));
      std::vector<float> sums(static_cast<std::size_t>(cols + 1), 5.0f), expected = sums;
      double total = 0;
      for (Index i = 0; i < rows * stride; ++i) {
        const float v = static_cast<float>(i * 37 % 19 - 9);
        x[static_cast<std::size_t>(i)] = v;
        total += v;
        if (i % stride < cols) expected[static_cast<std::size_t>(i % stride)] += v;
      }
      k.sum_rows(rows, cols, x.data(), stride, sums.data(), 1);
      CHECK(sums == expected);
      k.sum_rows(rows, cols, x.data(), stride, sums.data(), 0);
      CHECK(sums[0] == expected[0] - 5.0f && sums.back() == 5.0f);
      CHECK(k.sum(rows * stride, x.data()) == static_cast<float>(total));
    }
  });
}

TEST(find_nonfinite_gives_the_first) {
  on_every_isa([](const KernelTable& k) {
    for (const std::size_t n : {std::size_t{1}, std::size_t{50}, std::size_t{5000}}) {
      std::vector<float> x(n, 3e38f);
      CHECK(k.find_nonfinite(static_cast<Index>(n), x.data()) == static_cast<Index>(n));
      for (const float bad : {inf, -inf, not_a_number}) {
        x[n - 1] = inf;
        x[n / 2] = bad;
        CHECK(k.find_nonfinite(static_cast<Index>(n), x.data()) == static_cast<Index>(n / 2));
      }
    }
  });
}

// The known answers that come with Random123 (kat_vectors), of the authors of Philox.
TEST(philox_known_answers) {
  CHECK(philox(0, PhiloxWords{}) == PhiloxWords{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(philox(~std::uint64_t{0}, PhiloxWords{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}) ==
        PhiloxWords{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(philox(0x299f31d0a4093822, PhiloxWords{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}) ==
        PhiloxWords{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST(dropout_uses_philox_by_position) {
  const std::uint64_t key = 0x123456789abcdef;
  const std::uint32_t threshold = 0x4ccccccd;  // 0.3
  const Index far = Index{1} << 40;            // a counter above 32 bits
  on_every_isa([&](const KernelTable& k) {
    const Index n = 4099;
    std::vector<float> x(n, 1.0f), y(n), pieces(n);
    k.dropout(key, far, n, threshold, 2.0f, x.data(), y.data());
    Index kept = 0, wrong = 0;
    for (Index i = 0; i < n; ++i) {
      const Index e = far + i;
      const std::uint32_t word =
          philox(key, static_cast<std::uint64_t>(e / 64 * 16 + e % 16))[static_cast<std::size_t>(e / 16 % 4)];
      kept += y[static_cast<std::size_t>(i)] == 2.0f;
      wrong += y[static_cast<std::size_t>(i)] != (word >= threshold ? 2.0f : 0.0f);
    }
    CHECK(wrong == 0);
    CHECK_NEAR(static_cast<double>(kept) / static_cast<double>(n), 0.7, 0.03);
    for (Index i = 0; i < n; i += 37)
      k.dropout(key, far + i, std::min<Index>(37, n - i), threshold, 2.0f, x.data() + i, pieces.data() + i);
    CHECK(pieces == y);
  });
}

TEST(normal_and_uniform_moments) {
  manual_seed(1);
  Tensor t({100003});
  const auto moment = [&](double power) {
    double sum = 0;
    for (Index i = 0; i < t.size(); ++i) sum += std::pow(t.data()[i], power);
    return sum / static_cast<double>(t.size());
  };
  init::normal(t, 0.0, 2.0);
  CHECK_NEAR(moment(1), 0.0, 0.03);
  CHECK_NEAR(moment(2), 4.0, 0.1);
  CHECK_NEAR(moment(4), 48.0, 2.5);
  init::uniform(t, -1.0, 3.0);
  CHECK_NEAR(moment(1), 1.0, 0.02);
  CHECK_NEAR(moment(2), 7.0 / 3, 0.03);
  float low = t.data()[0], high = low;
  for (Index i = 0; i < t.size(); ++i) low = std::fmin(low, t.data()[i]), high = std::fmax(high, t.data()[i]);
  CHECK(low >= -1.0f && high < 3.0f);
}

TEST(same_seed_same_numbers_for_any_threads) {
  const auto numbers = [](int threads) {
    ThreadScope scope(threads);
    manual_seed(5);
    Tensor t({50001});
    init::normal(t, 0.0, 1.0);
    return std::vector<float>(t.data(), t.data() + t.size());
  };
  CHECK(numbers(1) == numbers(3));
}

TEST(orthogonal_weights) {
  for (const auto& [out, in] : {std::pair<Index, Index>{5, 12}, {12, 5}, {7, 7}}) {
    Linear layer(in, out);
    init::orthogonal(layer);
    const Index count = std::min(in, out), length = std::max(in, out);
    const Index row = in >= out ? in : 1, step = in >= out ? 1 : in;
    for (Index a = 0; a < count; ++a) {
      for (Index b = 0; b <= a; ++b) {
        double dot = 0;
        for (Index i = 0; i < length; ++i) {
          dot += static_cast<double>(layer.weight->data.data()[a * row + i * step]) *
                 static_cast<double>(layer.weight->data.data()[b * row + i * step]);
        }
        CHECK_NEAR(dot, a == b ? 1.0 : 0.0, 1e-6);
      }
    }
  }
}

TEST(initial_scales) {
  manual_seed(2);
  Conv2d conv(8, 32, 3);
  const Tensor& w = conv.weight->data;
  const auto variance = [&] {
    double sum = 0;
    for (Index i = 0; i < w.size(); ++i) sum += static_cast<double>(w.data()[i]) * static_cast<double>(w.data()[i]);
    return sum / static_cast<double>(w.size());
  };
  init::kaiming_normal(conv);
  CHECK_NEAR(variance() * 72 / 2, 1.0, 0.1);
  init::kaiming_uniform(conv);
  CHECK_NEAR(variance() * 72 / 2, 1.0, 0.1);
  init::xavier_normal(conv);
  CHECK_NEAR(variance() * (72 + 288) / 2, 1.0, 0.1);
  init::xavier_uniform(conv);
  CHECK_NEAR(variance() * (72 + 288) / 2, 1.0, 0.1);
}

TEST(arguments_are_checked) {
  CHECK_THROWS(ValueError, Dropout(1.5));
  CHECK_THROWS(ValueError, Dropout(std::nan("")));
  CHECK_THROWS(ValueError, Softplus(0.0));
  CHECK_THROWS(ValueError, ELU(INFINITY));
  CHECK_THROWS(ShapeError, Softmax(2).output_shape({Shape{3, 4}}));
  CHECK_THROWS(ShapeError, LogSoftmax(-3).output_shape({Shape{3, 4}}));
  CHECK_THROWS(ShapeError, Flatten().output_shape({Shape{3}}));
  CHECK_THROWS(ValueError, Dropout::from_config({}));
  CHECK_THROWS(ValueError, Dropout::from_config({{"p", std::string("half")}}));
  CHECK(std::get<double>(LeakyReLU(0.01).config().at("negative_slope")) == 0.01);
  CHECK(std::get<double>(std::dynamic_pointer_cast<Dropout>(Dropout::from_config({{"p", Index{1}}}))->config()["p"]) ==
        1);
}
