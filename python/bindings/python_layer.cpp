#include "python_layer.hpp"

#include <algorithm>
#include <cstring>
#include <set>

namespace deepnet::python {
namespace {

py::object self_of(const Layer* layer) { return py::cast(layer, py::return_value_policy::reference); }

// Arrays that Python gets may be kept for as long as it likes; memory that nobody owns for it is copied. Read-only, for
// the memory may be the caller's array, a mapped file or the activations that another layer's backward will read.
py::array lend(const Tensor& tensor) {
  py::array array = as_array(tensor.owner() ? tensor : tensor.clone());
  array.attr("flags").attr("writeable") = false;
  return array;
}

py::object lend(const Tensor& tensor, const std::vector<Index>& sizes) {
  return sizes.empty() ? py::object(lend(tensor)) : split_state(tensor, sizes);
}

bool overlap(const Tensor& a, const Tensor& b) {
  const char *first = static_cast<const char*>(a.raw()), *second = static_cast<const char*>(b.raw());
  return first < second + b.bytes() && second < first + a.bytes();
}

py::object method_of(const py::object& self, const std::string& kind, const char* name) {
  // nn.Layer itself has a backward; a subclass must bring its own.
  const py::object method = py::getattr(py::type::of(self), name, py::none());
  const py::object inherited = py::getattr(py::type::of<Layer>(), name, py::none());
  if (method.is_none() || method.is(inherited)) {
    throw TypeError("[" + kind + "] expected a method " + name + " on this subclass of nn.Layer, got none");
  }
  return py::getattr(self, name);
}

void check_returned(const std::string& kind, const char* method, const py::object& result) {
  if (result.is_none()) throw TypeError("[" + kind + "] expected " + method + " to return an array, got None");
}

void expect_shape(const std::string& kind, const char* method, const Shape& expected, const Shape& got) {
  if (expected != got) {
    throw ShapeError("[" + kind + "] expected " + method + " to return an array of shape " + expected.str() + ", got " +
                     got.str());
  }
}

Index whole_number(const py::object& object, const std::string& kind, const char* name) {
  const py::object index = py::reinterpret_steal<py::object>(PyNumber_Index(object.ptr()));
  if (!index) {
    PyErr_Clear();
    throw TypeError("[" + kind + "] expected " + name + " to be an int or a tuple of ints, got " +
                    std::string(py::str(py::repr(object))));
  }
  return index.cast<Index>();
}

// Not isinstance, which may run Python code.
template <class T>
bool is_a(py::handle object) {
  return PyObject_TypeCheck(object.ptr(), reinterpret_cast<PyTypeObject*>(py::type::of<T>().ptr()));
}

// Calls visit(name, value) on every attribute that is a Layer or a Parameter, and on those in a list, tuple or dict,
// under the name "attribute.0".
template <class Visit>
void visit_attributes(const Layer* layer, const Visit& visit) {
  const auto look = [&](const auto& name, py::handle value) {
    if (is_a<Layer>(value) || is_a<Parameter>(value)) visit(name(), value);
  };
  const auto copy_of = [](py::handle dict) { return py::reinterpret_steal<py::dict>(PyDict_Copy(dict.ptr())); };
  const py::dict attributes = copy_of(self_of(layer).attr("__dict__"));
  for (const auto& [key, value] : attributes) {
    const std::string name = py::str(key);
    if (PyDict_Check(value.ptr())) {
      const py::dict items = copy_of(value);
      for (const auto& item : items) look([&] { return name + "." + std::string(py::str(item.first)); }, item.second);
    } else if (PyList_Check(value.ptr()) || PyTuple_Check(value.ptr())) {
      const auto items = py::reinterpret_steal<py::tuple>(PySequence_Tuple(value.ptr()));
      for (std::size_t i = 0; i < items.size(); ++i) look([&] { return name + "." + std::to_string(i); }, items[i]);
    } else {
      look([&] { return name; }, value);
    }
  }
}

// Whether `target` is `layer` or inside it.
bool reaches(const Layer& layer, const Layer* target, std::set<const Layer*>& seen) {
  if (&layer == target) return true;
  if (!seen.insert(&layer).second) return false;
  bool found = false;
  if (dynamic_cast<const PythonLayer*>(&layer) != nullptr) {  // whose children() asks this function
    visit_attributes(&layer, [&](const std::string&, py::handle value) {
      if (!found && is_a<Layer>(value)) found = reaches(*py::cast<const Layer*>(value), target, seen);
    });
    return found;
  }
  for (const LayerPtr& child : layer.children()) found = found || reaches(*child, target, seen);
  return found;
}

void list_modes(const LayerPtr& layer, std::vector<std::pair<LayerPtr, bool>>& modes) {
  modes.emplace_back(layer, layer->training());
  for (const LayerPtr& child : layer->children()) list_modes(child, modes);
}

bool is_several(const py::object& sizes) { return py::isinstance<py::tuple>(sizes) || py::isinstance<py::list>(sizes); }

}  // namespace

py::object split_state(const Tensor& state, const std::vector<Index>& sizes) {
  const Index rows = state.shape()[0], width = state.shape()[1];
  py::tuple arrays(sizes.size());
  Index column = 0;
  for (std::size_t i = 0; i < sizes.size(); column += sizes[i++]) {
    Tensor part({rows, sizes[i]});
    for (Index n = 0; n < rows; ++n) {
      std::copy_n(state.data() + n * width + column, sizes[i], part.data() + n * sizes[i]);
    }
    arrays[i] = as_array(part);
  }
  return std::move(arrays);
}

Tensor join_state(py::handle arrays, const std::vector<Index>& sizes, const std::string& what,
                  const std::string& name) {
  const auto parts = as_floats(arrays, sizes.size(), what, name);
  const Index rows = parts[0].shape().rank() > 0 ? parts[0].shape()[0] : 0;
  Index width = 0;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const Shape expected = {rows, sizes[i]};
    if (parts[i].shape() != expected) {
      throw ShapeError("[" + what + "] expected array " + std::to_string(i) + " of " + name + " of shape " +
                       expected.str() + ", got " + parts[i].shape().str());
    }
    width += sizes[i];
  }
  Tensor state({rows, width});
  Index column = 0;
  for (std::size_t i = 0; i < sizes.size(); column += sizes[i++]) {
    for (Index n = 0; n < rows; ++n) {
      std::copy_n(parts[i].data() + n * sizes[i], sizes[i], state.data() + n * width + column);
    }
  }
  return state;
}

