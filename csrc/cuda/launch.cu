// One call: its plan, what its kernels are told, and their launches one after the other.
#include <algorithm>

#include "plan_cache.hpp"
#include "runtime.cuh"

namespace cmik {

const GpuKernels& gpu_kernels_Float32();
const GpuKernels& gpu_kernels_Float64();
const GpuKernels& gpu_kernels_Bfloat16();
const GpuKernels& gpu_kernels_Float16();

namespace {

constexpr int64_t kMostBlocks = int64_t(1) << 30;  // of a grid, and classes, which are int there
constexpr int64_t kMostItems = int64_t(1) << 29;   // of a step of slots: uint32_t counts all
constexpr int64_t kMostRows = UINT32_MAX;          // whose numbers are uint32_t there

const GpuKernels& kernels_of(int dtype) {
  switch (dtype) {
    case CMIK_FLOAT64:
      return gpu_kernels_Float64();
    case CMIK_BFLOAT16:
      return gpu_kernels_Bfloat16();
    case CMIK_FLOAT16:
      return gpu_kernels_Float16();
    default:
      return gpu_kernels_Float32();
  }
}

int element_bytes(int dtype) { return dtype == CMIK_FLOAT64 ? 8 : dtype == CMIK_FLOAT32 ? 4 : 2; }

int chip_of(int device, Chip& chip) {
  chip = {};
  return find_chip(device, gpu_kernels_Float32(), chip);
}

bool multiple_of(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % uintptr_t(bytes) == 0;
}

Shape shape_of(const cmik_cuda_call& call) {
  const cmik_problem& p = call.problem;
  Shape shape{};
  shape.rows = p.rows;
  shape.classes = p.classes;
  shape.largest = p.offsets ? call.largest : p.rows / std::max<int64_t>(p.classes, 1);
  shape.channels = p.channels;
  shape.element_bytes = element_bytes(p.dtype);
  shape.ragged = p.offsets != nullptr;
  shape.given = p.centroids != nullptr;
  shape.weighted = p.incoming && p.reduction == CMIK_NONE && !p.centroids;
  shape.aligned = p.channel_stride == 1 && multiple_of(p.features, kPackBytes) &&
                  multiple_of(p.gradient, kPackBytes) &&
                  p.channels * shape.element_bytes % kPackBytes == 0 &&
                  p.row_stride * shape.element_bytes % kPackBytes == 0;
  return shape;
}

Task task_of(const cmik_cuda_call& call, const Shape& shape, const Plan& plan) {
  const cmik_problem& p = call.problem;
  Task task{};
  task.problem = p;
  task.plan = plan;
  task.shared = shared_layout(shape, plan);
  task.given = shape.given;
  task.has_value = p.value != nullptr;
  task.has_gradient = p.gradient != nullptr;
  task.has_row_weights = p.incoming && p.reduction == CMIK_NONE;
  task.has_order = p.order != nullptr;
  task.scattered = task.has_order || task.has_row_weights;
  task.unless_one = call.unless_one && p.incoming && p.reduction != CMIK_NONE;
  task.weighted = shape.weighted;
  task.consecutive = !p.order && p.row_stride == p.channels;
  task.rows_per_class = shape.ragged ? 0 : shape.largest;
  task.slots_per_class = plan.slots / std::max<int64_t>(p.classes, 1);
  task.packs = int32_t(ceil_div(p.channels, pack_entries(shape.element_bytes)));
  while (1 << task.lanes_bits < plan.lanes) ++task.lanes_bits;
  while (1 << task.cluster_bits < plan.cluster) ++task.cluster_bits;
  while (1 << task.slice_bits < slice_packs(shape, plan)) ++task.slice_bits;
  task.sum_rows = sum_rows_of(plan.threads, plan.lanes);
  task.teams = plan.threads / plan.lanes;
  task.class_step = int32_t(plan.blocks / plan.cluster);
  Factors<double>& full = task.full;
  full.inverse_tau = 1 / p.temperature;
  full.exponent_scale = 1.44269504088896340736 / p.temperature;
  full.row_scale = p.weight;
  if (p.reduction == CMIK_MEAN) full.row_scale /= double(std::max<int64_t>(p.rows, 1));
  task.single = {float(full.inverse_tau), float(full.exponent_scale), float(full.row_scale)};
  const Workspace at = workspace_layout(shape, plan);
  char* workspace = static_cast<char*>(call.workspace);
  task.ticket = call.ticket;
  task.counters = reinterpret_cast<uint32_t*>(workspace + at.counters);
  task.parts = reinterpret_cast<double*>(workspace + at.parts);
  task.stats = workspace + at.stats;
  task.slot_sums = workspace + at.sums;
  task.centroids = p.means ? p.means : workspace + at.centroids;
  task.rho = workspace + at.rho;
  return task;
}

// The launches in the order of their plan, until one fails.
class Launches {
 public:
  Launches(const cmik_cuda_call& call, const Task& task)
      : task_(task), kernels_(kernels_of(task.problem.dtype)), stream_(call.stream) {}

