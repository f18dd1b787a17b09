// The kernels of the instruction set in use; chosen once, at the first call.
#pragma once

#include <vector>

#include "kernels/kernels.hpp"

namespace deepnet {

/// Throws ValueError where DEEPNET_ISA asks for what this machine or build lacks.
const KernelTable& kernels();

/// Tables that this build has and this machine can run, the best one first.
std::vector<const KernelTable*> available_kernels();

}  // namespace deepnet
