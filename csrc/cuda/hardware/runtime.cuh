// What the launcher asks of the CUDA runtime. Errors are those of the runtime, 0 for none.
#pragma once

#include <algorithm>
#include <iterator>
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
  chip.capability = 10 * major + minor;
  // There is no code for older ones to be asked about; the launcher refuses them.
  return chip.capability < kLeastCapability ? 0 : kernels.complete(chip);
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

// Lets the kernel run in clusters of 16 blocks. A device may refuse them and have smaller ones.
template <class Kernel>
bool allow_16(Kernel kernel) {
  const bool allowed = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed,
                                            1) == cudaSuccess;
  if (!allowed) cudaGetLastError();
  return allowed;
}

// Lets the kernel have as much shared memory as the device gives, and its largest clusters; once
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
  int bytes = 0;
  cudaError_t error =
      cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  allow_16(kernel);
  allowed.insert(key);
  return 0;
}

// Sets so many bytes to 0, in the order of the stream.
inline int clear(void* memory, int64_t bytes, void* stream) {
  const cudaError_t error =
      cudaMemsetAsync(memory, 0, size_t(bytes), static_cast<cudaStream_t>(stream));
  if (error != cudaSuccess) cudaGetLastError();  // as after a launch
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

// Clusters of a size that the device holds at once; 0 where it has none of that size.
template <class Kernel>
int count_resident(Kernel kernel, int cluster, int threads, int64_t shared_bytes) {
  cudaLaunchAttribute size{};
  size.id = cudaLaunchAttributeClusterDimension;
  size.val.clusterDim = {unsigned(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(cluster));
  config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = size_t(shared_bytes);
  config.attrs = &size;
  config.numAttrs = 1;
  int clusters = 0;
  if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) == cudaSuccess) return clusters;
  cudaGetLastError();
  return 0;
}

// What clusters the kernel can run in, where its code has them: code made for an older GPU, which
// the driver has translated, has none, and the chip is treated as such a one.
template <class Kernel>
int complete_chip(Kernel kernel, Chip& chip) {
  cudaFuncAttributes code{};
  if (cudaError_t error = cudaFuncGetAttributes(&code, kernel)) return error;
  chip.capability = std::min(chip.capability, code.ptxVersion);
  if (chip.capability < 90) return 0;
  if (int error = allow_most(kernel)) return error;
  const bool has_16 = allow_16(kernel);
  for (size_t i = 0; i < std::size(kClusterSizes); ++i)
    for (size_t j = 0; j < std::size(kClusterThreads); ++j)
      if (kClusterSizes[i] <= 8 || has_16)
        chip.resident_clusters[i][j] = count_resident(kernel, kClusterSizes[i], kClusterThreads[j],
                                                      shared_budget(chip, kClusterThreads[j]));
  return 0;
}

}  // namespace cmik
