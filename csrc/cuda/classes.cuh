// Classes in shared memory: each is read once, by a cluster of blocks that share its rows.
//
// The sums of the blocks' rows meet in one another's shared memory: every block adds up its part of
// the columns, over the blocks in order, and writes the centroid's part to all of them. While a
// class is worked on, the next ones are on their way.
#pragma once

#include "rows.cuh"

namespace cmik {
namespace gpu {

template <class S, Form form, Team kTeam>
struct ClassWorker {
  using T = ArithmeticOf<S>;
  using Part = RowPart<S, form, kTeam>;

  const Task& task;

  CMIK_DEVICE int rank() const { return rank_in_cluster(); }
  CMIK_DEVICE int cluster() const { return task.plan.cluster; }

  // The next class with work to do.
  CMIK_DEVICE int from(int cls) const {
    while (cls < task.problem.classes && leave_alone<T>(task, cls)) cls += task.class_step;
    return cls;
  }
  CMIK_DEVICE int next(int cls) const { return from(cls + task.class_step); }

  // A block's part of so many, the last may have fewer.
  CMIK_DEVICE int part_of(int count) const { return (count + cluster() - 1) >> task.cluster_bits; }

  // This block's share of a class's rows.
  CMIK_DEVICE ClassRows share(const ClassRows& all) const {
    const int count = int(all.count), each = part_of(count);
    const int skipped = rank() * each < count ? rank() * each : count;
    return {all.first + skipped, count - skipped < each ? count - skipped : each};
  }

  CMIK_DEVICE uint64_t* barrier(int stage) const {
    return in_shared<uint64_t>(kBarriersAt) + stage;
  }

  // Sum of the block's values.
  CMIK_DEVICE double* total() const { return in_shared<double>(kTotalAt); }

  // Start to bring the rows. Called by the first warp.
  CMIK_DEVICE void fetch(int cls, int stage) const {
    const cmik_problem& p = task.problem;
    if (cls >= p.classes) return;
    const ClassRows rows = share(rows_of_class(task, cls));
    const int count = int(rows.count);
    const uint32_t row_bytes = uint32_t(p.channels * int64_t(sizeof(S)));
    S* to = ShareSource<S, form>{task, 0, 0, stage}.tile();
    const S* features = static_cast<const S*>(p.features);
    if (thread() == 0) announce_bytes(barrier(stage), uint32_t(count) * row_bytes);
    exchange(0, 1);  // the other lanes wait for the announcement
    if (task.consecutive) {
      if (thread() == 0 && count > 0)
        copy_bulk(to, features + rows.first * p.row_stride, uint32_t(count) * row_bytes,
                  barrier(stage));
    } else {
      for (int r = thread(); r < count; r += kWarpThreads)
        copy_bulk(to + r * p.channels, features + source_row(task, rows.first + r) * p.row_stride,
                  row_bytes, barrier(stage));
    }
  }

  // sums / count of all blocks into every block's `centroid`.
  CMIK_DEVICE void share_centroid(int64_t count, int width, T* centroid) const {
    T* sums = in_shared<T>(task.shared.sums);
    const T each = T(1) / T(count);
    if (cluster() == 1) {
#pragma unroll 1
      for (int j = thread(); j < width; j += threads())
        centroid[j] = column_sum<T>(task, width, j) * each;
      return;
    }
#pragma unroll 1
    for (int j = thread(); j < width; j += threads()) sums[j] = column_sum<T>(task, width, j);
    sync_cluster();
    const int columns = part_of(width), begin = rank() * columns;
    const int end = begin + columns < width ? begin + columns : width;
    for (int j = begin + thread(); j < end; j += threads()) {
      T sum = 0;
      for (int other = 0; other < cluster(); ++other) sum += in_block(sums, other)[j];
      for (int other = 0; other < cluster(); ++other) in_block(centroid, other)[j] = sum * each;
    }
    sync_cluster();
  }

