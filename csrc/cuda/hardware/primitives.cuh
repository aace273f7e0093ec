// What the kernels ask of the hardware, each in one small function. The include path can put those
// of emulated/ in their place, and the kernels then run on the host, for tests.
//
// A cluster is a group of blocks that can read and write one another's shared memory (sm_90 and
// newer; elsewhere every block is a cluster of its own). A bulk copy brings bytes from global to
// shared memory without passing through registers, and is awaited at a barrier in shared memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "math/cmi_math.hpp"

#define CMIK_DEVICE __device__ __forceinline__
#define CMIK_CONSTANT __grid_constant__
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define CMIK_HAS_CLUSTERS
#endif

namespace cmik {
namespace gpu {

struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

CMIK_DEVICE int thread() { return int(threadIdx.x); }
CMIK_DEVICE int threads() { return int(blockDim.x); }
CMIK_DEVICE int64_t block() { return blockIdx.x; }
CMIK_DEVICE int64_t blocks() { return gridDim.x; }

// All of the block's shared memory.
CMIK_DEVICE char* shared_memory() {
  extern __shared__ __align__(128) char memory[];
  return memory;
}

CMIK_DEVICE void sync_block() { __syncthreads(); }
// So many threads of the block, whole warps, meet at one of its barriers; 0 is the whole block's.
CMIK_DEVICE void sync_threads(int barrier, int count) {
  asm volatile("barrier.sync.aligned %0, %1;" ::"r"(barrier), "r"(count) : "memory");
}

// The value that the lane whose number differs in the bits of `mask` has.
template <class T>
CMIK_DEVICE T exchange(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// Whether it holds in any lane of the warp.
CMIK_DEVICE bool any_in_warp(bool holds) { return __any_sync(0xffffffffu, holds); }

// A number from a counter in global memory, which goes on to the next and from `last` to 0. Who has
// it sees what those wrote who had earlier ones, and the threads that they had met before.
CMIK_DEVICE uint32_t take_number(uint32_t* counter, uint32_t last) {
  uint32_t number;
  asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;"
               : "=r"(number)
               : "l"(__cvta_generic_to_global(counter)), "r"(last)
               : "memory");
  return number;
}

// Counts one more, or waits until so many were: then what they wrote, and the threads that they had
// met before, is seen.
CMIK_DEVICE void count_one(uint32_t* counter) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(__cvta_generic_to_global(counter))
               : "memory");
}
CMIK_DEVICE void await_count(const uint32_t* counter, uint32_t count) {
  uint32_t found;
  for (;;) {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                 : "=r"(found)
                 : "l"(__cvta_generic_to_global(counter))
                 : "memory");
    if (found >= count) return;
    __nanosleep(100);
  }
}

CMIK_DEVICE constexpr bool has_bulk_copies() {
#if defined(CMIK_HAS_CLUSTERS)
  return true;
#else
  return false;
#endif
}

