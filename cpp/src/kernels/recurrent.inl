// One step of a recurrent cell on `rows` sequences: the nonlinear part, behind the matrix products. a, b are rows of
// the matrix products' sums, overwritten with the gates; before = step t - 1 (t + 1 in reverse), D = its gradient.
//
//   RNN   row (a)            h = f(a)
//   LSTM  row (i, f, g, o)   i, f, o = sigmoid, g = tanh;  c = f c_before + i g;  h = o tanh(c)
//         (Hochreiter and Schmidhuber 1997; the forget gate f of Gers, Schmidhuber and Cummins 2000)
//   GRU   row (b, r, z, n)   r, z = sigmoid;  n = tanh(n + r b);  h = (1 - z) n + z h_before
//         (Cho et al. 2014, eq. 5 to 8, in the form where r acts behind the product, b = W_hn h_before + b_hn)
//
// Backward turns dE/dh, to which it adds the output's dE/dy, into dE/d(sums) and into what goes to h_before directly;
// the rest of dE/dh_before is dE/d(sums) W_hh. Each returns the sum of the squares of dE/dh.
//
// A sequence whose mask is 0 at this step keeps its state and puts out 0; backward passes its gradients through.
// h may be h_before, c may be c_before.
namespace {

// By table where the ISA looks coefficients up. The sigmoid is never 0: lstm_backward divides by it.
inline vf gate_sigmoid(vf x) { return vsigmoid(maximum(broadcast(-87.0f), x)); }

// Elsewhere sigmoid and tanh are fractions whose denominators lie in [1, 2], so that several can share one
// reciprocal, the slowest operation here: 1 / a = b / (a b). A NaN in one gate thereby reaches the others of its
// cell, as it would reach them one step later through the state.
struct SigmoidOf {
  vf x, e, denominator;
  explicit SigmoidOf(vf x) : x(x), e(vexp_nonpositive(-absolute(x))), denominator(e + 1.0f) {}
  vf times(vf inverse) const { return select(x < 0.0f, e * inverse, inverse); }
};
struct TanhOf {
  vf x, expm1, denominator;  // tanh |x| = -expm1 / (2 + expm1), expm1 = e^(-2|x|) - 1: accurate near 0 too
  explicit TanhOf(vf x) : x(x), expm1(vexpm1_nonpositive(absolute(x) * -2.0f)), denominator(expm1 + 2.0f) {}
  vf times(vf inverse) const { return copy_sign(-expm1 * inverse, x); }
};
inline vf cell_tanh(vf x) {
  if constexpr (has_fast_lookup) return vtanh(x);
  const TanhOf of_x(x);
  return of_x.times(reciprocal(of_x.denominator));
}

inline void copy_row(int64_t n, const float* from, float* to) {
  if (from != to) map(n, from, to, [](vf v) { return v; });
}

inline const float* row_of(const float* p, int64_t row, int64_t stride) { return p ? p + row * stride : nullptr; }
inline float* row_of(float* p, int64_t row, int64_t stride) { return p ? p + row * stride : nullptr; }

// The state and the output of sequence `row`.
struct CellRow {
  const float *h_before, *c_before;
  float *h, *c, *y, *gates;

  CellRow(const CellForward& s, int64_t row)
      : h_before(s.h_before + row * s.h_stride),
        c_before(row_of(s.c_before, row, s.width)),
        h(s.h + row * s.h_stride),
        c(row_of(s.c, row, s.width)),
        y(row_of(s.y, row, s.y_stride)),
        gates(s.gates + row * s.gate_stride) {}

