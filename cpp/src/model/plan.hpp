// The plan of a graph for given input shapes: order, fusion, and where every array lies in one arena.
// It reads what layers declare (Contract, Memory) and knows nothing of what they compute.
#pragma once

#include <vector>

#include <deepnet/model.hpp>

#include "../ops/layout.hpp"

namespace deepnet {

/// What a run is for.
struct PlanRequest {
  std::vector<Shape> inputs;
  bool backward = false;        ///< keep what backward needs
  bool input_gradient = false;  ///< dE/dInput of the graph is wanted
  bool tile = false;            ///< one of several tiles of a batch
  bool loss = false;            ///< output and dE/dOutput live in the arena, for a loss to read and write
};

/// ValueError where the node's layer, which carries a state on, has another place in the graph too.
void check_only_place(const Graph& graph, const Node& node);

/// Memory that one or more values share (a view, an in-place activation).
struct PlanBuffer {
  enum class Place { arena, input, output, d_output, d_input, layer };
  Place place = Place::arena;
  int index = 0;  ///< which input, for Place::input and d_input
  std::size_t bytes = 0;
  int first = 0, last = 0;  ///< first and last step of its life
  std::size_t offset = 0;   ///< in the arena
};

constexpr int no_buffer = -1;

struct PlanValue {
  Shape shape;
  int buffer = no_buffer;
  int d_buffer = no_buffer;  ///< of dE/dValue; no_buffer where nobody wants it
  bool lanes = false;        ///< both hold images in lanes (ops/layout.hpp)

  /// Of the tensors in the buffers.
  Shape stored() const { return stored_shape(shape, lanes); }
};

/// A node, or a node and the activation behind it as one.
struct PlanStep {
  int node = 0;
  int fused = -1;              ///< the activation's node, or -1
  Activation activation = {};  ///< of the fused node
  int output = 0;              ///< value that the step makes: the fused node's where there is one
  int cache = no_buffer, forward_workspace = no_buffer, backward_workspace = no_buffer;
  std::size_t packed_bytes = 0, packed_offset = 0;  ///< bytes that the layer packs, and where among those of all steps
  Activation derivative = {};   ///< by which backward multiplies dE/dOutput first, from the output's values
  int d_activated = no_buffer;  ///< the product
  bool lanes = false;           ///< runs on images in lanes
  std::vector<int> turned;      ///< per input of the other layout: buffer for a copy in this step's; or no_buffer
  std::vector<int> d_turned;    ///< and for its gradient
  std::vector<int> d_extra;  ///< per input: buffer for a further consumer's dE/dValue, added afterwards; or no_buffer
  bool remakes_output = false;         ///< backward has the inputs instead of the output
  bool shares_parameters = false;      ///< later steps, so earlier in backward, have some of them too: add to gradients
  std::vector<ParameterPtr> unshared;  ///< then: the others, whose gradients must be 0 before the first is added
};

struct Plan {
  Plan(const Graph& graph, const PlanRequest& request);

  std::vector<PlanValue> values;
  std::vector<PlanBuffer> buffers;
  std::vector<PlanStep> steps;  ///< forward order; backward is the reverse
  std::size_t arena_bytes = 0;
  std::size_t packed_bytes = 0;  ///< what layers pack: made of parameters alone, so not in the arena of one run
  bool copy_output = false;      ///< the output value's memory cannot be the caller's array: copy at the end
};

}  // namespace deepnet
