#include <deepnet/model.hpp>

namespace deepnet {

Graph graph_of(const LayerPtr& layer) {
  if (const Graph* graph = layer->graph()) return *graph;
  Graph graph;
  Node node;
  node.layer = layer;
  for (int i = 0; i < layer->input_count(); ++i) {
    node.inputs.push_back(i);
    graph.inputs.push_back(i);
  }
  node.output = layer->input_count();
  graph.value_count = node.output + 1;
  graph.outputs = {node.output};
  graph.nodes.push_back(std::move(node));
  return graph;
}

}  // namespace deepnet
