// Python's door to the GPU kernels: pointers and sizes in, exceptions out. Checks are the caller's.
#include "bindings.hpp"

#include <stdexcept>

#include "chip_dict.hpp"
#include "cmikernels.h"
#include "plan.hpp"
#include "problem_of.hpp"

namespace py = pybind11;

namespace {

void check(int status) {
  if (status != CMIK_OK)
    throw std::runtime_error(std::string("CUDA kernels of cmikernels: ") +
                             cmik_cuda_message(status));
}

// One call, in two dicts; see problem_of.hpp. Returns 0, or the bytes of workspace that it needs
// where it was given fewer and did nothing.
int64_t cuda_cmi(const py::dict& problem, const py::dict& besides) {
  static const cmik::Field<cmik_cuda_call> fields[] = {
      CMIK_FIELD(cmik_cuda_call, workspace), CMIK_FIELD(cmik_cuda_call, workspace_bytes),
      CMIK_FIELD(cmik_cuda_call, ticket),    CMIK_FIELD(cmik_cuda_call, largest),
      CMIK_FIELD(cmik_cuda_call, stream),    CMIK_FIELD(cmik_cuda_call, device),
      CMIK_FIELD(cmik_cuda_call, unless_one)};
  cmik_cuda_call call{};
  call.problem = cmik::problem_of(problem);
  cmik::read_fields(besides, fields, call);
  int status;
  {
    py::gil_scoped_release release;
    status = cmik_cuda_run(&call);
  }
  int64_t needed = 0;
  if (status == CMIK_SMALL_WORKSPACE) status = cmik_cuda_workspace(&call, &needed);
  check(status);
  return needed;
}

py::dict cuda_info() {
  py::dict info;
  info["architectures"] = CMIK_ARCHITECTURES;
  info["driver"] = cmik_cuda_driver_version();
  info["runtime"] = cmik_cuda_runtime_version();
  return info;
}

py::dict cuda_chip(int device) {
  cmik_cuda_chip chip;
  check(cmik_cuda_chip_of(device, &chip));
  return cmik::dict_from(chip);
}

}  // namespace

void cmik::bind_cuda(py::module_& module) {
  module.def("cuda_cmi", &cuda_cmi, "One call of the GPU kernels; see csrc/include/cmikernels.h.");
  module.def("cuda_chip", &cuda_chip, "What plans for a device depend on.");
  module.def("cuda_info", &cuda_info, "What the GPU kernels were built for, and the driver.");
}
