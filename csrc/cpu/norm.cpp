// A call of norm_act_pool on threads: its groups in any order, then the rows' shares in theirs.
#include "norm.hpp"

#include <algorithm>
#include <atomic>
#include <new>
#include <vector>

#include "threads.hpp"

namespace cmik {
namespace {

constexpr int64_t kTakenAtOnce = 8;     // of a thread's share of the work: one in so many
constexpr int64_t kLanesTogether = 32;  // channels of a piece of work, where they come last

class NormRun {
 public:
  NormRun(const cmik_norm_call& call, int order)
      : job_{call, call.channels / call.groups, nullptr, nullptr} {
    const NormKernels& kernels = select_norm_kernels(call.dtype);
    work_ = call.channels_last ? kernels.forward_channels_last : kernels.of_order[order];
    if (call.channels_last) take_more_channels();
    const int64_t number = call.dtype == CMIK_FLOAT64 ? 8 : 4;
    const int64_t group = job_.channels * call.height * call.width;
    items_ = call.rows * (call.channels / job_.channels);
    const int64_t useful = std::min<int64_t>(items_, items_ * group / elements_worth_a_thread());
    threads_ = int(std::clamp<int64_t>(useful, 1, std::max(call.threads, 1)));
    together_ = std::max<int64_t>(1, items_ / (threads_ * kTakenAtOnce));
    plane_bytes_ = (group * number + 63) / 64 * 64;
    memory_.resize(size_t(threads_ * kNormPlanes * plane_bytes_ + 63));
    if (call.weight_grad) job_.weight_shares = take_shares(weight_shares_);
    if (call.bias_grad) job_.bias_shares = take_shares(bias_shares_);
  }

  void run() {
    run_on_threads(
        threads_, [](void* self, int thread) { static_cast<NormRun*>(self)->take_groups(thread); },
        this);
    if (job_.call.dtype == CMIK_FLOAT64)
      add_shares<double>();
    else
      add_shares<float>();
  }

 private:
  double* take_shares(std::vector<double>& shares) {
    shares.resize(size_t(job_.call.rows * job_.call.channels));
    return shares.data();
  }

  // Whole groups, and as a rule whole vectors of channels.
  void take_more_channels() {
    const int64_t all = job_.call.channels, group = job_.channels;
    for (int64_t taken = group; taken < all; taken += group)
      if (all % taken == 0 && taken % kLanesTogether == 0) {
        job_.channels = taken;
        return;
      }
    job_.channels = all;
  }

  void take_groups(int thread) {
    NormScratch scratch;
    const uintptr_t start = (reinterpret_cast<uintptr_t>(memory_.data()) + 63) / 64 * 64;
    for (int i = 0; i < kNormPlanes; ++i)
      scratch.planes[i] =
          reinterpret_cast<char*>(start) + (int64_t(thread) * kNormPlanes + i) * plane_bytes_;
    for (int64_t first; (first = next_.fetch_add(together_)) < items_;)
      for (int64_t item = first; item < std::min(first + together_, items_); ++item)
        work_(job_, item, scratch);
  }

  // Row by row, whoever computed the shares.
  template <class T>
  void add_shares() const {
    add<T>(weight_shares_, job_.call.weight_grad);
    add<T>(bias_shares_, job_.call.bias_grad);
  }
  template <class T>
  void add(const std::vector<double>& shares, void* gradient) const {
    if (!gradient) return;
    const cmik_norm_call& c = job_.call;
    const int64_t set_rows = c.rows / c.sets;
    std::vector<double> sums(static_cast<size_t>(c.channels));
    for (int64_t set = 0; set < c.sets; ++set) {
      std::fill(sums.begin(), sums.end(), 0.0);
      for (int64_t row = set * set_rows; row < (set + 1) * set_rows; ++row)
        for (int64_t j = 0; j < c.channels; ++j)
          sums[size_t(j)] += shares[size_t(row * c.channels + j)];
      for (int64_t j = 0; j < c.channels; ++j)
        static_cast<T*>(gradient)[set * c.channels + j] = T(sums[size_t(j)]);
    }
  }

  NormJob job_;
  void (*work_)(const NormJob&, int64_t item, const NormScratch&);
  int64_t items_ = 0, together_ = 1, plane_bytes_ = 0;
  int threads_ = 1;
  std::atomic<int64_t> next_{0};
  std::vector<char> memory_;
  std::vector<double> weight_shares_, bias_shares_;
};

}  // namespace
}  // namespace cmik

extern "C" int cmik_cpu_norm(const cmik_norm_call* call, int order) {
  try {
    cmik::NormRun(*call, order).run();
    return CMIK_OK;
  } catch (const std::bad_alloc&) {
    return CMIK_OUT_OF_MEMORY;
  }
}
