// Every kernel; included once per ISA, after that ISA's vec.hpp.
// Nothing here may be shared between ISA objects: all of it lies in the unnamed namespace.
#include "kernels.hpp"

#include "vec.inl"

#include "segments.inl"

#include "math.inl"  // after segments.inl, whose tables it uses

#include "activation.inl"
#include "elementwise.inl"
#include "gemm.inl"
#include "loss.inl"
#include "optimizer.inl"
#include "pool.inl"
#include "random.inl"
#include "recurrent.inl"
#include "softmax.inl"

#include "conv.inl"  // after gemm.inl, whose panels it fills

#include "winograd.inl"

#include "depthwise.inl"  // after conv.inl, whose lanes_inside it uses

#include "lane_depthwise.inl"  // after depthwise.inl, whose is_dense_3x3 it uses

#include "lanes.inl"  // after gemm.inl, whose tiles of rows it shares, and pool.inl, whose windows
