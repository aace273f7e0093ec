// One call on the CPU: plan, workspace, tasks for the threads, and the sums of their results.
//
// Classes need nothing from one another, so a task is normally a range of whole classes. Where
// there are too few of them to keep the threads busy, a class is split: its blocks' first passes
// are tasks, then its blocks' second passes. Tasks are claimed in order, and a second pass waits
// for first passes that stand before it in the list and so are done or in some thread's hands.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "job.hpp"
#include "threads.hpp"

namespace cmik {

const Kernels& select_kernels(int dtype);  // dispatch.cpp

namespace {

// Exponentials a thread keeps between the passes, in a tile of its own: a part of a common
// second-level cache.
constexpr int64_t kTileBytes = 256 << 10;
// The same where the gradient's memory can be the tile, which costs no cache lines of its own.
// Above this exponentials are made again: cheaper than a way to memory and back.
constexpr int64_t kGradientTileBytes = 2 << 20;
// A block is about this many elements, so that its start costs little...
constexpr int64_t kBlockElements = 1 << 14;
// ... and a class has at most this many, so that its partial sums stay few.
constexpr int64_t kMostBlocks = 32;
// Nor does a block have fewer rows, so that partial sums stay a small share of the features.
constexpr int64_t kFewestBlockRows = 16;
// Small classes are handed out together, at least this many elements at a time.
constexpr int64_t kTaskElements = 1 << 12;
// Classes are split when there are fewer than this many for each thread.
constexpr int64_t kClassesPerThread = 16;
// Gradients from this size on get huge pages.
constexpr int64_t kLargeBytes = 8 << 20;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

ClassRows class_rows(const cmik_problem& p, int64_t cls) {
  ClassRows rows;
  if (p.offsets) {
    rows.first = p.offsets[cls];
    rows.count = p.offsets[cls + 1] - rows.first;
  } else {
    rows.count = p.rows / p.classes;
    rows.first = cls * rows.count;
  }
  const int64_t wanted = std::max(kBlockElements / p.channels, ceil_div(rows.count, kMostBlocks));
  rows.block_rows = ceil_div(std::max(wanted, kFewestBlockRows), 4) * 4;
  rows.blocks = ceil_div(rows.count, rows.block_rows);
  return rows;
}

// Hands out aligned pieces of one allocation: once to measure, once for real.
class Arena {
 public:
  explicit Arena(char* base) : base_(base) {}
  template <class X>
  X* take(int64_t count) {
    char* piece = base_ ? base_ + used_ : nullptr;
    used_ += ceil_div(count * int64_t(sizeof(X)), kAlign) * kAlign;
    return reinterpret_cast<X*>(piece);
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

struct SplitClass {
  ClassRows rows;
  int64_t cls;
  std::atomic<int64_t> first_passes_left;
  std::atomic<bool> ready;
  double* block_value;
};

struct ClassRange {
  int64_t begin, end;
};

struct SplitTask {
  int64_t split;  // index of the split class
  int64_t block;
  bool second;  // which pass
};

template <class T>
class Run {
 public:
  Run(const cmik_problem& problem, const Kernels& kernels) : kernels_(kernels) {
    job_.problem = problem;
    job_.inverse_tau = 1 / problem.temperature;
    job_.exponent_scale = 1.44269504088896340736 / problem.temperature;
    job_.row_scale = problem.weight;
    if (problem.reduction == CMIK_MEAN)
      job_.row_scale /= double(std::max<int64_t>(problem.rows, 1));
    job_.row_weights = problem.incoming && problem.reduction == CMIK_NONE;
    job_.has_rho = job_.row_weights && !problem.centroids;
    const bool wide_type = problem.dtype == CMIK_FLOAT32 || problem.dtype == CMIK_FLOAT64;
    gradient_is_tile_ =
        wide_type && problem.gradient && (problem.channels * int64_t(sizeof(T))) % kAlign == 0;
    width_ = ceil_div(problem.channels * int64_t(sizeof(T)), kAlign) * kAlign / int64_t(sizeof(T));
    const long long worth = problem.rows * problem.channels / elements_worth_a_thread();
    threads_ = int(std::clamp<long long>(worth, 1, std::max(problem.threads, 1)));
    plan();
  }

  int run() {
    Arena measure(nullptr);
    lay_out(measure);
    std::unique_ptr<char, void (*)(void*)> memory(
        static_cast<char*>(std::aligned_alloc(kAlign, size_t(std::max(measure.used(), kAlign)))),
        std::free);
    if (!memory) return CMIK_OUT_OF_MEMORY;
    Arena real(memory.get());
    lay_out(real);
    for (size_t i = 0; i < splits_.size(); ++i) {
      splits_[i].first_passes_left = first_tasks(splits_[i]);
      splits_[i].ready = false;
      kernels_.start_class(job_, splits_[i].rows, splits_[i].cls, &split_states_[i]);
    }
    run_on_threads(
        threads_, [](void* self, int thread) { static_cast<Run*>(self)->work(thread); }, this);
    finish();
    return CMIK_OK;
  }

 private:
  // With given centroids the only thing to do before a block's second pass is to take the logs.
  int64_t first_tasks(const SplitClass& s) const {
    return job_.problem.centroids ? 1 : s.rows.blocks;
  }

  void plan() {
    const cmik_problem& p = job_.problem;
    const bool split = threads_ > 1 && p.classes < kClassesPerThread * threads_;
    int64_t split_count = 0;
    if (split)
      for (int64_t c = 0; c < p.classes; ++c) split_count += class_rows(p, c).blocks > 1;
    splits_ = std::vector<SplitClass>(size_t(split_count));
    int64_t next_split = 0, open = 0, open_elements = 0;
    const auto close = [&](int64_t end) {
      if (open < end) whole_.push_back({open, end});
      open = end;
      open_elements = 0;
    };
    for (int64_t c = 0; c < p.classes; ++c) {
      const ClassRows rows = class_rows(p, c);
      most_rows_ = std::max(most_rows_, rows.count);
      if (split && rows.blocks > 1) {
        close(c);
        open = c + 1;
        SplitClass& s = splits_[size_t(next_split)];
        s.rows = rows;
        s.cls = c;
        for (int64_t b = 0; b < first_tasks(s); ++b) split_tasks_.push_back({next_split, b, false});
        // Spread, for the same reason as the shares of whole classes.
        const int64_t stride = ceil_div(rows.blocks, threads_);
        for (int64_t i = 0; i < stride; ++i)
          for (int64_t b = i; b < rows.blocks; b += stride)
            split_tasks_.push_back({next_split, b, true});
        ++next_split;
        continue;
      }
      whole_blocks_ = std::max(whole_blocks_, rows.blocks);
      open_elements += rows.count * p.channels;
      if (open_elements >= kTaskElements) close(c + 1);
    }
    close(p.classes);
    const int64_t tasks = int64_t(whole_.size() + split_tasks_.size());
    threads_ = int(std::min<int64_t>(threads_, std::max<int64_t>(tasks, 1)));
    share_taken_ = std::vector<std::atomic<int64_t>>(size_t(threads_));
    thread_started_ = std::vector<std::atomic<bool>>(size_t(threads_));
  }

  int64_t share_begin(int owner) const { return int64_t(whole_.size()) * owner / threads_; }

  void take_state(Arena& arena, ClassState<T>& state, int64_t blocks) {
    const cmik_problem& p = job_.problem;
    const bool own = !p.centroids, weighted = job_.has_rho;
    state.centroid = arena.take<T>(width_);
    state.target = arena.take<T>(width_);
    state.rho = arena.take<T>(weighted ? width_ : 0);
    state.partial = arena.take<T>(own ? blocks * width_ : 0);
    state.weighted_partial = arena.take<T>(weighted ? blocks * width_ : 0);
  }

  void lay_out(Arena& arena) {
    const cmik_problem& p = job_.problem;
    job_.row_stats = arena.take<RowStats<T>>(p.rows);
    class_value_ = arena.take<double>(p.classes);
    const int64_t row_bytes = width_ * int64_t(sizeof(T));
    tile_rows_ = std::clamp<int64_t>(kTileBytes / row_bytes, 4, std::max<int64_t>(most_rows_, 4));
    scratch_.resize(size_t(threads_));
    thread_states_.resize(size_t(threads_));
    for (int t = 0; t < threads_; ++t) {
      scratch_[size_t(t)] = {arena.take<char>(tile_rows_ * row_bytes),
                             arena.take<char>(2 * row_bytes), arena.take<char>(2 * row_bytes)};
      if (whole_blocks_ > 0) take_state(arena, thread_states_[size_t(t)], whole_blocks_);
    }
    split_states_.resize(splits_.size());
    for (size_t i = 0; i < splits_.size(); ++i) {
      take_state(arena, split_states_[i], splits_[i].rows.blocks);
      splits_[i].block_value = arena.take<double>(splits_[i].rows.blocks);
    }
  }

  void work(int thread) {
    // A thread's scratch is its own, whatever number a runtime gives.
    if (thread >= threads_ || thread_started_[size_t(thread)].exchange(true)) return;
    const int64_t split_tasks = int64_t(split_tasks_.size());
    for (int64_t i; (i = next_split_task_.fetch_add(1)) < split_tasks;) {
      const SplitTask& task = split_tasks_[size_t(i)];
      if (task.second)
        second_task(task, thread);
      else
        first_task(task, thread);
    }
    // A thread starts on a share of its own, so that threads do not take the same page faults, and
    // then helps with the others'.
    for (int turn = 0; turn < threads_; ++turn) {
      const int owner = (thread + turn) % threads_;
      const int64_t end = share_begin(owner + 1);
      for (int64_t i; (i = share_begin(owner) + share_taken_[size_t(owner)].fetch_add(1)) < end;)
        for (int64_t c = whole_[size_t(i)].begin; c < whole_[size_t(i)].end; ++c)
          whole_class(c, thread);
    }
  }

  // Where a class's exponentials stay between the passes. `shared`: these may be on different
  // threads.
  int64_t tile_for(const ClassRows& rows, bool shared) const {
    const int64_t class_bytes = rows.count * width_ * int64_t(sizeof(T));
    if (gradient_is_tile_ && class_bytes <= kGradientTileBytes) return kInGradient;
    return !shared && rows.count <= tile_rows_ ? 0 : kNowhere;
  }

  bool wants_second_pass() const { return job_.problem.value || job_.problem.gradient; }

  void whole_class(int64_t cls, int thread) {
    const cmik_problem& p = job_.problem;
    const ClassRows rows = class_rows(p, cls);
    double sum = 0;
    if (rows.count == 0) {
      if (p.means)
        std::memset(static_cast<T*>(p.means) + cls * p.channels, 0, size_t(p.channels) * sizeof(T));
    } else {
      ClassState<T>& state = thread_states_[size_t(thread)];
      Scratch& scratch = scratch_[size_t(thread)];
      kernels_.start_class(job_, rows, cls, &state);
      if (p.centroids) {
        kernels_.finish_class(job_, rows, cls, &state);
        for (int64_t b = 0; b < rows.blocks; ++b) sum += both_passes(rows, b, &state, scratch);
      } else {
        const int64_t tile_base = tile_for(rows, false);
        for (int64_t b = 0; b < rows.blocks; ++b)
          kernels_.first_pass(job_, rows, b, &state, scratch, tile_base);
        kernels_.finish_class(job_, rows, cls, &state);
        if (wants_second_pass())
          for (int64_t b = 0; b < rows.blocks; ++b)
            sum += kernels_.second_pass(job_, rows, b, &state, scratch, tile_base);
      }
    }
    class_value_[cls] = sum;
  }

  // A block from features to gradient in one go, which a given centroid allows.
  double both_passes(const ClassRows& rows, int64_t block, void* state, Scratch& scratch) {
    const bool fits = std::min(rows.block_rows, rows.count) <= tile_rows_;
    const int64_t tile_base = fits ? block * rows.block_rows : kNowhere;
    kernels_.first_pass(job_, rows, block, state, scratch, tile_base);
    return kernels_.second_pass(job_, rows, block, state, scratch, tile_base);
  }

  void first_task(const SplitTask& task, int thread) {
    SplitClass& s = splits_[size_t(task.split)];
    void* state = &split_states_[size_t(task.split)];
    if (!job_.problem.centroids)
      kernels_.first_pass(job_, s.rows, task.block, state, scratch_[size_t(thread)],
                          tile_for(s.rows, true));
    if (s.first_passes_left.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
    kernels_.finish_class(job_, s.rows, s.cls, state);
    s.ready.store(true, std::memory_order_release);
  }

  void second_task(const SplitTask& task, int thread) {
    if (!wants_second_pass()) return;
    SplitClass& s = splits_[size_t(task.split)];
    for (int spins = 0; !s.ready.load(std::memory_order_acquire);) {
      if (spins < 256)
        ++spins;
      else
        std::this_thread::yield();
    }
    void* state = &split_states_[size_t(task.split)];
    Scratch& scratch = scratch_[size_t(thread)];
    s.block_value[task.block] = job_.problem.centroids
                                    ? both_passes(s.rows, task.block, state, scratch)
                                    : kernels_.second_pass(job_, s.rows, task.block, state, scratch,
                                                           tile_for(s.rows, true));
  }

  // Sums in class and block order, whoever computed the parts.
  void finish() {
    const cmik_problem& p = job_.problem;
    if (!p.value || p.reduction == CMIK_NONE) return;
    for (const SplitClass& s : splits_) {
      double sum = 0;
      for (int64_t b = 0; b < s.rows.blocks; ++b) sum += s.block_value[b];
      class_value_[s.cls] = sum;
    }
    T* value = static_cast<T*>(p.value);
    if (p.reduction == CMIK_CLASS) {
      for (int64_t c = 0; c < p.classes; ++c)
        value[c] =
            T(class_value_[c] * p.weight / double(std::max<int64_t>(class_rows(p, c).count, 1)));
      return;
    }
    double sum = 0;
    for (int64_t c = 0; c < p.classes; ++c) sum += class_value_[c];
    const double rows = p.reduction == CMIK_MEAN ? double(std::max<int64_t>(p.rows, 1)) : 1;
    *value = T(sum * p.weight / rows);
  }

  const Kernels& kernels_;
  Job job_{};
  int64_t width_ = 0, most_rows_ = 0, whole_blocks_ = 0, tile_rows_ = 0;
  int threads_ = 1;
  bool gradient_is_tile_ = false;
  double* class_value_ = nullptr;
  std::vector<ClassRange> whole_;
  std::vector<SplitTask> split_tasks_;
  std::vector<SplitClass> splits_;
  std::vector<ClassState<T>> split_states_, thread_states_;
  std::vector<Scratch> scratch_;
  std::atomic<int64_t> next_split_task_{0};
  std::vector<std::atomic<int64_t>> share_taken_;
  std::vector<std::atomic<bool>> thread_started_;
};

// A fresh gradient buffer costs a page fault for each of its pages, more than all arithmetic; huge
// pages make them 512 times fewer where the system grants them on request. Only whole pages inside
// the buffer are named, and their contents and size stay as they are.
void ask_for_huge_pages(void* buffer, int64_t bytes) {
#if defined(__linux__)
  if (bytes < kLargeBytes) return;
  const uintptr_t page = 4096,
                  start = (reinterpret_cast<uintptr_t>(buffer) + page - 1) & ~(page - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(buffer) + uintptr_t(bytes)) & ~(page - 1);
  madvise(reinterpret_cast<void*>(start), end - start, MADV_HUGEPAGE);
#else
  (void)buffer, (void)bytes;
#endif
}

template <class T>
int run(const cmik_problem& problem) {
  return Run<T>(problem, select_kernels(problem.dtype)).run();
}

}  // namespace

}  // namespace cmik

extern "C" int cmik_cpu_run(const cmik_problem* problem) {
  using namespace cmik;
  static const int64_t sizes[] = {4, 8, 2, 2};
  if (problem->gradient)
    ask_for_huge_pages(problem->gradient,
                       problem->rows * problem->channels * sizes[problem->dtype]);
  try {
    return problem->dtype == CMIK_FLOAT64 ? run<double>(*problem) : run<float>(*problem);
  } catch (const std::bad_alloc&) {
    return CMIK_OUT_OF_MEMORY;
  }
}

extern "C" const char* cmik_cpu_threading(void) { return cmik::threading_name(); }
