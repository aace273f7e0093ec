// What the launcher asks of the CUDA runtime, and of the emulator in its place. Errors are those of
// the runtime, 0 for none.
#pragma once

#include "launch.hpp"

namespace cmik {

#if defined(CMIK_EMULATED)

// A GPU to be emulated: small, so that small tests need clusters, several stages and slots.
inline Chip& emulated_chip() {
  static Chip chip{90, 4, 16, 24 << 10, 32 << 10, 256 << 10};
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
inline int device_count() { return 1; }
inline int driver_version() { return 0; }
constexpr int runtime_version() { return 0; }

// Starts kernel(arguments...).
template <class... Arguments>
int start(void (*kernel)(Arguments...), const Launch& launch, const Arguments&... arguments) {
  const auto body = [&] { kernel(arguments...); };
  emulator::launch(body, launch.blocks, launch.threads, launch.cluster,
                   size_t(launch.shared_bytes));
  return 0;
}
template <class Kernel>
int largest_cluster_of(Kernel) {
  return emulated_chip().largest_cluster;
}

#else

class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    error_ = cudaGetDevice(&before_);
    if (error_ == cudaSuccess && before_ != device) {
      error_ = cudaSetDevice(device);
      changed_ = error_ == cudaSuccess;
    }
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  int error() const { return error_; }

 private:
  int before_ = 0;
  bool changed_ = false;
  cudaError_t error_;
};

// Of the current device.
inline int find_chip(int device, const GpuKernels& kernels, Chip& chip) {
  const auto attribute = [device](cudaDeviceAttr which, auto& number) {
    int value = 0;
    const cudaError_t error = cudaDeviceGetAttribute(&value, which, device);
    number = value;
    return int(error);
  };
  int major = 0, minor = 0;
  if (int error = attribute(cudaDevAttrComputeCapabilityMajor, major)) return error;
  if (int error = attribute(cudaDevAttrComputeCapabilityMinor, minor)) return error;
  if (int error = attribute(cudaDevAttrMultiProcessorCount, chip.processors)) return error;
  if (int error = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, chip.block_bytes))
    return error;
  if (int error = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, chip.processor_bytes))
    return error;
  if (int error = attribute(cudaDevAttrL2CacheSize, chip.cache_bytes)) return error;
  chip.capability = 10 * major + minor;
  chip.largest_cluster = major >= 9 ? kernels.largest_cluster() : 1;
  return 0;
}

inline const char* error_text(int error) { return cudaGetErrorString(cudaError_t(error)); }
inline int device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}
inline int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}
constexpr int runtime_version() { return CUDART_VERSION; }

// Lets the kernel have as much shared memory as the device gives, and clusters of 16 blocks.
template <class Kernel>
int allow_most(Kernel kernel) {
  int device = 0, bytes = 0, major = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess && major >= 9)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  return error;
}

// Starts kernel(arguments...).
template <class... Arguments>
int start(void (*kernel)(Arguments...), const Launch& launch, const Arguments&... arguments) {
  if (launch.shared_bytes > 48 << 10 || launch.cluster > 8)
    if (int error = allow_most(kernel)) return error;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(launch.blocks));
  config.blockDim = dim3(unsigned(launch.threads));
  config.dynamicSmemBytes = size_t(launch.shared_bytes);
  config.stream = static_cast<cudaStream_t>(launch.stream);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {unsigned(launch.cluster), 1, 1};
  config.attrs = &cluster;
  config.numAttrs = launch.cluster > 1 ? 1 : 0;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
  if (error != cudaSuccess) cudaGetLastError();  // it is told here, and to nobody after
  return error;
}

template <class Kernel>
int largest_cluster_of(Kernel kernel) {
  if (allow_most(kernel) != 0) return 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(16);
  config.blockDim = dim3(kMostThreads);
  int size = 1;
  if (cudaOccupancyMaxPotentialClusterSize(&size, kernel, &config) != cudaSuccess) {
    cudaGetLastError();
    return 1;
  }
  int power = 1;
  while (power * 2 <= size && power < 16) power *= 2;
  return power;
}

#endif

}  // namespace cmik
