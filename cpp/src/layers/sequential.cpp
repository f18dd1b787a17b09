// Layers one after the other: a graph that is a chain, the graphs of composite children put in their place.
#include <deepnet/layers.hpp>
#include <deepnet/model.hpp>

#include "common.hpp"

namespace deepnet {
namespace {

std::string join(const std::string& prefix, const std::string& name) {
  return name.empty() ? prefix : prefix + "." + name;
}

Graph chain(const std::vector<LayerPtr>& layers) {
  Graph graph;
  graph.inputs = {0};
  graph.value_count = 1;
  int current = 0;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    if (layers[i] == nullptr)
      throw ValueError("[Sequential] expected layers, got nothing at position " + std::to_string(i));
    if (layers[i]->input_count() != 1) {
      throw ValueError("[Sequential] expected layers of one input, got " + layers[i]->kind() + " with " +
                       std::to_string(layers[i]->input_count()) + " at position " + std::to_string(i));
    }
    const Graph part = graph_of(layers[i]);
    // The part's input is the current value; its others are numbered on from here.
    std::vector<int> number(static_cast<std::size_t>(part.value_count), -1);
    number[static_cast<std::size_t>(part.inputs[0])] = current;
    for (int& n : number)
      if (n < 0) n = graph.value_count++;
    for (Node node : part.nodes) {
      for (int& v : node.inputs) v = number[static_cast<std::size_t>(v)];
      node.output = number[static_cast<std::size_t>(node.output)];
      node.name = join(std::to_string(i), node.name);
      graph.nodes.push_back(std::move(node));
    }
    current = number[static_cast<std::size_t>(part.outputs[0])];
  }
  graph.outputs = {current};
  return graph;
}

}  // namespace

Sequential::Sequential(std::vector<LayerPtr> layers)
    : layers_(std::move(layers)), graph_(std::make_shared<const Graph>(chain(layers_))) {}

LayerPtr Sequential::from_parts(const Config&, const std::vector<LayerPtr>& layers) {
  return std::make_shared<Sequential>(layers);
}

Shape Sequential::output_shape(const std::vector<Shape>& inputs) const {
  Shape shape = one_input(*this, inputs);
  for (const LayerPtr& layer : layers_) shape = layer->output_shape({shape});
  return shape;
}

NamedParameters Sequential::parameters() const {
  NamedParameters list;
  for (const Node& node : graph_->nodes)
    for (auto& [name, parameter] : node.layer->parameters()) list.emplace_back(node.name + "." + name, parameter);
  return list;
}

}  // namespace deepnet
