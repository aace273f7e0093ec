// What the scheduler of norm_act_pool hands to its kernels.
#pragma once

#include <cstdint>

#include "cmikernels.h"

namespace cmik {

// A piece of work is a group of channels of one row: nothing outside of it is needed. Where
// channels come last it is as many whole groups as fill some vectors.
struct NormJob {
  cmik_norm_call call;
  int64_t channels;  // of a piece of work
  // Each row's share of the gradients of weight and bias, (rows, channels); null where not wanted.
  double* weight_shares;
  double* bias_shares;
};

// Maps of a group that a thread may have to hold beside those in memory.
constexpr int kNormPlanes = 8;

struct NormScratch {
  char* planes[kNormPlanes];
};

// For one features' type: a piece of work, by number, in each direction; see cmik_norm_order.
struct NormKernels {
  void (*of_order[3])(const NormJob&, int64_t item, const NormScratch&);
  void (*forward_channels_last)(const NormJob&, int64_t item, const NormScratch&);
};

const NormKernels& select_norm_kernels(int dtype);

}  // namespace cmik