  int run() {
    const cmik_problem& p = task_.problem;
    const Kind kind = task_.plan.kind;
    if (kind == Kind::classes)
      error_ = kernels_.classes(main_launch(), task_);
    else if (kind == Kind::tiny)
      error_ = kernels_.tiny(main_launch(), task_);
    else
      slotted();
    if (!p.value || error_ || p.reduction != CMIK_CLASS) return error_;
    if (task_.plan.slots > 0 || task_.plan.cluster > 1)
      error_ = kernels_.class_values(small_launch(ceil_div(p.classes, 4), 128), task_);
    return error_;
  }

 private:
  Launch main_launch() const {
    const Plan& plan = task_.plan;
    return {plan.blocks, plan.threads, plan.cluster, plan.shared_bytes, stream_};
  }
  Launch small_launch(int64_t blocks, int threads) const {
    return {blocks, threads, 1, threads * int64_t(sizeof(double)), stream_};
  }

  void slotted() {
    error_ = clear(task_.counters, counters_bytes(task_.problem.classes), stream_);
    if (error_) return;
    const bool wide = task_.plan.kind == Kind::wide;
    error_ = (wide ? kernels_.wide : kernels_.slots)(main_launch(), task_);
  }

  const Task& task_;
  const GpuKernels& kernels_;
  void* stream_;
  int error_ = 0;
};

PlanCache& known_plans() {
  static PlanCache plans;
  return plans;
}

// The call's sizes and plan, or why it cannot be served.
int prepare(const cmik_cuda_call& call, Shape& shape, Plan& plan) {
  shape = shape_of(call);
  if (known_plans().find(shape, call.device, plan)) return 0;
  Chip chip;
  if (int error = chip_of(call.device, chip)) return error;
  if (chip.capability < kLeastCapability) return CMIK_GPU_TOO_OLD;
  plan = make_plan(shape, chip);
  const int64_t means = shape.classes * ceil_div(shape.channels, kMeanColumns);
  if (std::max(plan.blocks, shape.classes) > kMostBlocks || shape.rows > kMostRows ||
      (plan.slots > 0 && std::max(plan.slots, means) > kMostItems))
    return CMIK_TOO_LARGE;
  known_plans().keep(shape, call.device, plan);
  return 0;
}

}  // namespace
}  // namespace cmik

using namespace cmik;

extern "C" int cmik_cuda_chip_of(int device, cmik_cuda_chip* chip) {
  DeviceGuard guard(device);
  return guard.error() ? guard.error() : chip_of(device, *chip);
}

extern "C" int cmik_cuda_workspace(const cmik_cuda_call* call, int64_t* bytes) {
  DeviceGuard guard(call->device);
  if (guard.error()) return guard.error();
  Shape shape;
  Plan plan;
  const int error = prepare(*call, shape, plan);
  if (!error) *bytes = plan.workspace_bytes;
  return error;
}

extern "C" int cmik_cuda_run(const cmik_cuda_call* call) {
  DeviceGuard guard(call->device);
  if (guard.error()) return guard.error();
  Shape shape;
  Plan plan;
  if (int error = prepare(*call, shape, plan)) return error;
  if (call->workspace_bytes < plan.workspace_bytes) return CMIK_SMALL_WORKSPACE;
  const Task task = task_of(*call, shape, plan);
  return Launches(*call, task).run();
}

extern "C" const char* cmik_cuda_message(int status) {
  switch (status) {
    case CMIK_GPU_TOO_OLD:
      return "compute capability 8.0 (Ampere) or newer is needed";
    case CMIK_TOO_LARGE:
      return "more classes or rows than one launch can take";
    case CMIK_SMALL_WORKSPACE:
      return "the workspace is smaller than cmik_cuda_workspace said";
    default:
      return error_text(status);
  }
}

extern "C" int cmik_cuda_driver_version(void) { return driver_version(); }
extern "C" int cmik_cuda_runtime_version(void) { return runtime_version(); }
