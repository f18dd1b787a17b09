#include <deepnet/tensor.hpp>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include <deepnet/error.hpp>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace deepnet {
namespace {

constexpr std::size_t alignment = 64;
// From here on, memory is aligned for huge pages and asks for them: channels of an image lie a page or more apart, so
// that with small pages nearly every channel costs an address translation.
constexpr std::size_t huge_page = std::size_t{2} << 20, huge_from = 2 * huge_page;

// Of small tensors: malloc's own alignment made larger by hand is several times as fast as asking for it.
constexpr std::size_t small = 4096;
// From here on malloc may give memory back to the system, so that it has to be asked for again.
constexpr std::size_t kept_from = std::size_t{64} << 10;

std::align_val_t alignment_of(std::size_t bytes) {
  return std::align_val_t{bytes >= huge_from ? huge_page : alignment};
}

// Blocks that were given back, for the next tensor of about that size: fresh memory costs a page fault every page,
// which takes longer than what an element-wise layer does with it.
class BlockCache {
 public:
  static BlockCache& instance() {
    static BlockCache& cache = *new BlockCache;  // never destroyed: tensors may outlive main()
    return cache;
  }

  // A block of `bytes` or a little more, or null.
  void* take(std::size_t bytes) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock()) return nullptr;
    for (auto it = blocks_.rbegin(); it != blocks_.rend(); ++it) {
      if (it->bytes < bytes || it->bytes - bytes > bytes / 8 || alignment_of(it->bytes) != alignment_of(bytes))
        continue;
      void* const memory = it->memory;
      total_ -= it->bytes;
      blocks_.erase(std::next(it).base());
      return memory;
    }
    return nullptr;
  }

  void give(void* memory, std::size_t bytes) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock() || bytes > most_bytes) return release({memory, bytes});
    for (; total_ + bytes > most_bytes || blocks_.size() == most_blocks; blocks_.erase(blocks_.begin())) {
      total_ -= blocks_.front().bytes;
      release(blocks_.front());
    }
    blocks_.push_back({memory, bytes});
    total_ += bytes;
  }

  void clear() {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock()) return;
    for (const Block& block : blocks_) release(block);
    blocks_.clear();
    total_ = 0;
  }

 private:
  struct Block {
    void* memory;
    std::size_t bytes;
  };
  static constexpr std::size_t most_bytes = std::size_t{128} << 20, most_blocks = 64;
  static void release(const Block& block) { ::operator delete(block.memory, alignment_of(block.bytes)); }

  std::mutex mutex_;  // only tried: a child process may have inherited it locked
  std::vector<Block> blocks_;
  std::size_t total_ = 0;
};

void* allocate_block(std::size_t bytes) {
  BlockCache& cache = BlockCache::instance();
  if (void* memory = cache.take(bytes)) return memory;
  void* memory = ::operator new(bytes, alignment_of(bytes), std::nothrow);
  if (memory == nullptr) {
    cache.clear();
    memory = ::operator new(bytes, alignment_of(bytes), std::nothrow);
  }
#if defined(__linux__)
  // A wish: where it is refused, pages are small.
  if (memory != nullptr && bytes >= huge_from) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  return memory;
}

std::shared_ptr<void> allocate(std::size_t bytes) {
  const auto too_much = [&] {
    return ValueError("[Tensor] not enough memory for " + std::to_string(bytes) + " bytes");
  };
  // Rounded up so that a vector load at the end stays inside; never 0, so that data() is never null.
  std::size_t rounded = (bytes / alignment + 1) * alignment;
  if (bytes <= small) {
    std::size_t room = rounded + alignment;
    const std::shared_ptr<void> memory(std::malloc(room), std::free);
    if (memory == nullptr) throw too_much();
    void* aligned = memory.get();
    return {memory, std::align(alignment, rounded, aligned, room)};
  }
  if (bytes >= kept_from) {
    void* const memory = allocate_block(rounded);
    if (memory == nullptr) throw too_much();
    return {memory, [rounded](void* p) { BlockCache::instance().give(p, rounded); }};
  }
  constexpr std::align_val_t align{alignment};
  void* const memory = ::operator new(rounded, align, std::nothrow);
  if (memory == nullptr) throw too_much();
  return {memory, [](void* p) { ::operator delete(p, align); }};
}

}  // namespace

