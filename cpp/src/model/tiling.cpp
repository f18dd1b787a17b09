#include "tiling.hpp"

#include <algorithm>

#include "../ops/layout.hpp"

namespace deepnet {
namespace {

// Bytes that a layer reads and writes in a tile, on all cores together. On two cores with 512 KB of second-level cache
// each, LeNet, plain-20 and strided of bench/ were fastest so, or next to it, among tiles of 0.5, 1, 2 and 4 MB.
constexpr double tile_bytes = 2 << 20, most_bytes = 2 * tile_bytes;

double float_bytes(const Shape& shape) { return static_cast<double>(shape.size()) * sizeof(float); }

double parameter_bytes(const Layer& layer) {
  double bytes = 0;
  for (const auto& [name, parameter] : layer.parameters()) bytes += float_bytes(parameter->data.shape());
  return bytes;
}

// A node at the beginning of a chain: what it reads and writes a row, and writes alone, its parameters, and whether it
// writes an array of its own, as activations, dropout and flattening do not.
struct Link {
  double row_bytes, out_bytes, parameters;
  bool writes, wants_lanes;
};

// As long as layers work row by row on images and make images, or the last of them vectors.
std::vector<Link> links_of(const Graph& graph, Shape shape) {
  std::vector<Link> links;
  shape[0] = 1;
  for (std::size_t i = 0; i < graph.nodes.size() && shape.rank() == 4; ++i) {
    const Node& node = graph.nodes[i];
    const Contract contract = node.layer->contract();
    if (!contract.row_by_row) break;
    const Shape out = node.layer->output_shape({shape});
    const bool writes = !contract.in_place && !contract.view;
    const double bytes = float_bytes(out) + (writes ? float_bytes(shape) : 0.0);
    links.push_back(
        {bytes, float_bytes(out), parameter_bytes(*node.layer), writes, contract.lanes == Contract::Lanes::prefers});
    shape = out;
  }
  return links;
}

// Whether every value is read by the next node alone.
bool is_chain(const Graph& graph) {
  std::vector<int> values = graph.inputs;
  for (const Node& node : graph.nodes) {
    if (values.size() != 1 || node.inputs != values) return false;
    values = {node.output};
  }
  return values == graph.outputs;
}

}  // namespace

Tiling tiling_of(const Graph& graph, const Shape& input) {
  if (input.rank() != 4 || !is_chain(graph)) return {};
  const std::vector<Link> links = links_of(graph, input);
  double largest = sizeof(float), written = 0.0;  // images may have no pixels
  std::size_t nodes = 0, writers = 0;
  Index rows = 0;
  for (const Link& link : links) {
    largest = std::max(largest, link.row_bytes);
    const double group = largest * static_cast<double>(lanes());
    const Index groups = std::max<Index>(1, static_cast<Index>(tile_bytes / group));
    // Parameters are read once a tile.
    if (group > most_bytes || link.parameters > link.row_bytes * static_cast<double>(groups * lanes())) break;
    rows = groups * lanes();
    ++nodes;
    if (link.writes) ++writers, written += link.out_bytes;
  }
  // Tiles give their images out of lanes. Where the next layer turns them back, that must not cost more than what a
  // tile keeps in the cache, which it writes and reads there.
  if (nodes > 0 && nodes < links.size() && links[nodes].wants_lanes && written < 3 * links[nodes - 1].out_bytes)
    return {};
  return writers < 2 ? Tiling() : Tiling{nodes, rows};
}

}  // namespace deepnet
