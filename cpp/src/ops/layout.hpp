// Images in the lanes of vectors: (N, C, H, W) as (groups, H, W, C, lanes), a group for every `lanes` images and its
// lanes without an image filled up. A convolution reads and writes them with neither packing nor shuffling
// (kernels/lanes.inl), so that a plan keeps them so from layer to layer.
#pragma once

#include <deepnet/tensor.hpp>

#include "../dispatch.hpp"
#include "blocking.hpp"

namespace deepnet {

/// Images in a group: the floats of a vector.
inline Index lanes() { return kernels().vector_width; }
inline Index image_groups(Index images) { return ceil_div(images, lanes()); }

/// Whether vectors are filled: at most a quarter of the lanes empty, or of a single group of images an eighth.
inline bool fills_lanes(Index images) {
  const Index groups = image_groups(images), empty = groups * lanes() - images;
  return groups > 0 && (groups == 1 ? 8 : 4) * empty <= groups * lanes();
}

/// Whether vectors are so short that turning images into lanes is cheap. bench/choices.py times what is chosen by this.
inline bool turning_is_cheap() { return lanes() <= 8; }

/// The shape in lanes of images (N, C, H, W).
inline Shape lanes_shape(const Shape& x) { return {image_groups(x[0]), x[2], x[3], x[1], lanes()}; }

/// The shape of x in memory, where x may be in lanes.
inline Shape stored_shape(const Shape& x, bool in_lanes) { return in_lanes ? lanes_shape(x) : x; }

/// Whether a layer that takes images of both layouts was given them in lanes.
inline bool is_in_lanes(const Shape& x) { return x.rank() == 5; }

/// (N, C, H, W) of images of either layout; in lanes, those that fill groups up count too.
inline Shape image_shape(const Shape& x) { return is_in_lanes(x) ? Shape{x[0] * x[4], x[3], x[1], x[2]} : x; }

/// What lanes without an image are filled with: for values the last image again, so that they stay as finite as the
/// others; for gradients zeros, so that they add nothing to a sum.
enum class EmptyLanes { last_image, zero };

/// Copies images of shape (N, C, H, W) from one layout to the other.
void to_lanes(const Shape& shape, const float* images, EmptyLanes empty, float* in_lanes);
void from_lanes(const Shape& shape, const float* in_lanes, float* images);

}  // namespace deepnet
