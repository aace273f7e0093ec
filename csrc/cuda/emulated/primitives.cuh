// What the kernels ask of the hardware (see hardware/primitives.cuh), asked of the emulator.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "emulator.hpp"
#include "math/cmi_math.hpp"

#define CMIK_DEVICE inline
#define CMIK_CONSTANT
#define __global__
#define __launch_bounds__(...)

namespace cmik {
namespace gpu {

#include "cpu/convert.inl"

inline int thread() { return emulator::fiber().thread; }
inline int threads() { return emulator::machine().block_threads; }
inline int64_t block() { return emulator::fiber().block->number; }
inline int64_t blocks() { return emulator::machine().blocks; }
inline char* shared_memory() { return emulator::fiber().block->shared; }

inline void sync_block() { emulator::wait(emulator::fiber().block->whole, threads()); }
inline void sync_threads(int barrier, int count) {
  emulator::wait(emulator::fiber().block->teams[size_t(barrier)], count);
}

template <class T>
T exchange(T value, int mask) {
  emulator::Fiber& f = emulator::fiber();
  auto& lanes = f.block->lanes[f.turn];
  f.turn ^= 1;
  std::memcpy(&lanes[size_t(f.thread)], &value, sizeof value);
  emulator::wait(f.block->warps[size_t(f.thread / emulator::kWarp)], emulator::kWarp);
  std::memcpy(&value, &lanes[size_t(f.thread ^ mask)], sizeof value);
  return value;
}

inline bool any_in_warp(bool holds) {
  int any = holds;
  for (int mask = 1; mask < emulator::kWarp; mask *= 2) any |= exchange(any, mask);
  return any;
}

inline uint32_t take_number(uint32_t* counter, uint32_t last) {
  const uint32_t number = *counter;
  *counter = number < last ? number + 1 : 0;
  ++emulator::machine().progress;
  return number;
}

inline void count_one(uint32_t* counter) {
  ++*counter;
  ++emulator::machine().progress;
}
inline void await_count(const uint32_t* counter, uint32_t count) {
  while (*counter < count) emulator::yield();
}

template <class X>
X* keep_address(X* place) {
  return place;
}
inline bool has_bulk_copies() { return emulator::bulk_copies(); }

inline int rank_in_cluster() { return emulator::fiber().block->rank; }
inline void meet_cluster() {
  const emulator::Machine& m = emulator::machine();
  emulator::wait(emulator::peer(0).cluster, m.cluster_blocks * m.block_threads);
}
template <class T>
T* in_block(T* mine, int rank) {
  const char* here = reinterpret_cast<const char*>(mine);
  emulator::Block& theirs = emulator::peer(rank);
  return reinterpret_cast<T*>(theirs.shared + (here - shared_memory()));
}

inline emulator::Arrival& arrival_at(uint64_t* barrier) {
  const auto found = emulator::fiber().block->arrivals.find(barrier);
  if (found == emulator::fiber().block->arrivals.end()) emulator::fail("barrier not started");
  return found->second;
}
inline void start_barrier(uint64_t* barrier) { emulator::fiber().block->arrivals[barrier] = {}; }
inline void publish_barriers() {}
inline void announce_bytes(uint64_t* barrier, uint32_t bytes) {
  emulator::Arrival& arrival = arrival_at(barrier);
  if (arrival.announced >= 0) emulator::fail("bytes announced twice in a phase");
  arrival.announced = bytes;
  ++emulator::machine().progress;
}
inline void copy_bulk(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
  emulator::Arrival& arrival = arrival_at(barrier);
  const auto bits = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from) | bytes;
  if (bits % 16) emulator::fail("bulk copy of odd address or size");
  const emulator::Block& block = *emulator::fiber().block;
  char* target = static_cast<char*>(to);
  if (target < block.shared || target + bytes > block.shared + block.shared_bytes)
    emulator::fail("bulk copy beyond shared memory");
  arrival.copied += bytes;
  if (emulator::seed() & 1)
    std::memcpy(to, from, bytes);
  else
    arrival.copies.push_back({target, static_cast<const char*>(from), bytes});
}
template <class Together>
void send(Together* place, int rank, const Together& numbers, uint64_t* barrier) {
  emulator::Block& theirs = emulator::peer(rank);
  const auto found = theirs.arrivals.find(in_block(barrier, rank));
  if (found == theirs.arrivals.end()) emulator::fail("sent to a barrier that is not started");
  char* to = reinterpret_cast<char*>(in_block(place, rank));
  if (to < theirs.shared || to + sizeof numbers > theirs.shared + theirs.shared_bytes)
    emulator::fail("sent beyond shared memory");
  emulator::Arrival& arrival = found->second;
  arrival.copied += sizeof numbers;
  ++emulator::machine().progress;
  if (emulator::seed() & 1) {
    std::memcpy(to, &numbers, sizeof numbers);
  } else {
    const char* bytes = reinterpret_cast<const char*>(&numbers);
    arrival.sent.push_back({to, {bytes, bytes + sizeof numbers}});
  }
}
inline void await_bytes(uint64_t* barrier, uint32_t parity) {
  emulator::Arrival& arrival = arrival_at(barrier);
  while ((arrival.phase & 1) == parity) {
    emulator::arrive(arrival);
    if ((arrival.phase & 1) == parity) emulator::yield();
  }
}

inline float exp2_of(float x) {
  const float result = std::exp2(x);
  return result < Limits<float>::smallest_normal ? 0 : result;
}
inline double exp2_of(double x) { return std::exp2(x); }
template <class T>
T log2_of(T x) {
  return std::log2(x);
}
template <class T>
T multiply_add(T a, T b, T c) {
  return std::fma(a, b, c);
}
inline float quick_reciprocal(float x) { return 1 / x; }
template <class T>
T reciprocal(T x) {
  return 1 / x;
}
template <class T>
T maximum(T a, T b) {
  return a > b || a != a ? a : b;
}
inline float largest_square(float a, float b, float c) { return maximum(maximum(a, b), c); }

template <class S>
struct alignas(16) Pack {
  S entries[16 / sizeof(S)];
};
template <class S, class T>
void round_entry(T number, S& out) {
  if constexpr (std::is_same_v<S, T>)
    out = number;
  else
    round_to(number, out);
}
template <class S>
Pack<S> lowest_pack(S) {
  Pack<S> pack;
  for (S& entry : pack.entries) round_entry(decltype(to_arithmetic(S{}))(-INFINITY), entry);
  return pack;
}
template <class S, class T, int N>
void unpack(const Pack<S>& pack, T (&out)[N]) {
  for (int i = 0; i < N; ++i) out[i] = to_arithmetic(pack.entries[i]);
}
template <class S>
Pack<S> larger_entries(Pack<S> a, const Pack<S>& b) {
  for (size_t i = 0; i < 16 / sizeof(S); ++i) {
    const auto x = to_arithmetic(a.entries[i]), y = to_arithmetic(b.entries[i]);
    round_entry(maximum(x, y), a.entries[i]);
  }
  return a;
}
template <class S>
auto largest_entry(const Pack<S>& pack) {
  auto largest = to_arithmetic(pack.entries[0]);
  for (const S& entry : pack.entries) largest = maximum(largest, to_arithmetic(entry));
  return largest;
}
template <class S, class T, int N>
Pack<S> pack_of(S, const T (&numbers)[N]) {
  Pack<S> pack;
  for (int i = 0; i < N; ++i) round_entry(numbers[i], pack.entries[i]);
  return pack;
}
template <class S>
void store_streaming(Pack<S>* place, const Pack<S>& pack) {
  *place = pack;
}
template <class S>
S entry_of(const Pack<S>& pack, int i) {
  return pack.entries[i];
}

}  // namespace gpu
}  // namespace cmik
