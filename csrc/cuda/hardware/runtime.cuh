// What the launcher asks of the CUDA runtime. Errors are those of the runtime, 0 for none.
#pragma once

#include <algorithm>
#include <map>
#include <mutex>
#include <set>
#include <utility>

#include "launch.hpp"

namespace cmik {

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

// Asks the current device.
inline int ask_chip(int device, const GpuKernels& kernels, Chip& chip) {
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
  return kernels.complete(10 * major + minor, chip);
}

// What the device is like; asked until it has answered once.
inline int find_chip(int device, const GpuKernels& kernels, Chip& chip) {
  static std::mutex mutex;
  static std::map<int, Chip> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  if (found != known.end()) {
    chip = found->second;
    return 0;
  }
  const int error = ask_chip(device, kernels, chip);
  if (!error) known[device] = chip;
  return error;
}

inline const char* error_text(int error) { return cudaGetErrorString(cudaError_t(error)); }
inline int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}
constexpr int runtime_version() { return CUDART_VERSION; }

// Lets the kernel have as much shared memory as the device gives, and clusters of 16 blocks; once
// for each device.
template <class Kernel>
int allow_most(Kernel kernel) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int> > allowed;
  int device = 0;
  if (cudaError_t error = cudaGetDevice(&device)) return error;
  const std::lock_guard<std::mutex> lock(mutex);
  const std::pair<const void*, int> key{reinterpret_cast<const void*>(kernel), device};
  if (allowed.count(key)) return 0;
  int bytes = 0, major = 0;
  cudaError_t error =
      cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess && major >= 9)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  if (error == cudaSuccess) allowed.insert(key);
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

// What clusters the kernel can run in, where its code has them: code made for an older GPU, which
// the driver has translated, has none, and the chip is treated as such a one.
template <class Kernel>
int complete_chip(Kernel kernel, int capability, Chip& chip) {
  cudaFuncAttributes code{};
  if (cudaError_t error = cudaFuncGetAttributes(&code, kernel)) return error;
  chip.capability = std::min(capability, code.ptxVersion);
  chip.largest_cluster = 1;
  chip.clusters_of_16 = 0;
  if (chip.capability < 90) return 0;
  if (int error = allow_most(kernel)) return error;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cudaLaunchConfig_t config{};
  config.blockDim = dim3(kMostThreads);
  config.dynamicSmemBytes = size_t(chip.block_bytes);
  config.attrs = &cluster;
  config.numAttrs = 1;
  for (unsigned size = 2; size <= 16; size *= 2) {
    cluster.val.clusterDim = {size, 1, 1};
    config.gridDim = dim3(size);
    int at_once = 0;
    if (cudaOccupancyMaxActiveClusters(&at_once, kernel, &config) != cudaSuccess) {
      cudaGetLastError();  // a size that this GPU does not have
      break;
    }
    if (at_once == 0) break;
    chip.largest_cluster = int(size);
    if (size == 16) chip.clusters_of_16 = at_once;
  }
  return 0;
}

}  // namespace cmik
