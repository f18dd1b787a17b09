#include <algorithm>

#include "plan.hpp"

namespace deepnet {

Graph graph_of(const LayerPtr& layer) { return graph_of(layer, layer->input_count()); }

Graph graph_of(const LayerPtr& layer, int inputs) {
  if (const Graph* graph = layer->graph()) return *graph;
  Graph graph;
  Node node;
  node.layer = layer;
  for (int i = 0; i < inputs; ++i) {
    node.inputs.push_back(i);
    graph.inputs.push_back(i);
  }
  node.output = inputs;
  graph.value_count = node.output + 1;
  graph.outputs = {node.output};
  graph.nodes.push_back(std::move(node));
  return graph;
}

void check_only_place(const Graph& graph, const Node& node) {
  const auto places = std::count_if(graph.nodes.begin(), graph.nodes.end(),
                                    [&](const Node& other) { return other.layer == node.layer; });
  if (places == 1) return;
  throw ValueError("[" + node.layer->kind() + "] expected a layer that carries its state on to have one place in the " +
                   "network, got " + std::to_string(places) + ", which would share the state: make a layer for each");
}

}  // namespace deepnet
