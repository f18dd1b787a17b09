#include <deepnet/trace.hpp>

#include <cstring>

namespace deepnet {

Trace::Trace(Layer* layer, const Shape& input, const Shape& output, void* cache, std::size_t bytes,
             std::shared_ptr<void> memory)
    : layer_(layer), input_(input), output_(output), bytes_(bytes), cache_(cache), memory_(std::move(memory)) {}

void Trace::read(const std::function<void(void* cache)>& look) const {
  std::lock_guard<std::mutex> lock(mutex_);
  look(cache_);
}

void Trace::detach() {
  std::lock_guard<std::mutex> lock(mutex_);
  Tensor copy({static_cast<Index>((bytes_ + sizeof(float) - 1) / sizeof(float))});
  std::memcpy(copy.raw(), cache_, bytes_);
  cache_ = copy.raw();
  memory_ = copy.owner();
}

}  // namespace deepnet