// While it lives, the layer and those inside it are in the mode of a run, which they cannot see otherwise: a step of
// training or a prediction has its own, whatever mode the network is in. The last of several threads restores.
class PythonLayer::ModeScope {
 public:
  ModeScope(const PythonLayer& layer, bool training) : layer_(const_cast<PythonLayer&>(layer)) {
    const auto lock = wait();
    if (layer_.training() != training) {
      if (layer_.modes_.empty()) list_modes(self_of(&layer_).cast<LayerPtr>(), layer_.modes_);
      layer_.train(training);
    }
    ++layer_.calls_;
  }
  ModeScope(const ModeScope&) = delete;
  ModeScope& operator=(const ModeScope&) = delete;
  ~ModeScope() {
    std::vector<std::pair<LayerPtr, bool>> modes;
    const auto lock = wait();
    if (--layer_.calls_ > 0) return;
    modes.swap(layer_.modes_);
    for (const auto& [layer, training] : modes) layer->train(training);  // the outermost first
  }

 private:
  std::unique_lock<std::mutex> wait() {
    std::unique_lock<std::mutex> lock(layer_.modes_mutex_, std::try_to_lock);
    if (!lock) {
      GilLeft release;
      lock.lock();
    }
    return lock;
  }

  PythonLayer& layer_;
};

std::string PythonLayer::kind() const {
  GilHeld gil;
  return py::str(py::type::of(self_of(this)).attr("__name__"));
}

Contract PythonLayer::contract() const {
  Contract c;
  c.backward_needs_input = c.backward_needs_output = c.makes_output = c.remembers = true;
  return c;
}

bool PythonLayer::has_state_size() const {
  GilHeld gil;
  return py::hasattr(self_of(this), "state_size");
}

std::vector<Index> PythonLayer::state_sizes() const {
  GilHeld gil;
  const py::object self = self_of(this);
  const char* name = py::hasattr(self, "state_size") ? "state_size" : "hidden_size";
  const py::object size = py::getattr(self, name, py::none());
  if (size.is_none()) {
    throw TypeError("[" + kind() + "] expected a cell to have an attribute state_size (or hidden_size), got none");
  }
  if (!is_several(size)) return {whole_number(size, kind(), name)};
  std::vector<Index> sizes;
  for (py::handle item : size) sizes.push_back(whole_number(py::reinterpret_borrow<py::object>(item), kind(), name));
  return sizes;
}

std::vector<Index> PythonLayer::tuple_sizes(int input_count) const {
  if (input_count != 2) return {};
  const py::object size = py::getattr(self_of(this), "state_size", py::none());
  return is_several(size) ? state_sizes() : std::vector<Index>();
}

Shape PythonLayer::output_shape(const std::vector<Shape>& inputs) const {
  GilHeld gil;
  if (inputs.size() == 2 && has_state_size()) return RecurrentCell::output_shape(inputs);
  std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& [in, out] : known_shapes_)
    if (in == inputs) return out;
  throw ShapeUnknown();
}

Tensor PythonLayer::call_forward(const Tensor* inputs, int count) const {
  const std::string name = kind();
  const std::vector<Index> sizes = tuple_sizes(count);
  py::tuple arguments(static_cast<std::size_t>(count));
  for (int i = 0; i < count; ++i) {
    arguments[static_cast<std::size_t>(i)] = i == 1 ? lend(inputs[i], sizes) : lend(inputs[i]);
  }
  const py::object result = call_python(method_of(self_of(this), name, "forward"), arguments);
  check_returned(name, "forward", result);
  if (!sizes.empty()) return join_state(result, sizes, name, "forward's state");
  Tensor output = as_float(result, name);
  // What lies in the plan's memory may be overwritten before the last reader is done.
  for (int i = 0; i < count; ++i)
    if (overlap(output, inputs[i])) return output.clone();
  return output;
}

