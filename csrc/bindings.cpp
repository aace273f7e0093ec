// Python's door to the native core: pointers and sizes in, exceptions out. Checks are the caller's.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <new>
#include <stdexcept>

#include "cmikernels.h"

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;

template <class X>
X* at(Address address) {
  return reinterpret_cast<X*>(address);
}

void cpu_cmi(Address features, int dtype, int64_t rows, int64_t channels, int64_t row_stride,
             int64_t channel_stride, int64_t classes, Address order, Address offsets,
             Address centroids, Address row_weights, double temperature, double weight,
             int reduction, Address value, Address gradient, Address mean_probabilities,
             int threads) {
  const cmik_problem problem{at<const void>(features),
                             rows,
                             channels,
                             row_stride,
                             channel_stride,
                             classes,
                             at<const int64_t>(order),
                             at<const int64_t>(offsets),
                             at<const void>(centroids),
                             at<const void>(row_weights),
                             temperature,
                             weight,
                             at<void>(value),
                             at<void>(gradient),
                             at<void>(mean_probabilities),
                             dtype,
                             reduction,
                             threads};
  int status;
  {
    py::gil_scoped_release release;
    status = cmik_cpu_run(&problem);
  }
  if (status == CMIK_OUT_OF_MEMORY) throw std::bad_alloc();
  if (status != CMIK_OK) throw std::runtime_error("cmikernels: unknown status of the CPU kernel");
}

py::tuple label_bounds(Address labels, int64_t rows) {
  int64_t low, high;
  cmik_label_bounds(at<const int64_t>(labels), rows, &low, &high);
  return py::make_tuple(low, high);
}

bool index_labels(Address labels, int64_t rows, int64_t classes, Address offsets, Address order) {
  py::gil_scoped_release release;
  return cmik_index_labels(at<const int64_t>(labels), rows, classes, at<int64_t>(offsets),
                           at<int64_t>(order)) == 1;
}

py::dict cpu_info() {
  py::dict info;
  info["isa"] = cmik_cpu_isa();
  info["threading"] = cmik_cpu_threading();
  return info;
}

}  // namespace

PYBIND11_MODULE(_native, module, py::mod_gil_not_used()) {
  module.doc() = "Native kernels of cmikernels. Addresses are integers; nothing is checked.";
  module.def("cpu_cmi", &cpu_cmi, "One call of the CPU kernel; see csrc/include/cmikernels.h.");
  module.def("label_bounds", &label_bounds, "Smallest and largest label.");
  module.def("index_labels", &index_labels, "Rows by class; whether they were sorted already.");
  module.def("cpu_info", &cpu_info, "Instruction set and threads of the CPU kernel.");
}
