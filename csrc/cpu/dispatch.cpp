// Which of the kernels built in can run on this processor; asked once. CMIKERNELS_CPU_ISA may name
// a lesser one than the best, for tests and for comparisons.
#include <cstdlib>
#include <cstring>

#include "job.hpp"
#include "norm.hpp"

namespace cmik {

const Kernels& kernels_baseline(int dtype);
const NormKernels& norm_kernels_baseline(int dtype);
#if defined(CMIK_X86)
const Kernels& kernels_avx2(int dtype);
const Kernels& kernels_avx512(int dtype);
const NormKernels& norm_kernels_avx2(int dtype);
const NormKernels& norm_kernels_avx512(int dtype);
#endif

namespace {

struct Isa {
  const char* name;
  const Kernels& (*kernels)(int dtype);
  const NormKernels& (*norm_kernels)(int dtype);
};

Isa detect() {
  const char* wanted = std::getenv("CMIKERNELS_CPU_ISA");
  const auto allowed = [wanted](const char* name) {
    return !wanted || !*wanted || std::strcmp(wanted, name) == 0;
  };
#if defined(CMIK_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (allowed("avx512") && avx2 && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl"))
    return {"avx512", kernels_avx512, norm_kernels_avx512};
  if (allowed("avx2") && avx2) return {"avx2", kernels_avx2, norm_kernels_avx2};
#endif
  return {"baseline", kernels_baseline, norm_kernels_baseline};
}

const Isa& isa() {
  static const Isa best = detect();
  return best;
}

}  // namespace

const Kernels& select_kernels(int dtype) { return isa().kernels(dtype); }
const NormKernels& select_norm_kernels(int dtype) { return isa().norm_kernels(dtype); }

}  // namespace cmik

extern "C" const char* cmik_cpu_isa(void) { return cmik::isa().name; }
