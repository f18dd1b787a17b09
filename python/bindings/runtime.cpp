// runtime.hpp and error.hpp: exceptions, threads, instruction set, seed.
#include <pybind11/stl.h>

#include <optional>

#include "bindings.hpp"

namespace deepnet::python {
namespace {

// with deepnet.threads(n): ...
class Threads {
 public:
  explicit Threads(int n) : n_(n) { ThreadScope check(n); }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;
  void enter() { scopes_.push_back(std::make_unique<ThreadScope>(n_)); }
  void exit() {
    if (!scopes_.empty()) scopes_.pop_back();
  }

 private:
  int n_;
  std::vector<std::unique_ptr<ThreadScope>> scopes_;
};

// Messages may hold the bytes of a path.
void set_error(py::handle type, const std::exception& error) {
  PyErr_SetObject(type.ptr(), as_text(error.what()).ptr());
}

void seed(py::handle n) {
  const py::object index = py::reinterpret_steal<py::object>(PyNumber_Index(n.ptr()));
  const unsigned long long value = index ? PyLong_AsUnsignedLongLong(index.ptr()) : 0;
  if (PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    throw TypeError("[manual_seed] expected n to be an integer, 0 <= n < 2**64, got " + std::string(py::repr(n)));
  }
  manual_seed(value);
}

}  // namespace

void bind_errors(py::module_& m) {
  static py::handle shape_error = py::exception<ShapeError>(m, "ShapeError", PyExc_ValueError).release();
  shape_error.attr("__module__") = "deepnet";
  shape_error.attr("__doc__") = R"doc(
Arrays whose shapes do not fit the layer or each other; a ValueError. The message tells both.

Examples
--------
>>> import numpy as np
>>> import deepnet as dn
>>> from deepnet import nn
>>> try:
...     nn.Conv2d(3, 4, 3)(np.zeros((8, 1, 28, 28)))
... except dn.ShapeError as error:
...     print(error)
[Conv2d] expected input of shape (N, 3, H, W), got (8, 1, 28, 28)
)doc";
  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const ShapeError& e) {
      set_error(shape_error, e);
    } catch (const ValueError& e) {
      set_error(PyExc_ValueError, e);
    } catch (const TypeError& e) {
      set_error(PyExc_TypeError, e);
    } catch (const StateError& e) {
      set_error(PyExc_RuntimeError, e);
    } catch (const NonFiniteError& e) {
      set_error(PyExc_FloatingPointError, e);
    }
  });
}

void bind_runtime(py::module_& m) {
  m.def("manual_seed", &seed, py::arg("n"), R"doc(
Seed initial weights and dropout. The same seed and calls give the same bits.

Parameters
----------
n : int
    0 <= n < 2**64.

Raises
------
TypeError
    n is no such integer.

References
----------
Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox).

Examples
--------
>>> import deepnet as dn
>>> from deepnet import nn
>>> dn.manual_seed(0)
>>> first = nn.Linear(3, 2).weight.data
>>> dn.manual_seed(0)
>>> bool((nn.Linear(3, 2).weight.data == first).all())
True
)doc");
  m.def("set_num_threads", &set_num_threads, py::arg("n"), R"doc(
Set how many threads native work may use, from now on and everywhere. Results have the same bits for any number.

The default is the least of CPU affinity, the control group's quota and ``OMP_NUM_THREADS``.

Parameters
----------
n : int
    At least 1.

Raises
------
ValueError
    n < 1.

Examples
--------
>>> import deepnet as dn
>>> dn.set_num_threads(1)
>>> dn.get_num_threads()
1
)doc");
  m.def("get_num_threads", &get_num_threads, R"doc(
How many threads native work of this thread may use, an int.

Examples
--------
>>> import deepnet as dn
>>> dn.get_num_threads() >= 1
True
)doc");
  py::class_<Threads>(m, "threads", R"doc(
Context manager: inside, native work called by this thread uses n threads; afterwards as many as before.

Parameters
----------
n : int
    At least 1.

Raises
------
ValueError
    n < 1.

Examples
--------
>>> import deepnet as dn
>>> with dn.threads(1):
...     dn.get_num_threads()
1
)doc")
      .def(py::init<int>(), py::arg("n"))
      .def(
          "__enter__",
          [](Threads& self) -> Threads& {
            self.enter();
            return self;
          },
          py::return_value_policy::reference)
      .def("__exit__", [](Threads& self, const py::args&) { self.exit(); });
  m.def("active_isa", &active_isa, R"doc(
The instruction set in use: "generic", "avx2", "avx512" or "neon".

The best one of `available_isas`, unless the environment variable ``DEEPNET_ISA`` names another; ValueError where it
names one that build or machine lack.

Examples
--------
>>> import deepnet as dn
>>> dn.active_isa() in dn.available_isas()
True
)doc");
  m.def("available_isas", &available_isas, R"doc(
The instruction sets that this build has and this machine runs, a list of names, best first.

Examples
--------
>>> import deepnet as dn
>>> dn.available_isas()[-1]
'generic'
)doc");
  m.def("config_text", &config_text, "Version, compiler, CPU, instruction set and threads, a line each.");
}

}  // namespace deepnet::python
