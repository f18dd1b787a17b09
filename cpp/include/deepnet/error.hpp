// Exceptions. Each message names the layer or function, what it expected and what it got:
//   "[Conv2d] expected input of shape (N, 3, H, W), got (8, 1, 28, 28)"
#pragma once

#include <stdexcept>
#include <string>

namespace deepnet {

/// Base of everything this library throws.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A value outside its domain: a stride of 0, a label of -1, a malformed model file.
class ValueError : public Error {
 public:
  using Error::Error;
};

/// Arrays whose shapes do not fit the layer or each other.
class ShapeError : public ValueError {
 public:
  using ValueError::ValueError;
};

/// An element type that the function does not take, such as class labels of type float.
class TypeError : public Error {
 public:
  using Error::Error;
};

/// A call at the wrong time, such as backward before forward.
class StateError : public Error {
 public:
  using Error::Error;
};

/// A loss or gradient that is not finite; names the first layer and tensor where it appeared.
class NonFiniteError : public Error {
 public:
  using Error::Error;
};

/// The operating system refused to open, read or write a file.
class FileError : public Error {
 public:
  /// `what` tells the file and the refusal in words.
  FileError(const std::string& what, int number) : Error(what), error_number(number) {}
  int error_number;  ///< errno
};

}  // namespace deepnet
