// Torch's CPU threads belong to an OpenMP runtime that it loaded; its workers spin for a while
// after each parallel region. A second pool would fight them for the cores, so this one is used:
// its entry point is looked up in the running process and nothing is linked. Where there is none
// (no torch, or a runtime with another interface) or where it cannot work (a forked child, whose
// copy of the pool has no threads), threads are made for the call, which pays for larger problems
// only.
#include "threads.hpp"

#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <exception>
#include <thread>
#include <vector>

namespace cmik {
namespace {

// The two entry points of OpenMP runtimes that are needed. Both are part of a stable interface.
struct Runtime {
  void (*parallel)(void (*)(void*), void*, unsigned threads, unsigned flags) = nullptr;
  int (*thread_number)() = nullptr;
};

std::atomic<bool> in_forked_child{false};
// From the moment this library is loaded: torch may have started its threads before our first call.
[[maybe_unused]] const int fork_handler =
    pthread_atfork(nullptr, nullptr, [] { in_forked_child = true; });

Runtime find_runtime() {
  for (const char* library : {"libtorch_cpu.so", "libtorch_cpu.dylib"})
    if (void* torch = dlopen(library, RTLD_LAZY | RTLD_NOLOAD)) {
      Runtime found;  // in the library or in what it was linked to
      found.parallel = reinterpret_cast<decltype(found.parallel)>(dlsym(torch, "GOMP_parallel"));
      found.thread_number =
          reinterpret_cast<decltype(found.thread_number)>(dlsym(torch, "omp_get_thread_num"));
      dlclose(torch);
      return found;
    }
  return {};
}

// Torch's runtime, or null where it cannot be used.
const Runtime* shared_runtime() {
  static const Runtime runtime = find_runtime();
  return runtime.parallel && runtime.thread_number && !in_forked_child ? &runtime : nullptr;
}

}  // namespace

void run_on_threads(int threads, void (*body)(void*, int), void* data) {
  if (threads <= 1) return body(data, 0);
  if (const Runtime* runtime = shared_runtime()) {
    struct Region {
      void (*body)(void*, int);
      void* data;
      const Runtime* runtime;
    } region{body, data, runtime};
    const auto enter = [](void* opaque) {
      const Region& r = *static_cast<const Region*>(opaque);
      r.body(r.data, r.runtime->thread_number());
    };
    return runtime->parallel(enter, &region, unsigned(threads), 0);
  }
  std::vector<std::thread> others;
  try {
    others.reserve(size_t(threads - 1));
    for (int i = 1; i < threads; ++i) others.emplace_back(body, data, i);
  } catch (const std::exception&) {  // no more threads to be had: fewer do the work
  }
  body(data, 0);
  for (std::thread& other : others) other.join();
}

long long elements_worth_a_thread() { return shared_runtime() ? 1 << 14 : 1 << 18; }

const char* threading_name() {
  return shared_runtime() ? "torch's OpenMP threads" : "threads of its own per call";
}

}  // namespace cmik
