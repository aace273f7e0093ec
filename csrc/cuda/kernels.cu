// The kernels of one features' type: built once for each, with CMIK_FEATURES naming it.
#include "classes.cuh"
#include "runtime.cuh"
#include "slots.cuh"
#include "tiny.cuh"
#include "values.cuh"
#include "wide.cuh"

#define CMIK_CONCAT_(a, b) a##b
#define CMIK_CONCAT(a, b) CMIK_CONCAT_(a, b)

namespace cmik {
namespace gpu {

using Float32 = float;
using Float64 = double;
using S = CMIK_FEATURES;

// One of the forms and teams that a plan can have.
template <class Kernel>
struct Choice {
  Kernel full8, full16, full32, packed, packed_warps, any, any_warps;

  Kernel of(const Plan& plan) const {
    if (plan.form == Form::full)
      return plan.lanes == 8 ? full8 : plan.lanes == 16 ? full16 : full32;
    const bool warps = plan.lanes > kWarpThreads;
    if (plan.form == Form::packed) return warps ? packed_warps : packed;
    return warps ? any_warps : any;
  }
};
#define CMIK_CHOICE(kernel)                                                         \
  Choice<decltype(&kernel<S, Form::any, Team::lanes>)> {                            \
    kernel<S, Form::full, Team::lanes8>, kernel<S, Form::full, Team::lanes16>,      \
        kernel<S, Form::full, Team::lanes32>, kernel<S, Form::packed, Team::lanes>, \
        kernel<S, Form::packed, Team::warps>, kernel<S, Form::any, Team::lanes>,    \
        kernel<S, Form::any, Team::warps>                                           \
  }

}  // namespace gpu

const GpuKernels& CMIK_CONCAT(gpu_kernels_, CMIK_FEATURES)() {
  using namespace gpu;
  static const GpuKernels kernels = {
      [](const Launch& l, const Task& t) {
        return start(CMIK_CHOICE(class_kernel).of(t.plan), l, t);
      },
      [](const Launch& l, const Task& t) {
        return start(
            t.plan.lanes == 4 ? tiny_kernel<S, Team::lanes4> : tiny_kernel<S, Team::lanes8>, l, t);
      },
      [](const Launch& l, const Task& t) {
        return start(CMIK_CHOICE(slots_kernel).of(t.plan), l, t);
      },
      [](const Launch& l, const Task& t) { return start(wide_kernel<S>, l, t); },
      [](const Launch& l, const Task& t) { return start(class_values_kernel<S>, l, t); },
      [](Chip& chip) { return complete_chip(class_kernel<S, Form::full, Team::lanes16>, chip); },
  };
  return kernels;
}

}  // namespace cmik
