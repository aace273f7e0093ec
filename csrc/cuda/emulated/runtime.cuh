// What the launcher asks of the CUDA runtime (see hardware/runtime.cuh), asked of the emulator.
#pragma once

#include "launch.hpp"

namespace cmik {

// Small, so that small tests need clusters, several stages and slots.
constexpr Chip kTinyChip{90,       4,        {{8, 4, 2}, {4, 2, 1}, {2, 1, 0}, {1, 0, 0}},
                         24 << 10, 32 << 10, 256 << 10};

// The GPU to be emulated.
inline Chip& emulated_chip() {
  static Chip chip = kTinyChip;
  return chip;
}

class DeviceGuard {
 public:
  explicit DeviceGuard(int) {}
  int error() const { return 0; }
};

inline int find_chip(int, const GpuKernels&, Chip& chip) {
  chip = emulated_chip();
  return 0;
}
inline const char* error_text(int) { return "emulated"; }
inline int driver_version() { return 0; }
constexpr int runtime_version() { return 0; }

// Whether launches do nothing, so that what a call costs besides them can be measured.
inline bool& without_kernels() {
  static bool without = false;
  return without;
}

inline int clear(void* memory, int64_t bytes, void*) {
  std::memset(memory, 0, size_t(bytes));
  return 0;
}

// Kernels started so far.
inline int64_t& launch_count() {
  static int64_t count = 0;
  return count;
}

// Runs kernel(arguments...).
template <class... Arguments>
int start(void (*kernel)(Arguments...), const Launch& launch, const Arguments&... arguments) {
  ++launch_count();
  if (without_kernels()) return 0;
  const auto body = [&] { kernel(arguments...); };
  emulator::launch(body, launch.blocks, launch.threads, launch.cluster,
                   size_t(launch.shared_bytes));
  return 0;
}
template <class Kernel>
int complete_chip(Kernel, Chip&) {
  return 0;
}

}  // namespace cmik
