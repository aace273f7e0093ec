// The kernels of one features' type: built once for each, with CMIK_FEATURES naming it.
#include "classes.cuh"
#include "runtime.cuh"
#include "slots.cuh"
#include "values.cuh"
#include "wide.cuh"

#define CMIK_CONCAT_(a, b) a##b
#define CMIK_CONCAT(a, b) CMIK_CONCAT_(a, b)

namespace cmik {
namespace gpu {

using Float32 = float;
using Float64 = double;
using S = CMIK_FEATURES;

template <class Kernel>
Kernel of_form(const Task& task, Kernel full, Kernel packed, Kernel any) {
  return task.plan.form == Form::full ? full : task.plan.form == Form::packed ? packed : any;
}

}  // namespace gpu

const GpuKernels& CMIK_CONCAT(gpu_kernels_, CMIK_FEATURES)() {
  using namespace gpu;
  static const GpuKernels kernels = {
      [](const Launch& l, const Task& t) {
        const auto kernel = of_form(t, class_kernel<S, Form::full>, class_kernel<S, Form::packed>,
                                    class_kernel<S, Form::any>);
        return start(kernel, l, t);
      },
      [](const Launch& l, const Task& t, bool second) {
        const auto kernel =
            of_form(t, slot_sums_kernel<S, Form::full>, slot_sums_kernel<S, Form::packed>,
                    slot_sums_kernel<S, Form::any>);
        return start(kernel, l, t, second);
      },
      [](const Launch& l, const Task& t) {
        const auto kernel =
            of_form(t, slot_rows_kernel<S, Form::full>, slot_rows_kernel<S, Form::packed>,
                    slot_rows_kernel<S, Form::any>);
        return start(kernel, l, t);
      },
      [](const Launch& l, const Task& t, bool second) {
        return start(wide_sums_kernel<S>, l, t, second);
      },
      [](const Launch& l, const Task& t) { return start(wide_rows_kernel<S>, l, t); },
      [](const Launch& l, const Task& t, bool second) {
        return start(class_means_kernel<S>, l, t, second);
      },
      [](const Launch& l, const Task& t) { return start(total_kernel<S>, l, t); },
      [](const Launch& l, const Task& t) { return start(class_values_kernel<S>, l, t); },
      [](Chip& chip) { return complete_chip(class_kernel<S, Form::full>, chip); },
  };
  return kernels;
}

}  // namespace cmik
