// One step of an optimizer: a parameter's n weights w, their gradient dE/dw, and what the optimizer remembers of them,
// read and written once. Nothing aliases. Each element is computed alone, so any cut into pieces gives the same bits.
namespace {

//   g = dE/dw + weight_decay w;  v = momentum v + g;  w -= lr (nesterov ? g + momentum v : v)
void sgd(const SgdStep* step, int64_t n, float* weight, const float* grad, float* velocity) {
  const float lr = step->lr, momentum = step->momentum, decay = step->weight_decay;
  if (!velocity) {
    map(n, weight, grad, weight, [=](vf w, vf g) { return w - (w * decay + g) * lr; });
    return;
  }
  const float along_gradient = step->nesterov ? 1.0f : 0.0f, along_velocity = step->nesterov ? momentum : 1.0f;
  for (int64_t i = 0; i < n; i += W) {
    const int64_t lanes = n - i;
    const vf w = load_first(weight + i, lanes);
    const vf g = w * decay + load_first(grad + i, lanes);
    const vf v = load_first(velocity + i, lanes) * momentum + g;
    store_first(velocity + i, lanes, v);
    store_first(weight + i, lanes, w - (g * along_gradient + v * along_velocity) * lr);
  }
}

//   w = keep w;  g = dE/dw + weight_decay w;  m += (1 - beta1) (g - m);  v = beta2 v + (1 - beta2) g^2
//   w -= step_size m / (root_scale sqrt(v) + eps)          with amsgrad: the largest v so far under the root
// step_size and root_scale hold the corrections for m and v having begun at 0.
void adam(const AdamStep* step, int64_t n, float* weight, const float* grad, float* mean, float* square,
          float* largest_square) {
  const float keep = step->keep, decay = step->weight_decay, mean_share = step->mean_share, beta2 = step->beta2;
  const float square_share = step->square_share, root_scale = step->root_scale, eps = step->eps;
  const float step_size = step->step_size;
  for (int64_t i = 0; i < n; i += W) {
    const int64_t lanes = n - i;
    const vf w = load_first(weight + i, lanes) * keep;
    const vf g = w * decay + load_first(grad + i, lanes);
    const vf before = load_first(mean + i, lanes);
    const vf m = (g - before) * mean_share + before;
    vf v = load_first(square + i, lanes) * beta2 + (g * g) * square_share;
    store_first(mean + i, lanes, m);
    store_first(square + i, lanes, v);
    if (largest_square) {
      v = maximum(load_first(largest_square + i, lanes), v);  // v where it is NaN
      store_first(largest_square + i, lanes, v);
    }
    store_first(weight + i, lanes, w - (m / (square_root(v) * root_scale + eps)) * step_size);
  }
}

//   g = dE/dw + weight_decay w;  s = alpha s + (1 - alpha) g^2;  a += (1 - alpha) (g - a)
//   u = momentum u + g / (sqrt(s - a^2) + eps);  w -= lr u
// Without `mean` a is 0; without `velocity` so is momentum. s - a^2 is a variance: below 0 by rounding alone.
void rmsprop(const RmspropStep* step, int64_t n, float* weight, const float* grad, float* square, float* mean,
             float* velocity) {
  const float lr = step->lr, alpha = step->alpha, share = step->share, eps = step->eps;
  const float decay = step->weight_decay, momentum = step->momentum;
  for (int64_t i = 0; i < n; i += W) {
    const int64_t lanes = n - i;
    const vf w = load_first(weight + i, lanes);
    const vf g = w * decay + load_first(grad + i, lanes);
    const vf s = load_first(square + i, lanes) * alpha + (g * g) * share;
    store_first(square + i, lanes, s);
    vf variance = s;
    if (mean) {
      const vf before = load_first(mean + i, lanes);
      const vf a = (g - before) * share + before;
      store_first(mean + i, lanes, a);
      variance = maximum(vf{}, s - a * a);  // NaN stays
    }
    vf u = g / (square_root(variance) + eps);
    if (velocity) {
      u = load_first(velocity + i, lanes) * momentum + u;
      store_first(velocity + i, lanes, u);
    }
    store_first(weight + i, lanes, w - u * lr);
  }
}

}  // namespace
