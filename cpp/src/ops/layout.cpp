#include "layout.hpp"

#include <algorithm>
#include <cstring>

#include "../parallel.hpp"

namespace deepnet {
namespace {

// Calls fn(group, channel, first cell, cells) for all cells; of images of one cell, with the channels as cells.
template <class Fn>
void for_runs(const Shape& shape, Fn fn) {
  constexpr Index at_once = 256;
  const bool single = shape.size(2, 4) == 1;
  const Index channels = single ? 1 : shape[1], cells = shape.size(1, 4) / std::max<Index>(channels, 1);
  const Index runs = ceil_div(cells, at_once), items = image_groups(shape[0]) * runs * channels;
  parallel_for(items, grain_for(static_cast<double>(2 * lanes() * std::min(cells, at_once))),
               [&](Index begin, Index end) {
                 for (Index i = begin; i < end; ++i) {
                   const Index first = i / channels % runs * at_once;
                   fn(i / channels / runs, i % channels, channels, first, std::min(at_once, cells - first), cells);
                 }
               });
}

}  // namespace

void to_lanes(const Shape& shape, const float* images, EmptyLanes empty, float* in_lanes) {
  const Index image = shape.size(1, 4);
  for_runs(shape, [&](Index group, Index channel, Index channels, Index first, Index count, Index cells) {
    const Index n = group * lanes(), here = std::min(lanes(), shape[0] - n), step = channels * lanes();
    float* to = in_lanes + (group * cells + first) * step + channel * lanes();
    kernels().transpose(images + n * image + channel * cells + first, image, here, count, to, step, 0);
    if (here == lanes()) return;
    for (Index i = 0; i < count; ++i, to += step)
      std::fill(to + here, to + lanes(), empty == EmptyLanes::zero ? 0.0f : to[here - 1]);
  });
}

void from_lanes(const Shape& shape, const float* in_lanes, float* images) {
  const Index image = shape.size(1, 4);
  for_runs(shape, [&](Index group, Index channel, Index channels, Index first, Index count, Index cells) {
    const Index n = group * lanes(), here = std::min(lanes(), shape[0] - n), step = channels * lanes();
    kernels().transpose(in_lanes + (group * cells + first) * step + channel * lanes(), step, count, here,
                        images + n * image + channel * cells + first, image, 0);
  });
}

}  // namespace deepnet
