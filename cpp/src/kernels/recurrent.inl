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

inline void copy_row(int64_t n, const float* from, float* to) {
  if (from != to) map(n, from, to, [](vf v) { return v; });
}
inline void zero_row(int64_t n, float* to) {
  for (int64_t i = 0; i < n; i += W) store_first(to + i, n - i, vf{});
}

// The state and the output of sequence `row`.
struct CellRow {
  const float *h_before, *c_before;
  float *h, *c, *y, *gates;

  CellRow(const CellForward& s, int64_t row)
      : h_before(s.h_before + row * s.h_stride),
        c_before(s.c_before + row * s.width),
        h(s.h + row * s.h_stride),
        c(s.c + row * s.width),
        y(s.y ? s.y + row * s.y_stride : nullptr),
        gates(s.gates + row * s.gate_stride) {}

  void put_out(int64_t i, int64_t lanes, vf value) const {
    store_first(h + i, lanes, value);
    if (y) store_first(y + i, lanes, value);
  }
};

inline bool is_padding(const float* mask, int64_t stride, int64_t row) { return mask && mask[row * stride] == 0.0f; }

// one(CellRow, first column, lanes) for every vector of every sequence that has this step.
template <class One>
inline void cell_forward(const CellForward& s, bool has_c, One one) {
  for (int64_t row = 0; row < s.rows; ++row) {
    const CellRow it(s, row);
    if (is_padding(s.mask, s.mask_stride, row)) {
      copy_row(s.width, it.h_before, it.h);
      if (has_c) copy_row(s.width, it.c_before, it.c);
      if (it.y) zero_row(s.width, it.y);
    } else {
      for (int64_t j = 0; j < s.width; j += W) one(it, j, s.width - j);
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
      return run([](vf v) { return vtanh(v); });
  }
}

void lstm_forward(const CellForward* step) {
  const int64_t width = step->width;
  cell_forward(*step, true, [=](const CellRow& it, int64_t j, int64_t lanes) {
    float *pi = it.gates + j, *pf = pi + width, *pg = pf + width, *po = pg + width;
    const vf i = vsigmoid(load_first(pi, lanes)), f = vsigmoid(load_first(pf, lanes));
    const vf g = vtanh(load_first(pg, lanes)), o = vsigmoid(load_first(po, lanes));
    const vf c = f * load_first(it.c_before + j, lanes) + i * g;
    store_first(pi, lanes, i);
    store_first(pf, lanes, f);
    store_first(pg, lanes, g);
    store_first(po, lanes, o);
    store_first(it.c + j, lanes, c);
    it.put_out(j, lanes, o * vtanh(c));
  });
}

void gru_forward(const CellForward* step) {
  const int64_t width = step->width;
  cell_forward(*step, false, [=](const CellRow& it, int64_t j, int64_t lanes) {
    float *pb = it.gates + j, *pr = pb + width, *pz = pr + width, *pn = pz + width;
    const vf r = vsigmoid(load_first(pr, lanes)), z = vsigmoid(load_first(pz, lanes));
    const vf n = vtanh(r * load_first(pb, lanes) + load_first(pn, lanes));
    store_first(pr, lanes, r);
    store_first(pz, lanes, z);
    store_first(pn, lanes, n);
    it.put_out(j, lanes, (load_first(it.h_before + j, lanes) - n) * z + n);
  });
}

// --- backward ----------------------------------------------------------------------------------------------------

struct CellRowBackward {
  const float *h_before, *c_before, *h, *c, *dy, *gates;
  float *dh, *dc, *d_gates;

  CellRowBackward(const CellBackward& s, int64_t row)
      : h_before(s.h_before + row * s.h_stride),
        c_before(s.c_before + row * s.width),
        h(s.h + row * s.h_stride),
        c(s.c + row * s.width),
        dy(s.dy ? s.dy + row * s.dy_stride : nullptr),
        gates(s.gates + row * s.gate_stride),
        dh(s.dh + row * s.width),
        dc(s.dc + row * s.width),
        d_gates(s.d_gates + row * s.gate_stride) {}
};

// one(CellRowBackward, first column, lanes, dE/dh) -> dE/dh_before's direct share, for every vector.
template <class One>
inline float cell_backward(const CellBackward& s, One one) {
  vf squares = {};
  for (int64_t row = 0; row < s.rows; ++row) {
    const CellRowBackward it(s, row);
    const bool padding = is_padding(s.mask, s.mask_stride, row);
    for (int64_t j = 0; j < s.width; j += W) {
      const int64_t lanes = s.width - j;
      vf dh = load_first(it.dh + j, lanes);
      if (it.dy && !padding) dh += load_first(it.dy + j, lanes);
      squares = fma(dh, dh, squares);
      if (!padding) store_first(it.dh + j, lanes, one(it, j, lanes, dh));
    }
    if (padding) zero_row(s.gate_stride, it.d_gates);
  }
  return sum_lanes(squares);
}

float rnn_backward(int kind, const CellBackward* step) {
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

float lstm_backward(const CellBackward* step) {
  const int64_t width = step->width;
  return cell_backward(*step, [=](const CellRowBackward& it, int64_t j, int64_t lanes, vf dh) {
    const float *pi = it.gates + j, *pf = pi + width, *pg = pf + width, *po = pg + width;
    const vf i = load_first(pi, lanes), f = load_first(pf, lanes), g = load_first(pg, lanes), o = load_first(po, lanes);
    const vf tanh_c = vtanh(load_first(it.c + j, lanes));
    const vf dc = dh * o * ((1.0f - tanh_c) * (1.0f + tanh_c)) + load_first(it.dc + j, lanes);
    float* d = it.d_gates + j;
    store_first(d, lanes, dc * g * (i * (1.0f - i)));
    store_first(d + width, lanes, dc * load_first(it.c_before + j, lanes) * (f * (1.0f - f)));
    store_first(d + 2 * width, lanes, dc * i * ((1.0f - g) * (1.0f + g)));
    store_first(d + 3 * width, lanes, dh * tanh_c * (o * (1.0f - o)));
    store_first(it.dc + j, lanes, dc * f);
    return vf{};
  });
}

float gru_backward(const CellBackward* step) {
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
