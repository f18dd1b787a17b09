#include <deepnet/trace.hpp>

#include <cstring>

#include "../ops/layout.hpp"

namespace deepnet {

Trace::Trace(Layer* layer, const Shape& input, const Shape& output, void* cache, std::size_t bytes,
             std::shared_ptr<void> memory, bool lanes)
    : layer_(layer),
      input_(input),
      output_(output),
      bytes_(bytes),
      lanes_(lanes),
      cache_(cache),
      memory_(std::move(memory)) {}

void Trace::read(const std::function<void(void* cache)>& look) const {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!lanes_) return look(cache_);
  Tensor in_order(output_);  // whatever the type: moved, not computed with
  from_lanes(output_, static_cast<const float*>(cache_), in_order.data());
  look(in_order.raw());
}

void Trace::detach() {
  std::lock_guard<std::mutex> lock(mutex_);
  Tensor copy({static_cast<Index>((bytes_ + sizeof(float) - 1) / sizeof(float))});
  std::memcpy(copy.raw(), cache_, bytes_);
  cache_ = copy.raw();
  memory_ = copy.owner();
}

}  // namespace deepnet