Tensor PythonLayer::discover_output(const std::vector<Tensor>& inputs, bool training) {
  GilHeld gil;
  const ModeScope mode(*this, training);
  Tensor output = call_forward(inputs.data(), static_cast<int>(inputs.size()));
  std::vector<Shape> shapes;
  std::vector<Tensor> copies;
  for (const Tensor& input : inputs) {
    shapes.push_back(input.shape());
    copies.push_back(input.clone());
  }
  Tensor kept = output;  // becomes the one before, whose end may run Python code
  std::lock_guard<std::mutex> lock(mutex_);
  constexpr std::size_t most_known = 16;
  if (known_shapes_.size() == most_known) known_shapes_.erase(known_shapes_.begin());
  known_shapes_.emplace_back(std::move(shapes), output.shape());
  discovered_inputs_ = std::move(copies);
  std::swap(discovered_output_, kept);
  return output;
}

Tensor PythonLayer::take_discovered(const Tensor* inputs, int count) const {
  std::vector<Tensor> known;
  Tensor output;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    known.swap(discovered_inputs_);
    std::swap(output, discovered_output_);
  }
  const bool same = known.size() == static_cast<std::size_t>(count) &&
                    std::equal(known.begin(), known.end(), inputs, [](const Tensor& a, const Tensor& b) {
                      return a.shape() == b.shape() && std::memcmp(a.raw(), b.raw(), a.bytes()) == 0;
                    });
  return same ? output : Tensor();
}

void PythonLayer::forward(const ForwardCall& call) const {
  GilHeld gil;
  const ModeScope mode(*this, call.training);
  Tensor output = take_discovered(call.inputs, call.input_count);
  if (!output.defined()) output = call_forward(call.inputs, call.input_count);
  expect_shape(kind(), "forward", call.output->shape(), output.shape());
  *call.output = output;
}

void PythonLayer::backward(const BackwardCall& call) {
  GilHeld gil;
  if (!call.accumulate) zero_grad();
  const std::string name = kind();
  const std::vector<Index> sizes = tuple_sizes(call.input_count);
  const py::tuple arguments = py::make_tuple(lend(*call.d_output, sizes));
  const py::object result = call_python(method_of(self_of(this), name, "backward"), arguments);
  const auto count = static_cast<std::size_t>(call.input_count);
  const bool several = count > 1;
  if (several && (!py::isinstance<py::tuple>(result) || py::len(result) != count)) {
    throw TypeError("[" + name + "] expected backward to return a tuple of " + std::to_string(count) +
                    " gradients, one an input, got " + std::string(py::str(py::type::of(result))));
  }
  for (std::size_t i = 0; i < count; ++i) {
    const py::object gradient = several ? py::object(result[py::int_(i)]) : result;
    check_returned(name, "backward", gradient);
    const Tensor d_input =
        i == 1 && !sizes.empty() ? join_state(gradient, sizes, name, "backward's dE/dstate") : as_float(gradient, name);
    expect_shape(name, "backward", call.inputs[i].shape(), d_input.shape());
    if (call.d_inputs[i].defined()) {
      if (d_input.bytes() > 0) std::memmove(call.d_inputs[i].raw(), d_input.raw(), d_input.bytes());
    } else {
      call.d_inputs[i] = overlap(d_input, *call.d_output) ? d_input.clone() : d_input;
    }
  }
}

NamedParameters PythonLayer::parameters() const {
  GilHeld gil;
  NamedParameters list;
  visit_attributes(this, [&](const std::string& name, py::handle value) {
    if (is_a<Parameter>(value)) list.emplace_back(name, py::cast<ParameterPtr>(value));
  });
  for (const auto& [name, child] : named_children()) {
    for (const auto& [inner, parameter] : child->parameters()) list.emplace_back(name + "." + inner, parameter);
  }
  return list;
}

std::vector<LayerPtr> PythonLayer::children() const {
  GilHeld gil;
  std::vector<LayerPtr> list;
  for (const auto& named : named_children()) list.push_back(named.second);
  return list;
}

std::vector<std::pair<std::string, LayerPtr>> PythonLayer::named_children() const {
  GilHeld gil;
  std::vector<std::pair<std::string, LayerPtr>> list;
  visit_attributes(this, [&](const std::string& name, py::handle value) {
    std::set<const Layer*> seen;
    if (is_a<Layer>(value) && !reaches(*py::cast<const Layer*>(value), this, seen)) {
      list.emplace_back(name, py::cast<LayerPtr>(value));
    }
  });
  return list;
}

}  // namespace deepnet::python
