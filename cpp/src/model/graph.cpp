#include <deepnet/model.hpp>

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

}  // namespace deepnet
