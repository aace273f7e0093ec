// The GPU kernels compiled for the emulator: with CMIK_FEATURES those of one features' type,
// without it the launcher and a Python module of its own.
#if defined(CMIK_FEATURES)
#include "../kernels.cu"
#else
#include "../bindings.hpp"
#include "../launch.cu"
#include "chip_dict.hpp"

namespace py = pybind11;

PYBIND11_MODULE(_emulated, module) {
  module.doc() = "The GPU kernels of cmikernels on an emulated GPU, for tests.";
  cmik::bind_cuda(module);
  module.def(
      "emulate",
      [](uint64_t seed, const py::object& chip) {
        cmik::known_plans().clear();
        cmik::emulated_chip() =
            chip.is_none() ? cmik::kTinyChip : cmik::chip_from(chip.cast<py::dict>());
        cmik::emulator::seed() = seed;
        cmik::emulator::bulk_copies() = cmik::emulated_chip().capability >= 90;
      },
      py::kw_only(), py::arg("seed") = 0, py::arg("chip") = py::none(),
      "Describe the GPU to be emulated, and the order in which its threads take turns.");
  module.def(
      "leave_out_kernels", [](bool without) { cmik::without_kernels() = without; },
      "Whether launches do nothing from now on.");
  module.def("launch_count", [] { return cmik::launch_count(); }, "Kernels started so far.");
}
#endif
