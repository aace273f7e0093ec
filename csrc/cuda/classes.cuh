// Classes in shared memory: each is read once, by a cluster of blocks that share its rows.
//
// Every block of a cluster is the owner of some columns. All send it their sums of these, it adds
// them up, over the blocks in order, and sends means and logarithms to all. What is sent is awaited
// at a barrier of the receiver, and nobody waits for the whole cluster: a block sends sums of the
// next class only when it has the owners' answers for this one, so that one inbox is enough. While
// a class is worked on, the next ones are on their way.
#pragma once

#include "rows.cuh"
#include "values.cuh"

namespace cmik {
namespace gpu {

template <class S, Form form, Team kTeam>
struct ClassWorker {
  using T = ArithmeticOf<S>;
  using Part = RowPart<S, form, kTeam>;
  using Order = ColumnOrder<S>;
  using Together = typename Order::Together;

  const Task& task;

  CMIK_DEVICE int rank() const { return rank_in_cluster(); }
  CMIK_DEVICE int cluster() const { return has_bulk_copies() ? task.plan.cluster : 1; }

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

  // Of the next exchange in the cluster. It changes between two meetings of the block.
  CMIK_DEVICE uint32_t& parity() const { return *in_shared<uint32_t>(kParityAt); }
  CMIK_DEVICE void change_parity() const {
    if (thread() == 0) parity() ^= 1;
  }
  // Values of the classes so far, of this thread's warp.
  CMIK_DEVICE double& total() const {
    return in_shared<double>(kTotalsAt)[thread() / kWarpThreads];
  }

  // sums / count of all blocks into every block's vector of that number; with the centroid, the
  // logarithms of its significands into target.
  CMIK_DEVICE void share_means(int64_t count, const Columns<T>& columns, int number) {
    const T each = T(1) / T(count);
    Together* means = reinterpret_cast<Together*>(columns.vector(number));
    const int packs = columns.width / Order::kTogether;
    if (cluster() == 1) {
#pragma unroll 1
      for (int pack = thread(); pack < packs; pack += threads()) {
        Together sum = column_sums<S>(task, columns.width, pack);
#pragma unroll
        for (int i = 0; i < Order::kTogether; ++i) sum.of[i] *= each;
        means[pack] = sum;
      }
      return;
    }
    const int bits = task.slice_bits, first = rank() << bits;
    const int end = first + (1 << bits) < packs ? first + (1 << bits) : packs;
    const int owned = end > first ? end - first : 0;
    const bool with_logarithms = number == kCentroid;
    Together* inbox = in_shared<Together>(task.shared.inbox);
    if (thread() == 0) {
      announce_bytes(barrier(kInboxBarrier), uint32_t(owned * cluster() * kPackBytes));
      announce_bytes(barrier(kOutcomeBarrier),
                     uint32_t((1 + with_logarithms) * packs * kPackBytes));
    }
#pragma unroll 1
    for (int pack = thread(); pack < packs; pack += threads()) {
      const int owner = pack >> bits, place = (rank() - owner) * (1 << bits) + pack;
      send(inbox + place, owner, column_sums<S>(task, columns.width, pack), barrier(kInboxBarrier));
    }
    const uint32_t phase = parity();
    await_bytes(barrier(kInboxBarrier), phase);
    Together* logarithms = reinterpret_cast<Together*>(columns.target());
#pragma unroll 1
    for (int pack = first + thread(); pack < end; pack += threads()) {
      Together mean{}, logarithm;
#pragma unroll 1
      for (int other = 0; other < cluster(); ++other) {
        const Together sum = inbox[(other << bits) + pack - first];
#pragma unroll
        for (int i = 0; i < Order::kTogether; ++i) mean.of[i] += sum.of[i];
      }
#pragma unroll
      for (int i = 0; i < Order::kTogether; ++i) {
        mean.of[i] *= each;
        if (with_logarithms) logarithm.of[i] = log2_of(significand_of(at_least_normal(mean.of[i])));
      }
#pragma unroll 1
      for (int other = 0; other < cluster(); ++other) {
        send(means + pack, other, mean, barrier(kOutcomeBarrier));
        if (with_logarithms) send(logarithms + pack, other, logarithm, barrier(kOutcomeBarrier));
      }
    }
    await_bytes(barrier(kOutcomeBarrier), phase);
  }

