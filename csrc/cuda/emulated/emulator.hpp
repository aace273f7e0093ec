// CUDA's thread model on one host thread, so that the kernels' own source can be tested without a
// GPU. Every CUDA thread is a fiber that runs until it has to wait. The order in which fibers take
// turns, which warps rest meanwhile, how many clusters run side by side, and whether bulk copies
// arrive at once or as late as they may, follow from a seed: a kernel that lacks a barrier gives
// other numbers, or NaN, under some of them.
//
// Checked: threads that wait for one another for ever, writes beyond a block's shared memory, and
// alignment and size of bulk copies. Shared memory starts as NaN.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <type_traits>
#include <vector>

namespace cmik {
namespace emulator {

constexpr size_t kStackBytes = 64 << 10;
constexpr int kWarp = 32;
constexpr int kMostBlockThreads = 1024;
constexpr int kMostBarriers = 16;      // of a block
constexpr int kRest = 16;              // rounds
constexpr uint64_t kMostTogether = 4;  // clusters
constexpr size_t kCanaryBytes = 64;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulated CUDA kernel: %s\n", what);
  std::abort();
}

inline uint64_t& seed() {
  static uint64_t value = 0;
  return value;
}

inline bool& bulk_copies() {
  static bool value = true;
  return value;
}

// Threads that wait until `count` of them are here.
struct Barrier {
  int arrived = 0;
  uint64_t generation = 0;
};

struct Copy {
  char* to;
  const char* from;
  uint32_t bytes;
};

struct Sent {
  char* to;
  std::vector<char> bytes;
};

// Of one barrier for bytes.
struct Arrival {
  std::vector<Copy> copies;
  std::vector<Sent> sent;
  int64_t announced = -1;
  int64_t copied = 0;
  uint32_t phase = 0;
};

struct Block {
  int64_t number;
  int rank;
  std::vector<char> memory;
  char* shared;  // its part that is aligned
  size_t shared_bytes;
  Barrier whole;
  Barrier cluster;               // of the block of rank 0: its cluster's
  Barrier teams[kMostBarriers];  // of sync_threads()
  std::vector<Barrier> warps;
  std::vector<uint64_t> lanes[2];  // what exchange() passes on, by turns
  std::map<uint64_t*, Arrival> arrivals;
};

struct Fiber {
  ucontext_t start;
  jmp_buf here;
  Block* block;
  int thread;
  bool begun, done;
  int turn;  // of exchange()
};

struct Machine {
  jmp_buf scheduler;
  Fiber* current = nullptr;
  int64_t blocks = 0;
  int block_threads = 0;
  int cluster_blocks = 0;
  std::vector<Block> resident;  // whole clusters, one after the other
  uint64_t progress = 0;
  void (*body)(const void*) = nullptr;
  const void* argument = nullptr;
  char* stacks = nullptr;
  size_t stacks_bytes = 0;
};

inline Machine& machine() {
  static Machine only;
  return only;
}
inline Fiber& fiber() { return *machine().current; }
// The block of that rank in the cluster.
inline Block& peer(int rank) { return (fiber().block - fiber().block->rank)[rank]; }

inline void yield() {
  if (!_setjmp(fiber().here)) _longjmp(machine().scheduler, 1);
}

inline void wait(Barrier& barrier, int count) {
  const uint64_t generation = barrier.generation;
  if (++barrier.arrived == count) {
    barrier.arrived = 0;
    ++barrier.generation;
    ++machine().progress;
  } else {
    while (barrier.generation == generation) yield();
  }
}

inline void enter() {
  machine().body(machine().argument);
  fiber().done = true;
  ++machine().progress;
  yield();
}

// Runs fibers to their ends.
inline void run_fibers(std::vector<Fiber>& fibers) {
  Machine& m = machine();
  const size_t count = fibers.size();
  uint64_t random = seed() * 0x9e3779b97f4a7c15u + 1;
  std::vector<size_t> order(count);
  for (size_t i = 0; i < count; ++i) order[i] = seed() & 1 ? count - 1 - i : i;
  if (seed() > 1)
    for (size_t i = count; i > 1; --i) {
      random = random * 6364136223846793005u + 1442695040888963407u;
      std::swap(order[i - 1], order[(random >> 33) % i]);
    }
  // Warps may also rest for a while, so that others run ahead of them.
  std::vector<int> resting(count / kWarp);
  for (size_t left = count; left > 0;) {
    const uint64_t before = m.progress;
    bool any_rests = false;
    for (int& rest : resting) {
      random = random * 6364136223846793005u + 1442695040888963407u;
      rest = rest > 0 ? rest - 1 : seed() > 1 && (random >> 60) == 0 ? kRest : 0;
      any_rests |= rest > 0;
    }
    for (size_t i : order) {
      if (resting[i / kWarp] > 0) continue;
      // Volatile, because longjmp comes back with registers of an earlier time.
      Fiber* volatile each = &fibers[i];
      if (each->done) continue;
      m.current = each;
      if (!_setjmp(m.scheduler)) {
        if (each->begun) _longjmp(each->here, 1);
        each->begun = true;
        setcontext(&each->start);
      }
      if (m.current->done) --left;
    }
    if (left > 0 && m.progress == before && !any_rests)
      fail("threads wait for one another for ever");
  }
}

// Runs body() as every thread of a grid.
template <class Body>
void launch(const Body& body, int64_t blocks, int threads, int cluster, size_t shared_bytes) {
  Machine& m = machine();
  m.body = [](const void* argument) { (*static_cast<const Body*>(argument))(); };
  m.argument = &body;
  m.blocks = blocks;
  m.block_threads = threads;
  m.cluster_blocks = cluster;
  if (threads % kWarp || threads > kMostBlockThreads || blocks % cluster)
    fail("launch of a shape that no GPU takes");
  const int64_t together = int64_t(1 + seed() % kMostTogether);
  const size_t most = size_t(together * cluster * threads);
  if (m.stacks_bytes < most * kStackBytes) {
    if (m.stacks) munmap(m.stacks, m.stacks_bytes);
    m.stacks_bytes = most * kStackBytes;
    void* stacks = mmap(nullptr, m.stacks_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) fail("no memory for stacks");
    m.stacks = static_cast<char*>(stacks);
  }
  for (int64_t begun = 0; begun < blocks;) {
    const int64_t count = std::min(together * cluster, blocks - begun);
    std::vector<Fiber> fibers(size_t(count * threads));
    m.resident.clear();
    m.resident.resize(size_t(count));
    for (int64_t each = 0; each < count; ++each, ++begun) {
      Block& block = m.resident[size_t(each)];
      block.rank = int(begun % cluster);
      block.number = seed() & 1 ? blocks - cluster - (begun - block.rank) + block.rank : begun;
      block.memory.assign(shared_bytes + kCanaryBytes + 128, char(0xff));
      const auto address = reinterpret_cast<uintptr_t>(block.memory.data());
      block.shared = block.memory.data() + (128 - address % 128) % 128;
      block.shared_bytes = shared_bytes;
      block.warps.resize(size_t(threads / kWarp));
      for (auto& lanes : block.lanes) lanes.resize(size_t(threads));
      for (int t = 0; t < threads; ++t) {
        const size_t index = size_t(each * threads + t);
        Fiber& f = fibers[index];
        f.block = &block;
        f.thread = t;
        f.begun = f.done = false;
        f.turn = 0;
        getcontext(&f.start);
        f.start.uc_stack.ss_sp = m.stacks + index * kStackBytes;
        f.start.uc_stack.ss_size = kStackBytes;
        f.start.uc_link = nullptr;
        makecontext(&f.start, enter, 0);
      }
    }
    run_fibers(fibers);
    for (const Block& block : m.resident)
      for (size_t k = 0; k < kCanaryBytes; ++k)
        if (block.shared[shared_bytes + k] != char(0xff)) fail("shared memory overrun");
  }
}

inline void arrive(Arrival& arrival) {
  if (arrival.announced < 0 || arrival.copied != arrival.announced) return;
  for (const Copy& copy : arrival.copies) std::memcpy(copy.to, copy.from, copy.bytes);
  for (const Sent& sent : arrival.sent) std::memcpy(sent.to, sent.bytes.data(), sent.bytes.size());
  arrival = Arrival{{}, {}, -1, 0, arrival.phase + 1};
  ++machine().progress;
}

}  // namespace emulator
}  // namespace cmik
