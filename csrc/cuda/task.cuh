// What a kernel is told, and where it finds the rows of a class.
#pragma once

#include "cmikernels.h"
#include "plan.hpp"
#include "primitives.cuh"

namespace cmik {

// Factors in the arithmetic type, to be read as constants.
template <class T>
struct Factors {
  T inverse_tau;
  T exponent_scale;  // log2(e) / tau
  T row_scale;       // of a row's KL in the value, but for the reduction "class"
};

// One call, passed to its kernels by value.
struct Task {
  cmik_problem problem;
  Plan plan;
  SharedLayout shared;
  // Numbers, because a kernel reads one together with what it is for: 0 or not.
  int32_t given;            // centroids
  int32_t has_value;        // to be computed
  int32_t has_gradient;     // likewise
  int32_t has_row_weights;  // `incoming` is one of each row
  int32_t has_order;        // rows are not sorted
  int32_t scattered;        // one of the last two
  bool unless_one;          // leave the gradient as it is where `incoming` is 1
  bool weighted;            // rows' weights differ and centroids are the rows' own
  bool consecutive;         // rows of a class follow one another without gaps
  int64_t rows_per_class;   // where offsets are null
  int64_t slots_per_class;  // likewise
  int32_t packs;            // of a row
  int32_t lanes_bits;       // log2 of the plan's lanes
  int32_t cluster_bits;     // log2 of the plan's cluster
  int32_t slice_bits;       // log2 of slice_packs()
  int32_t teams;            // of a block
  int32_t sum_rows;         // that they make, before they bring them together
  int32_t class_step;       // clusters of the launch
  Factors<float> single;
  Factors<double> full;
  uint32_t* ticket;    // see cmikernels.h
  uint32_t* counters;  // workspace, see plan.hpp
  double* parts;
  void* stats;
  void* slot_sums;
  void* centroids;
  void* rho;
};

namespace gpu {

template <class S>
struct FeatureTraits {
  using Arithmetic = float;
};
template <>
struct FeatureTraits<double> {
  using Arithmetic = double;
};
template <class S>
using ArithmeticOf = typename FeatureTraits<S>::Arithmetic;

template <class T>
CMIK_DEVICE const Factors<T>& factors_of(const Task& task) {
  if constexpr (sizeof(T) == sizeof(float))
    return task.single;
  else
    return task.full;
}

struct ClassRows {
  int64_t first;  // position in class-sorted order
  int64_t count;
};

// Of one row, between the sweeps. Exponents are in base 2: P = factor 2^exponent.
template <class T>
struct alignas(kPackBytes) RowStats {
  T peak;    // largest entry
  T factor;  // of the first sweep: 1 / total
  T shift;   // exponent = z log2(e) / tau - shift; of the first sweep: the total, sum of 2^exponent
  T slack;   // what exponents are too large by
};

CMIK_DEVICE ClassRows rows_of_class(const Task& task, int64_t cls) {
  const cmik_problem& p = task.problem;
  if (!p.offsets) return {cls * task.rows_per_class, task.rows_per_class};
  return {p.offsets[cls], p.offsets[cls + 1] - p.offsets[cls]};
}

// First slot of a class.
CMIK_DEVICE int64_t slots_before(const Task& task, int64_t cls) {
  if (!task.problem.offsets) return cls * task.slots_per_class;
  return uint32_t(task.problem.offsets[cls]) / uint32_t(task.plan.rows_per_slot) + cls;
}

// The last class for which something holds that holds for none after one for which it does not.
template <class Holds>
CMIK_DEVICE int64_t last_class(const Task& task, Holds holds) {
  int64_t low = 0, high = task.problem.classes;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    if (holds(middle))
      low = middle;
    else
      high = middle;
  }
  return low;
}
CMIK_DEVICE int64_t class_of_slot(const Task& task, int64_t slot) {
  return last_class(task, [&](int64_t cls) { return slots_before(task, cls) <= slot; });
}

// The class's rows in the slot; none for a slot that its last rows do not reach.
CMIK_DEVICE ClassRows rows_of_slot(const Task& task, int64_t cls, int64_t slot) {
  const ClassRows all = rows_of_class(task, cls);
  const int64_t skipped = (slot - slots_before(task, cls)) * task.plan.rows_per_slot;
  const int64_t left = all.count - skipped;
  const int64_t count = left < task.plan.rows_per_slot ? left : task.plan.rows_per_slot;
  return {all.first + skipped, count > 0 ? count : 0};
}

// There are fewer than 2^32 rows.
CMIK_DEVICE uint32_t source_row(const Task& task, int64_t position) {
  uint32_t row = uint32_t(position);
  if (task.has_order) row = uint32_t(task.problem.order[position]);
  return row;
}

// d(loss) / d(KL) of a class's rows, before the factor 1 / tau: of all of them, or times what comes
// in for each.
template <class T>
CMIK_DEVICE T class_weight(const Task& task, int64_t cls, int64_t count) {
  const cmik_problem& p = task.problem;
  const T* incoming = static_cast<const T*>(p.incoming);
  T weight = factors_of<T>(task).row_scale;
  if (p.reduction == CMIK_CLASS) weight = T(p.weight / double(count));
  if (incoming && p.reduction != CMIK_NONE) weight *= incoming[p.reduction == CMIK_CLASS ? cls : 0];
  return weight;
}
template <class T>
CMIK_DEVICE T row_weight(const Task& task, T weight_of_class, int64_t row) {
  const cmik_problem& p = task.problem;
  if (!p.incoming || p.reduction != CMIK_NONE) return weight_of_class;
  return weight_of_class * static_cast<const T*>(p.incoming)[row];
}

// Whether the gradient of the class is right as it stands.
template <class T>
CMIK_DEVICE bool leave_alone(const Task& task, int64_t cls) {
  if (!task.unless_one) return false;
  const T* incoming = static_cast<const T*>(task.problem.incoming);
  return incoming[task.problem.reduction == CMIK_CLASS ? cls : 0] == T(1);
}

template <class X>
CMIK_DEVICE X* in_shared(int offset) {
  return reinterpret_cast<X*>(shared_memory() + offset);
}

}  // namespace gpu
}  // namespace cmik
