// Sums of errors E, and scale dE/dy in d unless that is null. Each is one visit to a row or block while it is in cache.
//   cross entropy  E = -sum_c t_c log softmax(y)_c        dE/dy = softmax(y) sum_c t_c - t    (t one-hot for labels)
//   mse            E = (y - t)^2                          dE/dy = 2 (y - t)
//   bce            E = max(y, 0) - y t + log(1 + e^-|y|)  dE/dy = sigmoid(y) - t
// d may be y.
namespace {

double cross_entropy_labels(int64_t rows, int64_t classes, const float* y, const int64_t* labels, float scale,
                            float* d) {
  double total = 0.0;
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = y + r * classes;
    float* d_row = d ? d + r * classes : nullptr;
    const float largest_y = row_max(classes, row), at_label = row[labels[r]];
    const float sum = row_exp(classes, largest_y, row, d_row);
    total += (double)log_of(sum) + ((double)largest_y - (double)at_label);
    if (!d) continue;
    const float factor = scale / sum;
    map(classes, d_row, d_row, [=](vf e) { return e * factor; });
    d_row[labels[r]] -= scale;
  }
  return total;
}

double cross_entropy_soft(int64_t rows, int64_t classes, const float* y, const float* target, float scale, float* d) {
  double total = 0.0;
  for (int64_t r = 0; r < rows; ++r) {
    const float *row = y + r * classes, *t_row = target + r * classes;
    float* d_row = d ? d + r * classes : nullptr;
    const float largest_y = row_max(classes, row);
    vf below{}, weight{};  // sums of t (max y - y) and of t
    for (int64_t i = 0; i < classes; i += W) {
      const vf t = load_first(t_row + i, classes - i);
      below += t * (largest_y - load_first(row + i, classes - i));  // t is 0 beyond the row
      weight += t;
    }
    const float t_sum = sum_lanes(weight), t_below = sum_lanes(below);
    const float sum = row_exp(classes, largest_y, row, d_row);
    total += (double)t_sum * (double)log_of(sum) + (double)t_below;
    if (!d) continue;
    const float factor = t_sum / sum;
    map(classes, d_row, t_row, d_row, [=](vf e, vf t) { return (e * factor - t) * scale; });
  }
  return total;
}

// Sum over all elements of error(y, t), with gradient(y, t) * scale stored where d is given; float sums are kept short.
template <class F>
inline double sum_errors(int64_t n, const float* y, const float* target, float* d, F error) {
  constexpr int64_t block = 1024;
  double total = 0.0;
  for (int64_t first = 0; first < n; first += block) {
    const int64_t end = first + block < n ? first + block : n;
    vf s{};
    for (int64_t i = first; i < end; i += W) {
      vf gradient;
      const vf e = error(load_first(y + i, end - i), load_first(target + i, end - i), &gradient);
      if (d) store_first(d + i, end - i, gradient);
      s += fill_from(end - i, 0.0f, e);
    }
    total += (double)sum_lanes(s);
  }
  return total;
}

double mse(int64_t n, const float* y, const float* target, float scale, float* d) {
  const float twice = 2.0f * scale;
  return sum_errors(n, y, target, d, [=](vf v, vf t, vf* gradient) {
    const vf difference = v - t;
    *gradient = difference * twice;
    return difference * difference;
  });
}

double bce_with_logits(int64_t n, const float* y, const float* target, float scale, float* d) {
  return sum_errors(n, y, target, d, [=](vf v, vf t, vf* gradient) {
    const vf e = vexp(-absolute(v)), q = e / (1.0f + e);
    *gradient = (select(v < 0.0f, q, 1.0f - q) - t) * scale;
    return (maximum(vf{}, v) - v * t) + vlog1p_unit(e);
  });
}

}  // namespace