  CMIK_DEVICE void run() {
    const cmik_problem& p = task.problem;
    const int stages = form == Form::any || !has_bulk_copies() ? 0 : task.plan.stages;
    const int width = task.packs * pack_entries(sizeof(S));
    const Columns<T> columns{width};
    TeamOf<T, kTeam> team(task);

    if (thread() == threads() - 1) {
      for (int each = 0; each < stages; ++each) start_barrier(barrier(each));
      if (cluster() > 1)
        start_barrier(barrier(kInboxBarrier)), start_barrier(barrier(kOutcomeBarrier));
      publish_barriers();
    }
    if (thread() == 0) parity() = 0;
    if (thread() % kWarpThreads == 0) total() = 0;
    if (cluster() > 1) meet_cluster();
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
      double value = 0;  // of this thread's rows
      if (all.count > 0) {
        if (p.centroids)
          take_given<S, Part>(task, cls, columns, source);
        else
          make_own(all, source, columns, team);
        if (p.value || p.gradient)
          finish_rows<S, form, kTeam>(task, cls, all.count, source, columns, team, value);
      }
      if (p.reduction == CMIK_CLASS && p.value) {
        write_class_value(cls, reduce_block(value, in_shared<double>(kReductionAt), Sum{}));
      } else {
        value = reduce_warp(value, kWarpThreads, Sum{});
        if (thread() % kWarpThreads == 0) total() += value;
      }
      if (p.means && rank() == 0) write_means(cls, columns);
      sync_block();  // the tile and the columns are free
      if (stages > 0) {
        int ahead = cls;
        for (int each = 0; each < stages; ++each) ahead = next(ahead);
        if (thread() < kWarpThreads) fetch(ahead, stage);
      }
    }
    if (!p.value || (p.reduction != CMIK_MEAN && p.reduction != CMIK_SUM)) return;
    sync_block();
    double sum = 0;
    if (thread() == 0)
      for (int warp = 0; warp < threads() / kWarpThreads; ++warp)
        sum += in_shared<double>(kTotalsAt)[warp];
    add_up_blocks<S>(task, sum);
  }

  CMIK_DEVICE void make_own(const ClassRows& all, const ShareSource<S, form>& source,
                            const Columns<T>& columns, TeamOf<T, kTeam>& team) {
    const bool weighted = form == Form::any && task.weighted;
    sum_rows<S, form, kTeam>(task, all.first, source, false, team);
    share_means(all.count, columns, kCentroid);
    if (weighted) {
      sync_block();  // the first sums have been read
      change_parity();
      sum_rows<S, form, kTeam>(task, all.first, source, true, team);
      share_means(all.count, columns, kRho);
      sync_block();
      for (int j = thread(); j < columns.width; j += threads())
        columns.rho()[j] /= at_least_normal(columns.centroid()[j]);
    }
    prepare_target<S, Part>(task, columns, source, T(0), cluster() > 1);
    change_parity();
  }

  CMIK_DEVICE void write_means(int cls, const Columns<T>& columns) const {
    const cmik_problem& p = task.problem;
    const int64_t count = rows_of_class(task, cls).count;
    T* out = static_cast<T*>(p.means) + int64_t(cls) * p.channels;
    for (int position = thread(); position < columns.width; position += threads()) {
      const int j = Order::column(columns.width, position);
      if (j < p.channels) out[j] = count > 0 ? columns.centroid()[position] : T(0);
    }
  }
  CMIK_DEVICE void write_class_value(int cls, double value) const {
    const cmik_problem& p = task.problem;
    const int64_t count = rows_of_class(task, cls).count;
    if (thread() != 0) return;
    if (cluster() == 1)
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
