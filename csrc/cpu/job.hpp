// What the scheduler hands to the kernels: a call made ready, and the state of a class.
#pragma once

#include <cstdint>

#include "cmikernels.h"

namespace cmik {

// Rows of one class are worked on in blocks of a size that depends on the shape alone, and partial
// sums are added in block order. So results do not depend on how many threads there were.
struct ClassRows {
  int64_t first;       // position of the class's first row in class-sorted order
  int64_t count;       // rows in the class
  int64_t block_rows;  // rows in each block, the last may have fewer
  int64_t blocks;
};

// Of one row, between the passes.
template <class T>
struct RowStats {
  T peak;             // largest entry
  T inverse_sum;      // 1 / sum_j exp((z_j - peak) / tau)
  double log_sum;     // log of that sum
  bool finite_range;  // all exponentials of the row are normal numbers
};

// Column vectors of one class, (M) each. Rows of `partial` are block sums, (blocks, M).
template <class T>
struct ClassState {
  T* centroid;          // Q
  T* target;            // log Q + level = log(Q / max Q)
  T* rho;               // class mean of (w - mean w) P / Q, where rows' weights differ
  T* partial;           // block sums of P
  T* weighted_partial;  // block sums of (w - mean w) P
  double level;         // -log max Q, close to every row's log_sum
  double missing_mass;  // 1 - sum_j Q of a given centroid
  double weight;        // dL/dKL of the rows; to be multiplied by each row's incoming number
  double mean_weight;   // of the rows, where these differ
};

// One thread's workspace.
struct Scratch {
  char* tile;       // exponentials of the rows at hand
  char* rows;       // two rows converted to the arithmetic type
  char* gradients;  // two gradient rows before they are rounded to the features' type
};

struct Job {
  cmik_problem problem;
  void* row_stats;        // RowStats<T>, (N) by class-sorted position
  double inverse_tau;     // 1 / temperature
  double exponent_scale;  // log2(e) / temperature
  double row_scale;       // of a row's KL in the value, but for the reduction "class"
  bool row_weights;       // every row has an incoming number of its own
  bool has_rho;           // and so the centroid, which is the rows' own, adds to the gradient
};

// Rows of a workspace start at multiples of this many bytes.
constexpr int64_t kAlign = 64;

// The kernels of one instruction set for one features' type. `state` is a ClassState<T>.
//
// `tile_base` tells where a block's exponentials are between its passes: in the thread's tile,
// whose first row is that row of the class; in the rows of the gradient; or nowhere, to be made
// again.
constexpr int64_t kInGradient = -1;
constexpr int64_t kNowhere = -2;

struct Kernels {
  // Row statistics of a block and, unless centroids are given, its partial sums.
  void (*first_pass)(const Job&, const ClassRows&, int64_t block, void* state, Scratch&,
                     int64_t tile_base);
  // Before the first pass: the weight of the class's rows and, where they differ, its mean.
  void (*start_class)(const Job&, const ClassRows&, int64_t cls, void* state);
  // Between the passes: centroid, target and rho, from partial sums or the given centroid.
  void (*finish_class)(const Job&, const ClassRows&, int64_t cls, void* state);
  // Gradient and row values of a block; returns the sum of its KL.
  double (*second_pass)(const Job&, const ClassRows&, int64_t block, const void* state, Scratch&,
                        int64_t tile_base);
};

}  // namespace cmik
