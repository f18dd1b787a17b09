// Shape and Tensor: C-contiguous arrays, owned (64-byte aligned) or borrowed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

namespace deepnet {

/// Sizes, positions and class labels.
using Index = std::int64_t;

/// The sizes of an array along its axes, at most 8 of them, kept in place (no allocation).
class Shape {
 public:
  static constexpr int max_rank = 8;

  /// That of a single number, ().
  Shape() = default;
  /// ShapeError for more than max_rank sizes.
  Shape(std::initializer_list<Index> sizes);
  /// The same.
  explicit Shape(const std::vector<Index>& sizes);

  /// Number of axes.
  int rank() const { return rank_; }
  /// The size along an axis in [-rank, rank), not checked; axis -1 is the last.
  Index operator[](int axis) const { return sizes_[axis < 0 ? axis + rank_ : axis]; }
  Index& operator[](int axis) { return sizes_[axis < 0 ? axis + rank_ : axis]; }
  /// Iterates over the sizes, first axis first.
  const Index* begin() const { return sizes_; }
  const Index* end() const { return sizes_ + rank_; }
  /// Adds a last axis; ShapeError beyond max_rank.
  void push_back(Index size);

  /// Number of elements. Throws ShapeError if it, times 8 bytes, does not fit an Index.
  Index size() const;
  /// Product of the sizes of axes [first, last).
  Index size(int first, int last) const;

  /// Whether ranks and all sizes are equal.
  bool operator==(const Shape& other) const;
  bool operator!=(const Shape& other) const { return !(*this == other); }

  /// "(8, 1, 28, 28)"
  std::string str() const;

 private:
  Index sizes_[max_rank] = {};
  int rank_ = 0;
};

/// float32 for all that is computed with, int64 for class labels.
enum class DType : std::uint8_t { float32, int64 };

/// Of one element.
std::size_t bytes_of(DType type);
/// "float32" or "int64"
const char* name_of(DType type);

/// A C-contiguous array. Copying a Tensor shares its memory, as in NumPy; clone() copies the elements.
class Tensor {
 public:
  /// Undefined: no memory.
  Tensor() = default;

  /// New memory, 64-byte aligned, not initialised. ShapeError for sizes that overflow, ValueError where memory is out.
  explicit Tensor(const Shape& shape, DType type = DType::float32);
  /// New memory, all 0.
  static Tensor zeros(const Shape& shape, DType type = DType::float32);
  /// New memory, float32, all `value`.
  static Tensor full(const Shape& shape, float value);
  /// A copy of the values, row-major; ShapeError where their number is not that of the shape.
  static Tensor from(const std::vector<float>& values, const Shape& shape);
  /// A copy of class labels: int64 of shape (N,).
  static Tensor labels(const std::vector<Index>& values);

  /// A view of memory that someone else owns; `owner`, if given, is kept alive with the view.
  static Tensor borrow(void* data, const Shape& shape, DType type = DType::float32,
                       std::shared_ptr<void> owner = nullptr);

  /// Sizes along the axes; () where undefined.
  const Shape& shape() const { return shape_; }
  /// Type of the elements.
  DType dtype() const { return dtype_; }
  /// Number of elements.
  Index size() const { return shape_.size(); }
  /// Of all elements together.
  std::size_t bytes() const { return static_cast<std::size_t>(size()) * bytes_of(dtype_); }
  /// Whether there is memory.
  bool defined() const { return data_ != nullptr; }

  /// The elements, row-major; only for float32, which is not checked.
  float* data() { return static_cast<float*>(data_); }
  const float* data() const { return static_cast<const float*>(data_); }
  /// The elements, row-major; only for int64, which is not checked.
  Index* labels() { return static_cast<Index*>(data_); }
  const Index* labels() const { return static_cast<const Index*>(data_); }
  /// The elements' memory, whatever their type.
  void* raw() { return data_; }
  const void* raw() const { return data_; }
  /// What keeps the memory alive; null for a borrowed view without an owner.
  const std::shared_ptr<void>& owner() const { return owner_; }

  /// The same memory under another shape; ShapeError unless of the same size.
  Tensor reshape(const Shape& shape) const;
  /// Entries [begin, end) of the first axis, sharing memory; ShapeError where they are not there.
  Tensor rows(Index begin, Index end) const;
  /// The same elements in new memory.
  Tensor clone() const;
  /// Sets all elements; TypeError unless float32.
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
