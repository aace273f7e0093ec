// Rows beyond the registers of a block: slots of rows as in slots.cuh, but the block goes over a
// row's columns again for each of its numbers, from L1 and L2 after the first time.
#pragma once

#include "slots.cuh"

namespace cmik {
namespace gpu {

template <class S>
struct WideRow {
  using T = ArithmeticOf<S>;

  const Task& task;
  const S* memory;

  CMIK_DEVICE WideRow(const Task& a_task, int64_t row)
      : task(a_task),
        memory(static_cast<const S*>(task.problem.features) + row * task.problem.row_stride) {}

  CMIK_DEVICE T operator[](int64_t j) const {
    return to_arithmetic(memory[j * task.problem.channel_stride]);
  }

  // f(j) of all columns put together.
  template <class Op, class F>
  CMIK_DEVICE T fold(T start, Op op, F f) const {
    T result = start;
    for (int64_t j = thread(); j < task.problem.channels; j += threads()) result = op(result, f(j));
    result = reduce_block(result, shared_memory(), op);
    sync_block();
    return result;
  }

  CMIK_DEVICE T peak() const {
    return fold(T(-INFINITY), Largest{}, [&](int64_t j) { return (*this)[j]; });
  }
  CMIK_DEVICE T exponent(int64_t j, T peak) const {
    return ((*this)[j] - peak) * factors_of<T>(task).exponent_scale;
  }
  CMIK_DEVICE T exponential(int64_t j, T peak) const { return exp2_of(exponent(j, peak)); }
  CMIK_DEVICE T total(T peak) const {
    return fold(T(0), Sum{}, [&](int64_t j) { return exponential(j, peak); });
  }
};

template <class S>
struct WideWork {
  using T = ArithmeticOf<S>;

  static CMIK_DEVICE void sum(const Task& task, int64_t cls, int64_t number, bool second) {
    const SlotRows<S> slot(task, cls, number);
    const int64_t channels = task.problem.channels;
    T* sums = static_cast<T*>(task.slot_sums) + number * channels;
    const auto weight_of = [&](int64_t position) {
      return row_weight(task, factors_of<T>(task).row_scale, source_row(task, position));
    };
    for (int64_t r = 0; r < slot.mine.count; ++r) {
      const WideRow<S> row(task, source_row(task, slot.mine.first + r));
      T factor;
      if (second) {
        factor =
            (weight_of(slot.mine.first + r) - weight_of(slot.all.first)) * slot.stats[r].factor;
      } else {
        const T peak = row.peak(), total = row.total(peak);
        factor = 1 / total;
        if (thread() == 0) slot.stats[r] = {peak, factor, total, T(0)};
        sync_block();
      }
      for (int64_t j = thread(); j < channels; j += threads())
        sums[j] = (r > 0 ? sums[j] : T(0)) + row.exponential(j, slot.stats[r].peak) * factor;
    }
  }

  // Returns the slot's part of the value.
  static CMIK_DEVICE double finish(const Task& task, int64_t cls, int64_t number) {
    const cmik_problem& p = task.problem;
    const int64_t channels = p.channels;
    const SlotRows<S> slot(task, cls, number);
    const T* centroid =
        static_cast<const T*>(p.centroids ? p.centroids : task.centroids) + cls * channels;
    const T* rho = static_cast<const T*>(task.rho) + cls * channels;
    T* target = static_cast<T*>(task.slot_sums) + number * channels;  // the sums have been used

    // As prepare_target() and take_given() have it.
    T top = 0;
    double sum = 0;
    for (int64_t j = thread(); j < channels; j += threads()) {
      top = maximum(top, at_least_normal(centroid[j]));
      sum += double(at_least_normal(centroid[j]));
    }
    top = reduce_block(top, shared_memory(), Largest{});
    sync_block();
    if (top > 1) top = 1;
    const T missing_mass = p.centroids ? T(1 - reduce_block(sum, shared_memory(), Sum{})) : T(0);
    sync_block();
    for (int64_t j = thread(); j < channels; j += threads())
      target[j] = log2_of(at_least_normal(centroid[j]) / top);

    const T has_peers = !p.centroids && slot.all.count == 1 ? T(0) : T(1);
    const T weight_of_class = class_weight<T>(task, cls, slot.all.count);
    double value = 0;
    for (int64_t r = 0; r < slot.mine.count; ++r) {
      const int64_t source = source_row(task, slot.mine.first + r);
      const WideRow<S> row(task, source);
      const T peak = p.centroids ? row.peak() : slot.stats[r].peak;
      const T total = p.centroids ? row.total(peak) : slot.stats[r].shift;
      const T inverse_total = 1 / total, offset = log2_of(total * top);
      const auto d = [&](int64_t j) {
        return maximum(row.exponent(j, peak) - target[j], kLowestExponent<T>);
      };
      const auto probability = [&](int64_t j) { return row.exponential(j, peak) * inverse_total; };
      const T mean = row.fold(T(0), Sum{}, [&](int64_t j) { return probability(j) * d(j); });
      if (p.value) {
        T accurate = (mean - offset) * kLog2<T>;
        if (is_small(accurate, missing_mass))
          accurate = missing_mass + row.fold(T(0), Sum{}, [&](int64_t j) {
            const T q = p.centroids ? at_least_normal(centroid[j]) : centroid[j];
            return divergence(probability(j), q, (d(j) - offset) * kLog2<T>, T(0));
          });
        accurate *= has_peers;
        value += double(accurate);
        if (p.reduction == CMIK_NONE && thread() == 0)
          static_cast<T*>(p.value)[source] = T(p.weight) * accurate;
      }
      if (!p.gradient) continue;
      const T rho_mean =
          task.weighted ? row.fold(T(0), Sum{}, [&](int64_t j) { return probability(j) * rho[j]; })
                        : T(0);
      S* out = static_cast<S*>(p.gradient) + source * channels;
      const T mass = has_peers * factors_of<T>(task).inverse_tau;
      const T slope = has_peers * (row_weight(task, weight_of_class, source) * (mass * kLog2<T>));
      for (int64_t j = thread(); j < channels; j += threads()) {
        T g = probability(j) * multiply_add(d(j), slope, -mean * slope);
        if (task.weighted) g += probability(j) * mass * (rho_mean - rho[j]);
        const T numbers[pack_entries(sizeof(S))] = {g};
        out[j] = entry_of(pack_of(S{}, numbers), 0);
      }
    }
    return value;
  }
};

template <class S>
__global__ void __launch_bounds__(kMostThreads, 1) wide_kernel(const CMIK_CONSTANT Task task) {
  take_items<S, WideWork<S>>(task);
}

}  // namespace gpu
}  // namespace cmik
