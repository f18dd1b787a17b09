// The contract between a layer and everything above it.
//
// Given its input a layer makes its output; given dE/dOutput it makes dE/dInput for the layer below and
// dE/dW for itself. It holds parameters, never activations: what backward needs of forward goes into memory
// that the caller owns, so that one layer may serve several places, batches and threads at once.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <deepnet/error.hpp>
#include <deepnet/tensor.hpp>

namespace deepnet {

/// A trained array and the gradient of the loss with respect to it.
class Parameter {
 public:
  /// Shares the memory of `data`.
  explicit Parameter(Tensor data) : data(std::move(data)) {}

  Tensor data;  ///< the values W, float32
  /// dE/dW, of the shape of data; zeros until a backward has added to it. Made at the first call.
  Tensor& grad();
  /// Whether there is one: grad() or a backward has been called. What has no gradient is not updated.
  bool has_grad() const;

  /// Sets dE/dW = A^T B, where W is (m, k), A (n, m) and B (n, k), by copies of A and B: with few rows n an optimizer
  /// sooner multiplies them than it reads their product from memory. The product is made when grad() is called; where
  /// that has been called before, at once.
  void set_grad(Index n, const float* a, const float* b);

  /// dE/dW as such a product that has not been made; while this lives, no other thread changes it.
  class Factors {
   public:
    explicit Factors(const Parameter& parameter) : parameter_(parameter), lock_(parameter.mutex_) {}
    /// Whether dE/dW is known so.
    bool known() const { return !parameter_.factors_.empty(); }
    /// Rows [row, row + rows) and columns [column, column + columns) of the product.
    void multiply(Index row, Index rows, Index column, Index columns, float* product) const;

   private:
    const Parameter& parameter_;
    std::lock_guard<std::mutex> lock_;
  };

 private:
  void make_grad(const Factors& factors);

  Tensor grad_;
  std::vector<float> factors_;  // A, B
  mutable std::mutex mutex_;    // of both
};

/// Shared by the layer that has it and by whoever looks at it.
using ParameterPtr = std::shared_ptr<Parameter>;
/// In the order in which the layer lists them, which files and optimizers keep.
using NamedParameters = std::vector<std::pair<std::string, ParameterPtr>>;

/// The value of a constructor argument, of a type that JSON has; pairs are vectors of two.
using ConfigValue = std::variant<bool, Index, double, std::string, std::vector<Index>>;
/// A layer's constructor arguments, by name; what a model file stores.
using Config = std::map<std::string, ConfigValue>;

/// Element-wise nonlinearities that a layer may apply to its own output; `none` leaves it as it is.
enum class ActivationKind : std::uint8_t { none, relu, sigmoid, tanh, softplus, leaky_relu, elu, gelu, silu };

/// An element-wise nonlinearity; `parameter` is softplus's beta, leaky_relu's slope, elu's alpha.
struct Activation {
  ActivationKind kind = ActivationKind::none;
  float parameter = 0.0f;
};

/// What a layer declares of itself, whatever its input's shape. This is all that the planner knows.
struct Contract {
  bool backward_needs_input = true;    ///< inputs stay in memory until backward
  bool backward_needs_output = false;  ///< output stays in memory until backward
  bool in_place = false;               ///< output may overwrite input, and dE/dInput overwrite dE/dOutput
  bool view = false;                   ///< output is the input's memory under another shape
  bool makes_output = false;           ///< forward points `output`, and backward `d_inputs`, at memory of its own
  bool remembers = false;              ///< backward works from what the last forward left in the layer itself (Python)
  bool accepts_activation = false;     ///< forward can apply an Activation to its output as it writes it
  bool remakes_output = false;         ///< backward can do without the output where inputs stay in memory
  /// Every output is an element of the only input, and dE/dInput adds up elements of dE/dOutput: the derivative of an
  /// activation before it may then be multiplied into dE/dOutput, which backward is given so.
  bool selects = false;
  /// Whether forward and backward take images in lanes (ops/layout.hpp) as well as (N, C, H, W): they are then given,
  /// and asked for, tensors of shape (groups, H, W, C, lanes) in the place of every one of shape (N, C, H, W).
  /// `follows`: where the input is so already.
  enum class Lanes : std::uint8_t { no, follows, prefers };
  Lanes lanes = Lanes::no;
  /// In evaluation, row i of the output along axis 0 depends on the input's row i alone, so that a batch may be run in
  /// parts.
  bool row_by_row = false;
  bool stateful = false;       ///< a run goes on from the state that the one before left in the layer
  bool inspectable = false;    ///< the cache holds what a user may look at after a run (see Trace)
  Activation activation = {};  ///< set by element-wise layers that the layer before may apply for them
};

/// Bytes that a layer asks of its caller.
struct Memory {
  std::size_t packed = 0;              ///< made by pack() of the parameters alone, read by forward
  std::size_t cache = 0;               ///< written by forward, read by backward
  std::size_t forward_workspace = 0;   ///< during forward only
  std::size_t backward_workspace = 0;  ///< during backward only
};

/// What Layer::forward is given; the memory is the caller's.
struct ForwardCall {
  const Tensor* inputs = nullptr;  ///< one after the other, of shapes that output_shape has accepted
  int input_count = 1;             ///< more than the layer's own where it was given optional ones
  Tensor* output = nullptr;        ///< to be overwritten
  const void* packed = nullptr;    ///< what pack() made, Memory::packed bytes
  void* cache = nullptr;           ///< Memory::cache bytes; null where no backward will follow
  void* workspace = nullptr;       ///< Memory::forward_workspace bytes
  Activation activation = {};      ///< to be applied to the output; none unless the contract accepts one
  const Tensor* mask = nullptr;    ///< (N, T) float32, 0 at steps of padding, else 1; null: there is no padding
  bool training = false;           ///< dropout drops, batch normalisation uses the batch
  bool rehearsal = false;          ///< run for its shapes or a diagnosis: the layer must not carry any state on
  std::uint64_t random_key = 0;    ///< seeds this call's random numbers; the same in the backward call
};

/// What Layer::backward is given; the memory is the caller's.
struct BackwardCall {
  const Tensor* inputs = nullptr;    ///< valid only if the contract needs them
  int input_count = 1;               ///< forward's
  const Tensor* output = nullptr;    ///< valid only if the contract needs them; null where it is to be remade
  const Tensor* d_output = nullptr;  ///< dE/dOutput
  Tensor* d_inputs = nullptr;        ///< dE/dInput, to be overwritten; an undefined Tensor is not wanted
  const void* packed = nullptr;      ///< forward's
  void* cache = nullptr;             ///< forward's; a layer may add what is to be looked at afterwards
  void* workspace = nullptr;         ///< Memory::backward_workspace bytes
  const Tensor* mask = nullptr;      ///< forward's
  bool training = false;             ///< forward's
  bool accumulate = true;            ///< add to the parameters' gradients; false: overwrite them
  std::uint64_t random_key = 0;      ///< forward's
};

struct Graph;  // model.hpp

/// Thrown by output_shape where discover_output must come first; never leaves the library.
class ShapeUnknown {};

/// Base of all layers. A leaf implements output_shape, forward and backward; a composite implements graph.
class Layer {
 public:
  virtual ~Layer() = default;