  void put_out(int64_t i, int64_t lanes, vf value) const {
    store_first(h + i, lanes, value);
    if (y) store_first(y + i, lanes, value);
  }
};

inline bool is_padding(const float* mask, int64_t stride, int64_t row) { return mask && mask[row * stride] == 0.0f; }

// pass(CellRow, first column, lanes) for every vector of every sequence that has this step, pass after pass: what waits
// for a long chain of operations is a pass of its own, so that several vectors' chains run side by side.
template <class... Pass>
inline void cell_forward(const CellForward& s, bool has_c, Pass... pass) {
  const auto all_vectors = [&](const CellRow& it, auto one) {
    for (int64_t j = 0; j < s.width; j += W) one(it, j, s.width - j);
  };
  for (int64_t row = 0; row < s.rows; ++row) {
    const CellRow it(s, row);
    if (is_padding(s.mask, s.mask_stride, row)) {
      copy_row(s.width, it.h_before, it.h);
      if (has_c) copy_row(s.width, it.c_before, it.c);
      if (it.y) zero_row(s.width, it.y);
    } else {
      (all_vectors(it, pass), ...);
    }
  }
}

void rnn_forward(int kind, const CellForward* step) {
  const auto run = [&](auto f) {
    cell_forward(*step, false, [=](const CellRow& it, int64_t j, int64_t lanes) {
      it.put_out(j, lanes, f(load_first(it.gates + j, lanes)));
    });
  };
  switch (kind) {
    case kActRelu:
      return run([](vf v) { return select(v < 0.0f, vf{}, v); });
    case kActSigmoid:
      return run([](vf v) { return vsigmoid(v); });
    case kActSoftplus:
      return run([](vf v) { return vsoftplus(v); });
    default:
      return run([](vf v) { return cell_tanh(v); });
  }
}

void lstm_forward(const CellForward* step) {
  const int64_t width = step->width;
  const auto gates_and_c = [=](const CellRow& it, int64_t j, int64_t lanes) {
    float *pi = it.gates + j, *pf = pi + width, *pg = pf + width, *po = pg + width;
    vf i = load_first(pi, lanes), f = load_first(pf, lanes), g = load_first(pg, lanes), o = load_first(po, lanes);
    if constexpr (has_fast_lookup) {
      i = gate_sigmoid(i), f = gate_sigmoid(f), g = vtanh(g), o = gate_sigmoid(o);
    } else {
      const SigmoidOf of_i(i), of_f(f), of_o(o);
      const TanhOf of_g(g);
      const vf i_f = of_i.denominator * of_f.denominator, g_o = of_g.denominator * of_o.denominator;
      const vf inverse = reciprocal(i_f * g_o), inverse_i_f = inverse * g_o, inverse_g_o = inverse * i_f;
      i = of_i.times(inverse_i_f * of_f.denominator), f = of_f.times(inverse_i_f * of_i.denominator);
      g = of_g.times(inverse_g_o * of_o.denominator), o = of_o.times(inverse_g_o * of_g.denominator);
    }
    const vf c = f * load_first(it.c_before + j, lanes) + i * g;
    store_first(pi, lanes, i);
    store_first(pf, lanes, f);
    store_first(pg, lanes, g);
    store_first(po, lanes, o);
    store_first(it.c + j, lanes, c);
  };
  const auto output = [=](const CellRow& it, int64_t j, int64_t lanes) {
    const vf o = load_first(it.gates + 3 * width + j, lanes);
    it.put_out(j, lanes, o * cell_tanh(load_first(it.c + j, lanes)));
  };
  cell_forward(*step, true, gates_and_c, output);
}

void gru_forward(const CellForward* step) {
  const int64_t width = step->width;
  const auto r_and_z = [=](const CellRow& it, int64_t j, int64_t lanes) {
    float *pb = it.gates + j, *pr = pb + width, *pz = pr + width, *pn = pz + width;
    vf r = load_first(pr, lanes), z = load_first(pz, lanes);
    if constexpr (has_fast_lookup) {
      r = vsigmoid(r), z = vsigmoid(z);
    } else {
      const SigmoidOf of_r(r), of_z(z);
      const vf inverse = reciprocal(of_r.denominator * of_z.denominator);
      r = of_r.times(inverse * of_z.denominator), z = of_z.times(inverse * of_r.denominator);
    }
    store_first(pr, lanes, r);
    store_first(pz, lanes, z);
    store_first(pn, lanes, r * load_first(pb, lanes) + load_first(pn, lanes));
  };
  const auto output = [=](const CellRow& it, int64_t j, int64_t lanes) {
    float *pz = it.gates + 2 * width + j, *pn = pz + width;
    const vf z = load_first(pz, lanes), n = cell_tanh(load_first(pn, lanes));
    store_first(pn, lanes, n);
    it.put_out(j, lanes, (load_first(it.h_before + j, lanes) - n) * z + n);
  };
  cell_forward(*step, false, r_and_z, output);
}

// --- backward ----------------------------------------------------------------------------------------------------

struct CellRowBackward {
  const float *h_before, *c_before, *h, *dy, *gates;
  float *dh, *dc, *d_gates;

  CellRowBackward(const CellBackward& s, int64_t row)
      : h_before(s.h_before + row * s.h_stride),
        c_before(row_of(s.c_before, row, s.width)),
        h(s.h + row * s.h_stride),
        dy(row_of(s.dy, row, s.dy_stride)),
        gates(row_of(s.gates, row, s.gate_stride)),
        dh(s.dh + row * s.width),
        dc(row_of(s.dc, row, s.width)),
        d_gates(s.d_gates + row * s.d_gate_stride) {}
};

// Sums of squares in double: those of vanishing gradients are far below what a float can be.
struct SquareSum {
  typedef float half __attribute__((vector_size(2 * W), aligned(4), may_alias));
  typedef double wide __attribute__((vector_size(4 * W)));
  wide sum = {};

