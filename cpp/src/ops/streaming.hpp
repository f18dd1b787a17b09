// Large outputs of kernels that do little else than move them.
//
// A store to a line that is in no cache reads the line first. Of an output larger than the caches nothing is left there
// when it is read again: so it is made piece by piece in the first-level cache and moved to memory by stores that go
// past the caches (non-temporal), which read nothing. A 1 x 1 convolution, which has products to wait behind, was
// slower so: its writes filled the buffers that the next products' operands come through.
#pragma once

#include <deepnet/tensor.hpp>

#include "../dispatch.hpp"
#include "../parallel.hpp"

namespace deepnet {

/// Whether an output of `floats` is so large.
bool is_streamed(Index floats);

/// Writes pieces of such an output, or of one that is not. What was moved others see when the writer is gone.
class PieceWriter {
 public:
  explicit PieceWriter(bool streamed) : streamed_(streamed) {}
  PieceWriter(const PieceWriter&) = delete;
  PieceWriter& operator=(const PieceWriter&) = delete;
  ~PieceWriter() {
    if (streamed_) kernels().streaming_fence();
  }

  /// make(to) makes `floats` at `to`: at `out`, or where they are moved from to `out`.
  template <class Make>
  void make(Index floats, float* out, Make make) const {
    if (!streamed_) return make(out);
    float* const piece = thread_scratch(Scratch::streamed, static_cast<std::size_t>(floats));
    make(piece);
    kernels().stream(floats, piece, out);
  }

 private:
  bool streamed_;
};

}  // namespace deepnet