  /// The class's name, "Conv2d": opens every error message and identifies it in files.
  virtual std::string kind() const = 0;
  /// The constructor arguments, from which a file makes the layer again.
  virtual Config config() const { return {}; }
  /// How many inputs forward needs.
  virtual int input_count() const { return 1; }
  /// Whether it may be given `count` inputs: optional ones (an initial state) follow the input_count() others.
  virtual bool takes_inputs(int count) const { return count == input_count(); }

  /// The same whatever the input; asked when a plan is made.
  virtual Contract contract() const { return {}; }
  /// Checks the shapes of the inputs (ShapeError) and tells that of the output.
  virtual Shape output_shape(const std::vector<Shape>& inputs) const = 0;
  /// For a layer of whose output shape only a run can tell: that run. output_shape knows afterwards, and the next
  /// forward on the same inputs may give this output again.
  virtual Tensor discover_output(const std::vector<Tensor>& inputs, bool training);
  /// The bytes to be given to forward and backward; called with shapes that output_shape has accepted.
  virtual Memory memory(const std::vector<Shape>&, bool /*training*/) const { return {}; }
  /// Where Memory::packed is not 0: makes of the parameters what forward reads in their place, for inputs of these
  /// shapes. Called before forward, and again whenever a parameter may have changed. Several threads may call forward
  /// with the same packed memory at once: forward only reads it.
  virtual void pack(const std::vector<Shape>& /*inputs*/, void* /*packed*/) const {}
  /// Writes the output, and to the cache what backward will need. Changes nothing in the layer: several threads may
  /// call it at once. A composite's throws StateError: run it through a Model.
  virtual void forward(const ForwardCall& call) const;
  /// Writes the dE/dInputs that are wanted and dE/dW to the parameters' gradients, for the forward that filled the
  /// cache.
  virtual void backward(const BackwardCall& call);

  /// This layer's own parameters under PyTorch's names ("weight", "bias"); a composite's are "0.weight".
  virtual NamedParameters parameters() const { return {}; }

  /// A composite's inside, which the planner puts in its place; null for a leaf.
  virtual const Graph* graph() const { return nullptr; }
  /// A composite's layers, in order.
  virtual std::vector<std::shared_ptr<Layer>> children() const { return {}; }

  /// Whether the layer is in training mode, in which dropout drops; true at first.
  bool training() const { return training_; }
  /// Sets training or evaluation mode, in children too.
  void train(bool on = true);
  /// train(false).
  void eval() { train(false); }
  /// Sets all gradients that there are to 0.
  void zero_grad();
  /// Forgets the state that recurrent layers carry from call to call; children's too.
  virtual void reset_state();

  /// A place for what a host (a language binding) attaches to a layer; the core never looks at it.
  std::shared_ptr<void> host;

 private:
  bool training_ = true;
};

/// Shared by the networks that a layer is part of.
using LayerPtr = std::shared_ptr<Layer>;

/// Each parameter once, though a layer that serves several places lists it under several names.
NamedParameters unique_parameters(const Layer& layer);

}  // namespace deepnet
