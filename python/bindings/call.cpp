// Forward and backward of a layer on arrays, alone: what it is called with becomes the Model's inputs and mask, and
// what comes back becomes arrays again, in tuples where a state has several.
#include "call.hpp"

#include "python_layer.hpp"

namespace deepnet::python {
namespace {

// One array as itself, several as a tuple.
py::object pack(const Tensor* tensors, std::size_t count) {
  if (count == 1) return as_new_array(tensors[0]);
  py::tuple arrays(count);
  for (std::size_t i = 0; i < count; ++i) arrays[i] = as_new_array(tensors[i]);
  return std::move(arrays);
}

// The layer as a cell, whose calls take a state and return the new one; null if it is none.
const RecurrentCell* as_cell(const Layer& layer) {
  const auto* cell = dynamic_cast<const RecurrentCell*>(&layer);
  const auto* python = dynamic_cast<const PythonLayer*>(cell);
  return python && !python->has_state_size() ? nullptr : cell;
}

// The state of layer(x), layer(x, state) or layer(x, state=...); None if there is none.
py::object state_argument(const std::string& kind, const py::args& args, py::handle state) {
  const std::size_t given = args.size() + (state.is_none() ? 0 : 1);
  if (args.empty() || given > 2) {
    throw TypeError("[" + kind + "] expected an input and perhaps a state, got " + std::to_string(given) +
                    " argument(s)");
  }
  return args.size() == 2 ? py::object(args[1]) : py::reinterpret_borrow<py::object>(state);
}

std::vector<Tensor> recurrent_inputs(const RecurrentLayer& layer, const py::args& args, py::handle state) {
  const std::string kind = layer.kind();
  const py::object initial = state_argument(kind, args, state);
  std::vector<Tensor> inputs = {as_float(args[0], kind)};
  if (initial.is_none()) return inputs;
  const auto count = static_cast<std::size_t>(layer.state_count());
  if (count == 1) {
    inputs.push_back(as_float(initial, kind));
  } else {
    for (Tensor& part : as_floats(initial, count, kind, "the state")) inputs.push_back(std::move(part));
  }
  return inputs;
}

std::vector<Tensor> cell_inputs(const RecurrentCell& cell, const py::args& args, py::handle state) {
  const std::string kind = cell.kind();
  const py::object initial = state_argument(kind, args, state);
  const Tensor x = as_float(args[0], kind);
  const std::vector<Index> sizes = cell.state_sizes();
  if (initial.is_none()) {
    const Index rows = x.shape().rank() > 0 ? x.shape()[0] : 1;
    return {x, Tensor::zeros({rows, cell.state_size()})};
  }
  return {x, sizes.size() == 1 ? as_float(initial, kind) : join_state(initial, sizes, kind, "the state")};
}

std::vector<Tensor> inputs_of(const Layer& layer, const RecurrentCell* cell, const py::args& args, py::handle state) {
  if (cell) return cell_inputs(*cell, args, state);
  if (const auto* recurrent = dynamic_cast<const RecurrentLayer*>(&layer)) {
    return recurrent_inputs(*recurrent, args, state);
  }
  const std::string kind = layer.kind();
  if (!state.is_none()) throw TypeError("[" + kind + "] expected no state, for it is no recurrent layer, got one");
  std::vector<Tensor> inputs;
  for (py::handle arg : args) inputs.push_back(as_float(arg, kind));
  return inputs;
}

py::object state_as_arrays(const RecurrentCell& cell, const Tensor& state) {
  const std::vector<Index> sizes = cell.state_sizes();
  return sizes.size() == 1 ? py::object(as_new_array(state)) : split_state(state, sizes);
}

}  // namespace

py::object call(Layer& layer, const py::args& args, py::handle state, py::handle lengths, py::handle mask) {
  const RecurrentCell* cell = as_cell(layer);
  const std::vector<Tensor> inputs = inputs_of(layer, cell, args, state);
  const Tensor padding = inputs.empty() ? Tensor() : as_mask(layer.kind(), inputs[0].shape(), lengths, mask);
  if (cell && padding.defined())
    throw TypeError("[" + layer.kind() + "] expected neither lengths nor mask: a cell takes a single step");
  Model& model = model_of(layer);
  Tensor y;
  Traces traces;
  {
    GilLeft release;
    y = model.run(inputs, padding);
    traces = model.traces();
  }
  note(traces);
  return cell ? state_as_arrays(*cell, y) : py::object(as_new_array(y));
}

py::object backward(Layer& layer, py::handle dy) {
  const std::string what = layer.kind() + ".backward";
  const RecurrentCell* cell = as_cell(layer);
  const std::vector<Index> sizes = cell ? cell->state_sizes() : std::vector<Index>();
  const Tensor d_output = sizes.size() > 1 ? join_state(dy, sizes, what, "dE/dstate") : as_float(dy, what);
  Model& model = model_of(layer);
  std::vector<Tensor> d_inputs;
  {
    GilLeft release;
    d_inputs = model.backward(d_output);
  }
  if (cell) return py::make_tuple(as_new_array(d_inputs[0]), state_as_arrays(*cell, d_inputs[1]));
  if (d_inputs.size() > 1 && dynamic_cast<RecurrentLayer*>(&layer)) {
    return py::make_tuple(as_new_array(d_inputs[0]), pack(d_inputs.data() + 1, d_inputs.size() - 1));
  }
  return pack(d_inputs.data(), d_inputs.size());
}

py::array predict(Layer& layer, py::handle x, py::handle batch_size, py::handle lengths, py::handle mask) {
  const Index rows = as_index(batch_size, "predict", "batch_size");
  if (rows < 1) throw ValueError("[predict] expected batch_size >= 1, got " + std::to_string(rows));
  const Tensor input = as_float(x, layer.kind());
  const Tensor padding = as_mask(layer.kind(), input.shape(), lengths, mask);
  Model& model = model_of(layer);
  Tensor y;
  {
    GilLeft release;
    y = model.predict(input, rows, padding);
  }
  return as_new_array(y);
}

namespace {

PyObject* general_predict = nullptr;

// The Layer that an object of class nn.Layer is; null where its class has not called Layer.__init__. As pybind11 casts,
// but for a search for the class by its name.
Layer* layer_of(py::handle object) {
  static const py::detail::type_info* const layer_class = py::detail::get_type_info(typeid(Layer));
  py::detail::type_caster_generic caster(layer_class);
  return caster.load(object, /*convert=*/false) ? static_cast<Layer*>(caster.value) : nullptr;
}

// The output of a small network for one batch of float32; null, without an error, where it takes more than that.
PyObject* predict_briefly(py::handle self, py::handle x, Index batch_size) {
  try {
    Shape shape;
    const float* data = borrowed_floats(x, shape, "predict");
    if (data == nullptr || shape.rank() != 2 || shape.size() == 0 || shape[0] > batch_size) return nullptr;
    Layer* const layer = layer_of(self);
    if (layer == nullptr) return nullptr;
    auto prediction = model_of(*layer).prediction(shape);
    if (!prediction || !prediction->brief()) return nullptr;
    py::array y = new_array(prediction->output_shape());
    prediction->run(data, static_cast<float*>(y.mutable_data()));
    return y.release().ptr();
  } catch (...) {  // what the general one will tell
    return nullptr;
  }
}

// predict(x), predict(x, batch_size) or predict(x, batch_size=...) if they are for that, and all other calls.
PyObject* predict_method(PyObject* self, PyObject* const* arguments, Py_ssize_t count, PyObject* keywords) {
  const Py_ssize_t named = keywords == nullptr ? 0 : PyTuple_GET_SIZE(keywords), given = count + named;
  Index batch_size = given == 1 ? default_batch_size : 0;
  if (given == 2 && PyLong_CheckExact(arguments[1]) &&
      (named == 0 || PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(keywords, 0), "batch_size") == 0)) {
    int overflow = 0;
    batch_size = PyLong_AsLongLongAndOverflow(arguments[1], &overflow);
  }
  if (count > 0) {
    if (PyObject* y = predict_briefly(self, arguments[0], batch_size)) return y;
  }
  std::vector<PyObject*> all = {self};
  all.insert(all.end(), arguments, arguments + given);
  return PyObject_Vectorcall(general_predict, all.data(), static_cast<std::size_t>(count) + 1, keywords);
}

}  // namespace

void shorten_predict(py::handle layer_class) {
  general_predict = py::object(layer_class.attr("predict")).release().ptr();
  static const std::string doc = py::str(layer_class.attr("predict").attr("__doc__"));
  static PyMethodDef method = {"predict", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(predict_method)),
                               METH_FASTCALL | METH_KEYWORDS, doc.c_str()};
  PyObject* const descriptor = PyDescr_NewMethod(reinterpret_cast<PyTypeObject*>(layer_class.ptr()), &method);
  if (descriptor == nullptr) throw py::error_already_set();
  layer_class.attr("predict") = py::reinterpret_steal<py::object>(descriptor);
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
