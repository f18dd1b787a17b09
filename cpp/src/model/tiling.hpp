// Which of a network's first layers run in tiles of a batch's rows.
#pragma once

#include <cstddef>

#include <deepnet/model.hpp>

namespace deepnet {

/// The first `nodes` of a chain take `rows` rows through all of them, then the next ones: so few that what a layer
/// makes is in the second-level cache when the next one reads it. 0 nodes: no tiles.
struct Tiling {
  std::size_t nodes = 0;
  Index rows = 0;
};

/// For inputs of this shape, whatever its number of rows; by shape alone.
Tiling tiling_of(const Graph& graph, const Shape& input);

}  // namespace deepnet
