// Large outputs of kernels that do little else than move them.
//
// A store to a line that is in no cache reads the line first. Of an output larger than the caches nothing is left there
// when it is read again: so it is made piece by piece in the first-level cache and moved to memory by stores that go
// past the caches (non-temporal), which read nothing.
#pragma once

#include <deepnet/tensor.hpp>

#include "../dispatch.hpp"
#include "../parallel.hpp"

namespace deepnet {

/// Whether an output of `floats` is so large.
bool is_streamed(Index floats);

/// make(to) makes `floats` at `to`: at `out`, or where they are moved from to `out`.
template <class Make>
void make_piece(bool streamed, Index floats, float* out, Make make) {
  if (!streamed) return make(out);
  float* const piece = thread_scratch(Scratch::streamed, static_cast<std::size_t>(floats));
  make(piece);
  kernels().stream(floats, piece, out);
}

}  // namespace deepnet
