// Torch's CPU threads belong to an OpenMP runtime that it loaded; its workers spin for a while
// after each parallel region. A second pool would fight them for the cores, so this one is used:
// its entry point is looked up in the running process and nothing is linked. Where there is none
// (no torch, or a runtime with another interface) or where it cannot work (a forked child, whose
// copy of the pool has no threads), threads are made for the call, which pays for larger problems
// only.
#include "threads.hpp"

#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

#if !defined(_WIN32)
#include <dlfcn.h>
#include <pthread.h>
#endif

namespace cmik {
namespace {

using ParallelRegion = void (*)(void (*)(void*), void*, unsigned threads, unsigned flags);

std::atomic<bool> in_forked_child{false};

ParallelRegion find_parallel_region() {
#if defined(_WIN32)
  return nullptr;
#else
  pthread_atfork(nullptr, nullptr, [] { in_forked_child = true; });
  for (const char* library : {"libtorch_cpu.so", "libtorch_cpu.dylib"})
    if (void* torch = dlopen(library, RTLD_LAZY | RTLD_NOLOAD)) {
      void* entry = dlsym(torch, "GOMP_parallel");  // in the library or what it was linked to
      dlclose(torch);
      if (entry) return reinterpret_cast<ParallelRegion>(entry);
    }
  return nullptr;
#endif
}

ParallelRegion shared_region() {
  static const ParallelRegion region = find_parallel_region();
  return in_forked_child ? nullptr : region;
}

}  // namespace

void run_on_threads(int threads, void (*body)(void*), void* data) {
  if (threads <= 1) return body(data);
  if (const ParallelRegion region = shared_region())
    return region(body, data, unsigned(threads), 0);
  std::vector<std::thread> others;
  try {
    for (int i = 1; i < threads; ++i) others.emplace_back(body, data);
  } catch (const std::system_error&) {  // no more threads to be had: fewer do the work
  }
  body(data);
  for (std::thread& other : others) other.join();
}

long long elements_worth_a_thread() { return shared_region() ? 1 << 14 : 1 << 18; }

const char* threading_name() {
  return shared_region() ? "torch's OpenMP threads" : "threads of its own per call";
}

}  // namespace cmik
