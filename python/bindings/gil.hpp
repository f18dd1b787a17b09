// The GIL, left and taken again.
//
// While the interpreter shuts down, CPython before 3.14 ends every other thread that asks for the GIL, by pthread_exit.
// With glibc that unwinds the thread's stack, and unwinding a destructor ends the process: std::terminate. So such a
// thread stays where it asked until the process is gone, as CPython 3.14 has it.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>
#include <thread>

namespace deepnet::python {

namespace py = pybind11;

/// f(), which may ask for the GIL or run Python code, all of it C that throws no exception of its own.
template <class F>
auto staying(const F& f) {
  try {
    return f();
  } catch (...) {  // the unwinding, which must not go on
    for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
  }
}

/// function(*arguments), which runs Python code.
inline py::object call_python(const py::object& function, const py::tuple& arguments) {
  PyObject* const result = staying([&] { return PyObject_Call(function.ptr(), arguments.ptr(), nullptr); });
  if (result == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

/// Leaves the GIL to others for its scope.
class GilLeft {
 public:
  GilLeft() : state_(PyEval_SaveThread()) {}
  ~GilLeft() {
    staying([this] { PyEval_RestoreThread(state_); });
  }
  GilLeft(const GilLeft&) = delete;
  GilLeft& operator=(const GilLeft&) = delete;

 private:
  PyThreadState* state_;
};

/// Has the GIL for its scope, in any thread, whether it has it already or not.
class GilHeld {
 public:
  GilHeld() : state_(staying([] { return PyGILState_Ensure(); })) {}
  ~GilHeld() { PyGILState_Release(state_); }
  GilHeld(const GilHeld&) = delete;
  GilHeld& operator=(const GilHeld&) = delete;

 private:
  PyGILState_STATE state_;
};

}  // namespace deepnet::python
