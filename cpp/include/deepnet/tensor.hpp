// Shape and Tensor: C-contiguous arrays, owned (64-byte aligned) or borrowed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

namespace deepnet {

using Index = std::int64_t;

/// The sizes of an array along its axes, at most 8 of them, kept in place (no allocation).
class Shape {
 public:
  static constexpr int max_rank = 8;

  Shape() = default;
  Shape(std::initializer_list<Index> sizes);
  explicit Shape(const std::vector<Index>& sizes);

  int rank() const { return rank_; }
  Index operator[](int axis) const { return sizes_[axis < 0 ? axis + rank_ : axis]; }
  Index& operator[](int axis) { return sizes_[axis < 0 ? axis + rank_ : axis]; }
  const Index* begin() const { return sizes_; }
  const Index* end() const { return sizes_ + rank_; }
  void push_back(Index size);

  /// Number of elements. Throws ShapeError if it, times 8 bytes, does not fit an Index.
  Index size() const;
  /// Product of the sizes of axes [first, last).
  Index size(int first, int last) const;

  bool operator==(const Shape& other) const;
  bool operator!=(const Shape& other) const { return !(*this == other); }

  /// "(8, 1, 28, 28)"
  std::string str() const;

 private:
  Index sizes_[max_rank] = {};
  int rank_ = 0;
};

enum class DType : std::uint8_t { float32, int64 };

std::size_t bytes_of(DType type);
const char* name_of(DType type);

/// A C-contiguous array. Copying a Tensor shares its memory, as in NumPy; clone() copies the elements.
class Tensor {
 public:
  Tensor() = default;

  /// New memory, 64-byte aligned, not initialised.
  explicit Tensor(const Shape& shape, DType type = DType::float32);
  static Tensor zeros(const Shape& shape, DType type = DType::float32);
  static Tensor full(const Shape& shape, float value);
  static Tensor from(const std::vector<float>& values, const Shape& shape);
  static Tensor labels(const std::vector<Index>& values);

  /// A view of memory that someone else owns; `owner`, if given, is kept alive with the view.
  static Tensor borrow(void* data, const Shape& shape, DType type = DType::float32,
                       std::shared_ptr<void> owner = nullptr);

  const Shape& shape() const { return shape_; }
  DType dtype() const { return dtype_; }
  Index size() const { return shape_.size(); }
  std::size_t bytes() const { return static_cast<std::size_t>(size()) * bytes_of(dtype_); }
  bool defined() const { return data_ != nullptr; }

  float* data() { return static_cast<float*>(data_); }
  const float* data() const { return static_cast<const float*>(data_); }
  Index* labels() { return static_cast<Index*>(data_); }
  const Index* labels() const { return static_cast<const Index*>(data_); }
  void* raw() { return data_; }
  const void* raw() const { return data_; }
  const std::shared_ptr<void>& owner() const { return owner_; }

  /// The same memory under another shape of the same size.
  Tensor reshape(const Shape& shape) const;
  /// Entries [begin, end) of the first axis, sharing memory.
  Tensor rows(Index begin, Index end) const;
  Tensor clone() const;
  void fill(float value);
  /// Point at other memory of the same shape and type; used by plans, which keep Tensors ready-made.
  void rebind(void* data) { data_ = data; }

 private:
  std::shared_ptr<void> owner_;
  void* data_ = nullptr;
  Shape shape_;
  DType dtype_ = DType::float32;
};

}  // namespace deepnet
