// Python's door to the native core: pointers and sizes in, exceptions out. Checks are the caller's.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <new>
#include <stdexcept>

#include "chip_dict.hpp"
#include "cmikernels.h"
#include "cuda/plan.hpp"
#include "problem_of.hpp"
#if defined(CMIK_CUDA)
#include "cuda/bindings.hpp"
#endif

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;

template <class X>
X* at(Address address) {
  return reinterpret_cast<X*>(address);
}

// One call, in a dict; see problem_of.hpp.
void cpu_cmi(const py::dict& call, int threads) {
  cmik_problem problem = cmik::problem_of(call);
  problem.threads = threads;
  int status;
  {
    py::gil_scoped_release release;
    status = cmik_cpu_run(&problem);
  }
  if (status == CMIK_OUT_OF_MEMORY) throw std::bad_alloc();
  if (status != CMIK_OK) throw std::runtime_error("cmikernels: unknown status of the CPU kernel");
}

// One call of norm_act_pool, in a dict by the names of cmik_norm_call.
void cpu_norm(const py::dict& call, int order) {
  static const cmik::Field<cmik_norm_call> fields[] = {
      CMIK_FIELD(cmik_norm_call, x),
      CMIK_FIELD(cmik_norm_call, residual),
      CMIK_FIELD(cmik_norm_call, weight),
      CMIK_FIELD(cmik_norm_call, bias),
      CMIK_FIELD(cmik_norm_call, grad),
      CMIK_FIELD(cmik_norm_call, x_cotangent),
      CMIK_FIELD(cmik_norm_call, residual_cotangent),
      CMIK_FIELD(cmik_norm_call, weight_cotangent),
      CMIK_FIELD(cmik_norm_call, bias_cotangent),
      CMIK_FIELD(cmik_norm_call, out),
      CMIK_FIELD(cmik_norm_call, x_grad),
      CMIK_FIELD(cmik_norm_call, weight_grad),
      CMIK_FIELD(cmik_norm_call, bias_grad),
      CMIK_FIELD(cmik_norm_call, residual_grad),
      CMIK_FIELD(cmik_norm_call, grad_grad),
      CMIK_FIELD(cmik_norm_call, rows),
      CMIK_FIELD(cmik_norm_call, channels),
      CMIK_FIELD(cmik_norm_call, height),
      CMIK_FIELD(cmik_norm_call, width),
      CMIK_FIELD(cmik_norm_call, groups),
      CMIK_FIELD(cmik_norm_call, sets),
      CMIK_FIELD(cmik_norm_call, slope),
      CMIK_FIELD(cmik_norm_call, eps),
      CMIK_FIELD(cmik_norm_call, pool),
      CMIK_FIELD(cmik_norm_call, channels_last),
      CMIK_FIELD(cmik_norm_call, dtype),
      CMIK_FIELD(cmik_norm_call, threads),
  };
  cmik_norm_call given{};
  cmik::read_fields(call, fields, given);
  py::gil_scoped_release release;
  if (cmik_cpu_norm(&given, order) == CMIK_OUT_OF_MEMORY) throw std::bad_alloc();
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

// How the GPU kernels would compute a call on a chip (see chip_dict.hpp); `kind` by name.
py::dict cuda_plan(int64_t rows, int64_t classes, int64_t largest, int64_t channels,
                   int element_bytes, bool ragged, bool aligned, bool given, bool weighted,
                   const py::dict& chip) {
  const cmik::Shape shape{rows,   classes, largest, channels, element_bytes,
                          ragged, aligned, given,   weighted};
  const cmik::Plan plan = cmik::make_plan(shape, cmik::chip_from(chip));
  constexpr const char* kinds[] = {"classes", "slots", "wide", "tiny"};
  constexpr const char* forms[] = {"full", "packed", "any"};
  py::dict result;
  result["kind"] = kinds[int(plan.kind)];
  result["form"] = forms[int(plan.form)];
  result["packs"] = cmik::thread_packs(element_bytes, plan.form);
  result["lanes"] = plan.lanes;
  result["threads"] = plan.threads;
  result["cluster"] = plan.cluster;
  result["stages"] = plan.stages;
  result["share_rows"] = plan.share_rows;
  result["rows_per_slot"] = plan.rows_per_slot;
  result["blocks"] = plan.blocks;
  result["slots"] = plan.slots;
  result["lead"] = plan.lead;
  result["read_once"] = plan.read_once;
  result["shared_bytes"] = plan.shared_bytes;
  result["parts"] = plan.parts;
  result["workspace_bytes"] = plan.workspace_bytes;
  return result;
}

// What every plan keeps to, for those who check plans or predict times; see csrc/cuda/plan.hpp.
py::dict cuda_constants() {
  py::dict result;
  result["pack_bytes"] = cmik::kPackBytes;
  result["most_threads"] = cmik::kMostThreads;
  result["most_stages"] = cmik::kMostStages;
  result["processor_threads"] = cmik::kProcessorThreads;
  result["reserved_bytes"] = cmik::kReservedBytes;
  result["few_rows_per_slot"] = cmik::kFewRowsPerSlot;
  result["fewest_rows_per_slot"] = cmik::kFewestRowsPerSlot;
  result["column_cost"] = cmik::kColumnCost;
  result["remote_cost"] = cmik::kRemoteCost;
  result["sum_bytes"] = cmik::kSumBytes;
  return result;
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
  module.def("cpu_norm", &cpu_norm, "One call of norm_act_pool; see csrc/include/cmikernels.h.");
  module.def("label_bounds", &label_bounds, "Smallest and largest label.");
  module.def("index_labels", &index_labels, "Rows by class; whether they were sorted already.");
  module.def("cuda_plan", &cuda_plan, py::kw_only(), py::arg("rows"), py::arg("classes"),
             py::arg("largest"), py::arg("channels"), py::arg("element_bytes"), py::arg("ragged"),
             py::arg("aligned"), py::arg("given"), py::arg("weighted"), py::arg("chip"),
             "How the GPU kernels would compute a call on a chip; see csrc/cuda/plan.hpp.");
  module.def("cuda_constants", &cuda_constants, "What every plan keeps to; csrc/cuda/plan.hpp.");
  module.def("cpu_info", &cpu_info, "Instruction set and threads of the CPU kernel.");
#if defined(CMIK_CUDA)
  cmik::bind_cuda(module);
#endif
}