  void add(vf v) {
    float lane[W];
    store(lane, v);
    for (int i = 0; i < W; i += W / 2) {
      const wide x = __builtin_convertvector(*(const half*)(lane + i), wide);
      sum += x * x;
    }
  }
  double total() const {
    double total = 0.0;
    for (int i = 0; i < W / 2; ++i) total += sum[i];
    return total;
  }
};

// one(CellRowBackward, first column, lanes, dE/dh) -> dE/dh_before's direct share, for every vector.
template <class One>
inline double cell_backward(const CellBackward& s, One one) {
  SquareSum squares;
  for (int64_t row = 0; row < s.rows; ++row) {
    const CellRowBackward it(s, row);
    const bool padding = is_padding(s.mask, s.mask_stride, row);
    for (int64_t j = 0; j < s.width; j += W) {
      const int64_t lanes = s.width - j;
      vf dh = load_first(it.dh + j, lanes);
      if (it.dy && !padding) dh += load_first(it.dy + j, lanes);
      squares.add(dh);
      if (!padding) store_first(it.dh + j, lanes, one(it, j, lanes, dh));
    }
    if (padding) zero_row(s.gate_stride, it.d_gates);
  }
  return squares.total();
}

double rnn_backward(int kind, const CellBackward* step) {
  const auto run = [&](auto derivative) {
    return cell_backward(*step, [=](const CellRowBackward& it, int64_t j, int64_t lanes, vf dh) {
      store_first(it.d_gates + j, lanes, derivative(load_first(it.h + j, lanes), dh));
      return vf{};
    });
  };
  switch (kind) {
    case kActRelu:
      return run([](vf h, vf d) { return select(h <= 0.0f, vf{}, d); });
    case kActSigmoid:
      return run([](vf h, vf d) { return d * (h * (1.0f - h)); });
    case kActSoftplus:
      return run([](vf h, vf d) { return d * -vexpm1_nonpositive(-h); });
    default:
      return run([](vf h, vf d) { return d * ((1.0f - h) * (1.0f + h)); });
  }
}

double lstm_backward(const CellBackward* step) {
  const int64_t width = step->width;
  return cell_backward(*step, [=](const CellRowBackward& it, int64_t j, int64_t lanes, vf dh) {
    const float *pi = it.gates + j, *pf = pi + width, *pg = pf + width, *po = pg + width;
    const vf i = load_first(pi, lanes), f = load_first(pf, lanes), g = load_first(pg, lanes), o = load_first(po, lanes);
    const vf h = load_first(it.h + j, lanes), tanh_c = h / o;  // o > 0: its x counts as -87 below that
    const vf dc = dh * o * ((1.0f - tanh_c) * (1.0f + tanh_c)) + load_first(it.dc + j, lanes);
    float* d = it.d_gates + j;
    store_first(d, lanes, dc * g * (i * (1.0f - i)));
    store_first(d + width, lanes, dc * load_first(it.c_before + j, lanes) * (f * (1.0f - f)));
    store_first(d + 2 * width, lanes, dc * i * ((1.0f - g) * (1.0f + g)));
    store_first(d + 3 * width, lanes, dh * h * (1.0f - o));
    store_first(it.dc + j, lanes, dc * f);
    return vf{};
  });
}

double gru_backward(const CellBackward* step) {
  const int64_t width = step->width;
  return cell_backward(*step, [=](const CellRowBackward& it, int64_t j, int64_t lanes, vf dh) {
    const float *pb = it.gates + j, *pr = pb + width, *pz = pr + width, *pn = pz + width;
    const vf b = load_first(pb, lanes), r = load_first(pr, lanes), z = load_first(pz, lanes), n = load_first(pn, lanes);
    const vf dn = dh * (1.0f - z) * ((1.0f - n) * (1.0f + n));
    float* d = it.d_gates + j;
    store_first(d, lanes, dn * r);
    store_first(d + width, lanes, dn * b * (r * (1.0f - r)));
    store_first(d + 2 * width, lanes, dh * (load_first(it.h_before + j, lanes) - n) * (z * (1.0f - z)));
    store_first(d + 3 * width, lanes, dn);
    return dh * z;
  });
}

}  // namespace
