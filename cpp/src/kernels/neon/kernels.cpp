// All kernels for one ISA; the object's only exported symbol is this table.
#include "vec.hpp"

#include "../all.inl"

extern const KernelTable deepnet_kernels_neon;
const KernelTable deepnet_kernels_neon = {
    "neon", W, GEMM_MR, GEMM_NV * W, streaming_stores,
#define DEEPNET_KERNEL(result, name, arguments) name,
#include "../kernels.def"
#undef DEEPNET_KERNEL
};