Shape::Shape(std::initializer_list<Index> sizes) {
  for (Index size : sizes) push_back(size);
}

Shape::Shape(const std::vector<Index>& sizes) {
  for (Index size : sizes) push_back(size);
}

void Shape::push_back(Index size) {
  if (rank_ == max_rank) {
    throw ShapeError("[Shape] expected at most " + std::to_string(max_rank) + " axes, got more");
  }
  sizes_[rank_++] = size;
}

Index Shape::size() const { return size(0, rank_); }

Index Shape::size(int first, int last) const {
  constexpr Index limit = std::numeric_limits<Index>::max() / 8;
  Index product = 1;
  bool overflow = false;
  for (int i = first; i < last; ++i) {
    if (sizes_[i] == 0) return 0;
    if (sizes_[i] < 0) throw ShapeError("[Shape] expected sizes >= 0, got " + str());
    overflow = overflow || __builtin_mul_overflow(product, sizes_[i], &product) || product > limit;
  }
  if (overflow) throw ShapeError("[Shape] an array of shape " + str() + " is too large to address");
  return product;
}

bool Shape::operator==(const Shape& other) const {
  return rank_ == other.rank_ && std::equal(begin(), end(), other.begin());
}

std::string Shape::str() const {
  std::string text = "(";
  for (int i = 0; i < rank_; ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(sizes_[i]);
  }
  return text + (rank_ == 1 ? ",)" : ")");
}

std::size_t bytes_of(DType type) { return type == DType::float32 ? sizeof(float) : sizeof(Index); }

const char* name_of(DType type) { return type == DType::float32 ? "float32" : "int64"; }

Tensor::Tensor(const Shape& shape, DType type) : shape_(shape), dtype_(type) {
  owner_ = allocate(bytes());
  data_ = owner_.get();
}

Tensor Tensor::zeros(const Shape& shape, DType type) {
  Tensor t(shape, type);
  std::memset(t.data_, 0, t.bytes());
  return t;
}

Tensor Tensor::full(const Shape& shape, float value) {
  Tensor t(shape);
  t.fill(value);
  return t;
}

Tensor Tensor::from(const std::vector<float>& values, const Shape& shape) {
  if (static_cast<Index>(values.size()) != shape.size()) {
    throw ShapeError("[Tensor] expected " + std::to_string(shape.size()) + " values for shape " + shape.str() +
                     ", got " + std::to_string(values.size()));
  }
  Tensor t(shape);
  std::copy(values.begin(), values.end(), t.data());
  return t;
}

Tensor Tensor::labels(const std::vector<Index>& values) {
  Tensor t({static_cast<Index>(values.size())}, DType::int64);
  std::copy(values.begin(), values.end(), t.labels());
  return t;
}

Tensor Tensor::borrow(void* data, const Shape& shape, DType type, std::shared_ptr<void> owner) {
  Tensor t;
  t.owner_ = std::move(owner);
  t.data_ = data;
  t.shape_ = shape;
  t.dtype_ = type;
  return t;
}

Tensor Tensor::reshape(const Shape& shape) const {
  if (shape.size() != size()) {
    throw ShapeError("[Tensor] cannot give " + shape_.str() + " the shape " + shape.str() + ": the sizes differ");
  }
  Tensor t = *this;
  t.shape_ = shape;
  return t;
}

Tensor Tensor::rows(Index begin, Index end) const {
  if (shape_.rank() == 0 || begin < 0 || end < begin || end > shape_[0]) {
    throw ShapeError("[Tensor] rows [" + std::to_string(begin) + ", " + std::to_string(end) + ") do not lie in " +
                     shape_.str());
  }
  Tensor t = *this;
  t.shape_[0] = end - begin;
  t.data_ =
      static_cast<char*>(data_) + static_cast<std::size_t>(begin * shape_.size(1, shape_.rank())) * bytes_of(dtype_);
  return t;
}

Tensor Tensor::clone() const {
  if (data_ == nullptr) return *this;
  Tensor t(shape_, dtype_);
  std::memcpy(t.data_, data_, bytes());
  return t;
}

void Tensor::fill(float value) {
  if (dtype_ != DType::float32)
    throw TypeError("[Tensor] expected float32 to fill, got " + std::string(name_of(dtype_)));
  std::fill_n(data(), size(), value);
}

}  // namespace deepnet
