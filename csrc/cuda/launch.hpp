// The kernels of one features' type, as the launcher calls them. Each starts one on a stream and
// returns the error of starting it.
#pragma once

#include "task.cuh"

namespace cmik {

// Where and how to start a kernel.
struct Launch {
  int64_t blocks;
  int32_t threads;
  int32_t cluster;
  int64_t shared_bytes;
  void* stream;
};

struct GpuKernels {
  int (*classes)(const Launch&, const Task&);
  int (*tiny)(const Launch&, const Task&);
  int (*slots)(const Launch&, const Task&);
  int (*wide)(const Launch&, const Task&);
  int (*class_values)(const Launch&, const Task&);
  // Fill in what of the current device depends on the kernels' code: capability, which may be less
  // than the device's, and clusters.
  int (*complete)(Chip&);
};

}  // namespace cmik