CMIK_DEVICE int rank_in_cluster() {
#if defined(CMIK_HAS_CLUSTERS)
  int rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#else
  return 0;
#endif
}
// All threads of the cluster. What they wrote before is not promised to be seen.
CMIK_DEVICE void meet_cluster() {
#if defined(CMIK_HAS_CLUSTERS)
  asm volatile(
      "barrier.cluster.arrive.relaxed.aligned;\n\t"
      "barrier.cluster.wait.aligned;" ::
          : "memory");
#endif
}
// Where block `rank` of the cluster has what this block has at `mine` in its shared memory.
CMIK_DEVICE uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }
CMIK_DEVICE uint32_t address_in_block(const void* mine, int rank) {
  uint32_t theirs = shared_address(mine);
#if defined(CMIK_HAS_CLUSTERS)
  asm("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(theirs) : "r"(rank));
#endif
  return theirs;
}

// Barriers of bulk copies. A phase ends when the bytes announced have come; phases alternate in
// parity, from 0 on.
// A place in shared memory whose address is kept in a register, and not worked out again each time.
template <class X>
CMIK_DEVICE X* keep_address(X* place) {
  uint32_t address = shared_address(place);
  asm volatile("" : "+r"(address));
  return static_cast<X*>(__cvta_shared_to_generic(address));
}
CMIK_DEVICE void start_barrier(uint64_t* barrier) {
#if defined(CMIK_HAS_CLUSTERS)
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
#endif
}
// After those that a thread has started, for other threads and for bulk copies to see.
CMIK_DEVICE void publish_barriers() {
#if defined(CMIK_HAS_CLUSTERS)
  asm volatile(
      "fence.mbarrier_init.release.cluster;\n\t"
      "fence.proxy.async.shared::cta;" ::
          : "memory");
#endif
}
CMIK_DEVICE void announce_bytes(uint64_t* barrier, uint32_t bytes) {
#if defined(CMIK_HAS_CLUSTERS)
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
#endif
}
// Addresses and bytes are multiples of 16.
CMIK_DEVICE void copy_bulk(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
#if defined(CMIK_HAS_CLUSTERS)
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
#endif
}
// 16 bytes into block `rank` of the cluster, where this one has `place`; they arrive at its
// barrier.
template <class Together>
CMIK_DEVICE void send(Together* place, int rank, const Together& numbers, uint64_t* barrier) {
#if defined(CMIK_HAS_CLUSTERS)
  uint32_t words[4];
  static_assert(sizeof numbers == sizeof words);
  memcpy(words, &numbers, sizeof words);
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(address_in_block(place, rank)),
      "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]),
      "r"(address_in_block(barrier, rank))
      : "memory");
#endif
}
CMIK_DEVICE void await_bytes(uint64_t* barrier, uint32_t parity) {
#if defined(CMIK_HAS_CLUSTERS)
  asm volatile(
      "{\n\t"
      ".reg .pred done;\n\t"
      "again:\n\t"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n\t"
      "@!done bra again;\n\t"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
#endif
}

// 2^x; 0 where the result is below the smallest normal number.
CMIK_DEVICE float exp2_of(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
// A call, because its registers would be too many within the kernels; so is the logarithm.
inline __noinline__ __device__ double exp2_of(double x) { return exp2(x); }
CMIK_DEVICE float log2_of(float x) { return log2f(x); }
inline __noinline__ __device__ double log2_of(double x) { return log2(x); }

// a b + c, rounded once.
CMIK_DEVICE float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
CMIK_DEVICE double multiply_add(double a, double b, double c) { return __fma_rn(a, b, c); }

// The largest of three numbers that are not negative; NaN where one is.
CMIK_DEVICE float largest_square(float a, float b, float c) {
  const auto bits = [](float x) { return __float_as_uint(x); };
  return __uint_as_float(__vimax3_u32(bits(a), bits(b), bits(c)));
}

// 1 / x to the last bit or the one before, for normal numbers; the quick one to one bit less.
CMIK_DEVICE float quick_reciprocal(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
CMIK_DEVICE float reciprocal(float x) {
  const float result = quick_reciprocal(x);
  return multiply_add(result, multiply_add(-x, result, 1.0f), result);
}
CMIK_DEVICE double reciprocal(double x) { return 1 / x; }

// The larger; NaN where either is.
CMIK_DEVICE float maximum(float a, float b) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}
CMIK_DEVICE double maximum(double a, double b) { return a > b || a != a ? a : b; }

CMIK_DEVICE float to_arithmetic(float x) { return x; }
CMIK_DEVICE double to_arithmetic(double x) { return x; }
CMIK_DEVICE float to_arithmetic(Bfloat16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
CMIK_DEVICE float to_arithmetic(Float16 x) { return __half2float(__ushort_as_half(x.bits)); }

// 16 bytes of a row: entries, or pairs of them where they have 16 bits, the first in the lower
// half.
template <class S>
struct alignas(16) Pack {
  using Word = std::conditional_t<sizeof(S) == 2, uint32_t, S>;
  Word words[16 / sizeof(Word)];
};

// -infinity in all entries.
template <class S>
CMIK_DEVICE Pack<S> lowest_pack(S) {
  Pack<S> pack;
  for (auto& word : pack.words) {
    if constexpr (sizeof(S) > 2)
      word = S(-INFINITY);
    else
      word = std::is_same_v<S, Float16> ? 0xfc00fc00u : 0xff80ff80u;
  }
  return pack;
}

CMIK_DEVICE void unpack_word(uint32_t pair, Bfloat16, float& a, float& b) {
  a = __uint_as_float(pair << 16), b = __uint_as_float(pair & 0xffff0000u);
}
CMIK_DEVICE void unpack_word(uint32_t pair, Float16, float& a, float& b) {
  const float2 both = __half22float2(*reinterpret_cast<const __half2*>(&pair));
  a = both.x, b = both.y;
}
template <class S, class T, int N>
CMIK_DEVICE void unpack(const Pack<S>& pack, T (&out)[N]) {
#pragma unroll
  for (int i = 0; i < 16 / int(sizeof(S)); ++i) {
    if constexpr (sizeof(S) > 2)
      out[i] = pack.words[i];
    else if (i % 2 == 0)
      unpack_word(pack.words[i / 2], S{}, out[i], out[i + 1]);
  }
}

// The larger of each two entries; NaN where either is.
CMIK_DEVICE float larger(float a, float b, float) { return maximum(a, b); }
CMIK_DEVICE double larger(double a, double b, double) { return maximum(a, b); }
CMIK_DEVICE uint32_t larger(uint32_t a, uint32_t b, Bfloat16) {
  asm("max.NaN.bf16x2 %0, %0, %1;" : "+r"(a) : "r"(b));
  return a;
}
CMIK_DEVICE uint32_t larger(uint32_t a, uint32_t b, Float16) {
  asm("max.NaN.f16x2 %0, %0, %1;" : "+r"(a) : "r"(b));
  return a;
}
template <class S>
CMIK_DEVICE Pack<S> larger_entries(Pack<S> a, const Pack<S>& b) {
#pragma unroll
  for (int i = 0; i < int(sizeof a / sizeof a.words[0]); ++i)
    a.words[i] = larger(a.words[i], b.words[i], S{});
  return a;
}
// The largest entry; NaN where one is.
template <class S>
CMIK_DEVICE auto largest_entry(const Pack<S>& pack) {
  auto word = pack.words[0];
#pragma unroll
  for (int i = 1; i < int(sizeof pack / sizeof word); ++i) word = larger(word, pack.words[i], S{});
  if constexpr (sizeof(S) > 2) {
    return word;
  } else {
    float a, b;
    unpack_word(word, S{}, a, b);
    return maximum(a, b);
  }
}

// Two numbers rounded to nearest even.
CMIK_DEVICE uint32_t pair_of(float a, float b, Bfloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
CMIK_DEVICE uint32_t pair_of(float a, float b, Float16) {
  const __half2 pair = __floats2half2_rn(a, b);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <class S, class T, int N>
CMIK_DEVICE Pack<S> pack_of(S, const T (&numbers)[N]) {
  Pack<S> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if constexpr (sizeof(S) > 2)
      pack.words[i] = numbers[i];
    else if (i % 2 == 0)
      pack.words[i / 2] = pair_of(numbers[i], numbers[i + 1], S{});
  }
  return pack;
}
// The first that L2 gives up.
template <class S>
CMIK_DEVICE void store_streaming(Pack<S>* place, const Pack<S>& pack) {
  uint4 words;
  static_assert(sizeof words == sizeof pack);
  memcpy(&words, &pack, sizeof words);
  __stcs(reinterpret_cast<uint4*>(place), words);
}
template <class S>
CMIK_DEVICE S entry_of(const Pack<S>& pack, int i) {
  if constexpr (sizeof(S) > 2)
    return pack.words[i];
  else
    return {uint16_t(pack.words[i / 2] >> 16 * (i % 2))};
}

}  // namespace gpu
}  // namespace cmik
