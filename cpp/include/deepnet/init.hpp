// Initial weights. Each function refills, in place, every weight of two or more axes of a layer or network
// (biases stay); fan_in = C R S, fan_out = K R S of a weight (K, C, R, S).
#pragma once

#include <deepnet/layer.hpp>

namespace deepnet::init {

/// Normal, std = sqrt(2 / fan_in) (He et al. 2015, eq. 10).
void kaiming_normal(Layer& layer);
/// Uniform in +-sqrt(6 / fan_in).
void kaiming_uniform(Layer& layer);
/// Normal, std = sqrt(2 / (fan_in + fan_out)) (Glorot and Bengio 2010, eq. 12).
void xavier_normal(Layer& layer);
/// Uniform in +-sqrt(6 / (fan_in + fan_out)) (eq. 16).
void xavier_uniform(Layer& layer);
/// Orthonormal rows or columns, whichever are fewer, of the weight as a matrix (K, C R S) (Saxe et al. 2014).
void orthogonal(Layer& layer);

/// Fills a float32 tensor with uniform numbers in [low, high), from a Philox stream keyed by next_random_key().
void uniform(Tensor& tensor, double low, double high);
/// The same with normal numbers (Box and Muller 1958).
void normal(Tensor& tensor, double mean, double std);

}  // namespace deepnet::init
