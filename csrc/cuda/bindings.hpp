// Python's door to the GPU kernels, or to their emulation.
#pragma once

#include <pybind11/pybind11.h>

namespace cmik {

void bind_cuda(pybind11::module_& module);

}  // namespace cmik
