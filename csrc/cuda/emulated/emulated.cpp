// The GPU kernels compiled for the emulator: with CMIK_FEATURES those of one features' type,
// without it the launcher and a Python module of its own.
#if defined(CMIK_FEATURES)
#include "../kernels.cu"
#else
#include "../bindings.hpp"
#include "../launch.cu"

namespace py = pybind11;

PYBIND11_MODULE(_emulated, module) {
  module.doc() = "The GPU kernels of cmikernels on an emulated GPU, for tests.";
  cmik::bind_cuda(module);
  module.def(
      "emulate",
      [](uint64_t seed, int capability, int processors, int largest_cluster, int clusters_of_16,
         int64_t block_bytes, int64_t processor_bytes, int64_t cache_bytes) {
        cmik::emulator::seed() = seed;
        cmik::emulator::bulk_copies() = capability >= 90;
        cmik::emulated_chip() = {capability,  processors,      largest_cluster, clusters_of_16,
                                 block_bytes, processor_bytes, cache_bytes};
      },
      py::kw_only(), py::arg("seed") = 0, py::arg("capability") = 90, py::arg("processors") = 4,
      py::arg("largest_cluster") = 16, py::arg("clusters_of_16") = 1,
      py::arg("block_bytes") = 24 << 10, py::arg("processor_bytes") = 32 << 10,
      py::arg("cache_bytes") = 256 << 10,
      "Describe the GPU to be emulated, and the order in which its threads take turns.");
}
#endif
