// Plans that were made, by what they follow from. Threads may share it.
#pragma once

#include <map>
#include <mutex>
#include <tuple>

#include "plan.hpp"

namespace cmik {

class PlanCache {
 public:
  bool find(const Shape& shape, int device, Plan& plan) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = plans_.find(key_of(shape, device));
    if (found == plans_.end()) return false;
    plan = found->second;
    return true;
  }
  void keep(const Shape& shape, int device, const Plan& plan) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (plans_.size() >= kMostPlans) plans_.clear();
    plans_[key_of(shape, device)] = plan;
  }
  void clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    plans_.clear();
  }

 private:
  static constexpr size_t kMostPlans = 256;

  using Key = std::tuple<int, int64_t, int64_t, int64_t, int64_t, int32_t, bool, bool, bool, bool>;
  static Key key_of(const Shape& s, int device) {
    return {device,          s.rows,   s.classes, s.largest, s.channels,
            s.element_bytes, s.ragged, s.aligned, s.given,   s.weighted};
  }

  std::mutex mutex_;
  std::map<Key, Plan> plans_;
};

}  // namespace cmik
