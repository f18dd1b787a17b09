// Forward and backward of a layer on arrays, alone: what it is called with becomes the Model's inputs and mask, and
// what comes back becomes arrays again, in tuples where a state has several.
#include "call.hpp"

namespace deepnet::python {
namespace {

// The arrays that `object` holds, as tensors: one, or `count` of them in a tuple, a list or an array's first axis.
std::vector<Tensor> unpack(py::handle object, int count, const std::string& what, const char* name) {
  if (count == 1) return {as_float(object, what)};
  const bool sequence = py::isinstance<py::sequence>(object) && !py::isinstance<py::str>(object);
  const auto items = sequence ? py::reinterpret_borrow<py::sequence>(object) : py::sequence();
  if (!sequence || static_cast<int>(items.size()) != count) {
    throw TypeError("[" + what + "] expected " + name + " to be " + std::to_string(count) + " arrays, got " +
                    (sequence ? std::to_string(items.size()) : std::string(py::str(py::type::of(object)))));
  }
  std::vector<Tensor> tensors;
  for (py::handle item : items) tensors.push_back(as_float(item, what));
  return tensors;
}

// One array as itself, several as a tuple.
py::object pack(const Tensor* tensors, std::size_t count) {
  if (count == 1) return as_array(tensors[0]);
  py::tuple arrays(count);
  for (std::size_t i = 0; i < count; ++i) arrays[i] = as_array(tensors[i]);
  return std::move(arrays);
}

// layer(x), layer(x, state) or layer(x, state=...)
std::vector<Tensor> recurrent_inputs(const RecurrentLayer& layer, const py::args& args, py::handle state) {
  const std::string kind = layer.kind();
  if (args.empty() || args.size() > 2 || (args.size() == 2 && !state.is_none())) {
    throw TypeError("[" + kind + "] expected an input and perhaps one state, got " +
                    std::to_string(args.size() + !state.is_none()) + " arguments");
  }
  std::vector<Tensor> inputs = {as_float(args[0], kind)};
  const py::object initial = args.size() == 2 ? py::object(args[1]) : py::reinterpret_borrow<py::object>(state);
  if (initial.is_none()) return inputs;
  for (Tensor& part : unpack(initial, layer.state_count(), kind, "the state")) inputs.push_back(std::move(part));
  return inputs;
}

std::vector<Tensor> inputs_of(const Layer& layer, const py::args& args, py::handle state) {
  if (const auto* recurrent = dynamic_cast<const RecurrentLayer*>(&layer)) {
    return recurrent_inputs(*recurrent, args, state);
  }
  const std::string kind = layer.kind();
  if (!state.is_none()) throw TypeError("[" + kind + "] expected no state, for it is no recurrent layer, but got one");
  std::vector<Tensor> inputs;
  for (py::handle arg : args) inputs.push_back(as_float(arg, kind));
  return inputs;
}

}  // namespace

py::object call(Layer& layer, const py::args& args, py::handle state, py::handle lengths, py::handle mask) {
  const std::vector<Tensor> inputs = inputs_of(layer, args, state);
  const Tensor padding = inputs.empty() ? Tensor() : as_mask(layer.kind(), inputs[0].shape(), lengths, mask);
  Model& model = model_of(layer);
  Tensor y;
  Traces traces;
  {
    py::gil_scoped_release release;
    y = model.run(inputs, padding);
    traces = model.traces();
  }
  note(traces);
  return as_array(y);
}

py::object backward(Layer& layer, py::handle dy) {
  const Tensor d_output = as_float(dy, layer.kind() + ".backward");
  Model& model = model_of(layer);
  std::vector<Tensor> d_inputs;
  {
    py::gil_scoped_release release;
    d_inputs = model.backward(d_output);
  }
  if (d_inputs.size() > 1 && dynamic_cast<RecurrentLayer*>(&layer)) {
    return py::make_tuple(as_array(d_inputs[0]), pack(d_inputs.data() + 1, d_inputs.size() - 1));
  }
  return pack(d_inputs.data(), d_inputs.size());
}

py::array predict(Layer& layer, py::handle x, Index batch_size, py::handle mask) {
  if (batch_size < 1) throw ValueError("[predict] expected batch_size >= 1, got " + std::to_string(batch_size));
  const Tensor input = as_float(x, layer.kind());
  const Tensor padding = as_mask(layer.kind(), input.shape(), py::none(), mask);
  Model& model = model_of(layer);
  Tensor y;
  {
    py::gil_scoped_release release;
    y = model.predict(input, batch_size, padding);
  }
  return as_array(y);
}

Tensor as_mask(const std::string& what, const Shape& x, py::handle lengths, py::handle mask) {
  if (lengths.is_none()) return mask.is_none() ? Tensor() : as_float(mask, what);
  if (!mask.is_none()) throw ValueError("[" + what + "] expected lengths or a mask, got both");
  if (x.rank() < 2) {
    throw ShapeError("[" + what + "] expected an input of shape (N, T, ...) beside lengths, got " + x.str());
  }
  return mask_of_lengths(what, as_labels(lengths, what), x[0], x[1]);
}

}  // namespace deepnet::python