  CMIK_DEVICE void run() {
    const cmik_problem& p = task.problem;
    const int stages = form == Form::any ? 0 : task.plan.stages;
    const int width = task.packs * pack_entries(sizeof(S));
    const Columns<T> columns{width};
    TeamOf<T, kTeam> team(task);

    if (thread() == threads() - 1) {
      for (int each = 0; each < stages; ++each) start_barrier(barrier(each));
      *total() = 0;
    }
    publish_barriers();
    sync_block();
    int cls = from(int(block()) >> task.cluster_bits);
    for (int stage = 0, ahead = cls; stage < stages; ++stage, ahead = next(ahead))
      if (thread() < kWarpThreads) fetch(ahead, stage);
    for (int turn = 0; cls < p.classes; ++turn, cls = next(cls)) {
      const int stage = turn & (stages - 1);  // stages are a power of 2
      const ClassRows all = rows_of_class(task, cls);
      const ClassRows mine = share(all);
      const ShareSource<S, form> source{task, mine.first, int(mine.count), stage};
      if (stages > 0) await_bytes(barrier(stage), turn & stages ? 1 : 0);
      double value = 0;
      if (all.count > 0) {
        if (p.centroids)
          take_given<S, Part>(task, cls, columns, source);
        else
          make_own(all, source, width, columns, team);
        if (p.value || p.gradient)
          value = finish_rows<S, form, kTeam>(task, cls, all.count, source, columns, team);
      }
      write_results(cls, value, width, columns.centroid());
      sync_block();  // the tile and the columns are free
      if (stages > 0) {
        int ahead = cls;
        for (int each = 0; each < stages; ++each) ahead = next(ahead);
        if (thread() < kWarpThreads) fetch(ahead, stage);
      }
    }
    if (thread() == 0 && p.value && (p.reduction == CMIK_MEAN || p.reduction == CMIK_SUM))
      task.parts[block()] = *total();
  }

  CMIK_DEVICE void make_own(const ClassRows& all, const ShareSource<S, form>& source, int width,
                            const Columns<T>& columns, TeamOf<T, kTeam>& team) const {
    for (int second = 0; second <= int(form == Form::any && task.weighted); ++second) {
      if (second) sync_block();  // the first sums have been read
      sum_rows<S, form, kTeam>(task, all.first, source, second, team);
      share_centroid(all.count, width, second ? columns.rho() : columns.centroid());
    }
    if (form == Form::any && task.weighted) {
      sync_block();
      for (int j = thread(); j < width; j += threads())
        columns.rho()[j] /= at_least_normal(columns.centroid()[j]);
    }
    prepare_target<Part>(task, columns, source, T(0));
  }

  CMIK_DEVICE void write_results(int cls, double value, int width, const T* centroid) const {
    const cmik_problem& p = task.problem;
    const int64_t count = rows_of_class(task, cls).count;
    if (p.means && rank() == 0) {
      T* out = static_cast<T*>(p.means) + int64_t(cls) * p.channels;
      for (int position = thread(); position < width; position += threads()) {
        const int j = ColumnOrder<S>::column(width, position);
        if (j < p.channels) out[j] = count > 0 ? centroid[position] : T(0);
      }
    }
    if (!p.value || thread() != 0) return;
    if (p.reduction != CMIK_CLASS)
      *total() += value;
    else if (cluster() == 1)
      static_cast<T*>(p.value)[cls] = count > 0 ? T(p.weight * value / double(count)) : T(0);
    else
      task.parts[int64_t(cls) * cluster() + rank()] = value;
  }
};

template <class S, Form form, Team kTeam>
__global__ void __launch_bounds__(kMostThreads, 1) class_kernel(const CMIK_CONSTANT Task task) {
  if (leave_alone<ArithmeticOf<S>>(task, 0) && task.problem.reduction != CMIK_CLASS) return;
  ClassWorker<S, form, kTeam>{task}.run();
}

}  // namespace gpu
}  // namespace cmik
