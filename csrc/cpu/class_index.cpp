// Labels to class order by counting: one read of the labels, and a second where they are not
// sorted.
#include <algorithm>
#include <cstring>

#include "cmikernels.h"

extern "C" void cmik_label_bounds(const int64_t* labels, int64_t rows, int64_t* low,
                                  int64_t* high) {
  *low = *high = labels[0];
  for (int64_t i = 1; i < rows; ++i) {
    *low = std::min(*low, labels[i]);
    *high = std::max(*high, labels[i]);
  }
}

extern "C" int cmik_index_labels(const int64_t* labels, int64_t rows, int64_t classes,
                                 int64_t* offsets, int64_t* order) {
  std::memset(offsets, 0, size_t(classes + 1) * sizeof(int64_t));
  bool sorted = true;
  for (int64_t i = 0; i < rows; ++i) {
    ++offsets[labels[i] + 1];
    sorted &= i == 0 || labels[i - 1] <= labels[i];
  }
  for (int64_t c = 0; c < classes; ++c) offsets[c + 1] += offsets[c];
  if (sorted) return 1;
  // Backwards from each class's end, so that rows keep their order; the ends become the starts.
  for (int64_t i = rows; i-- > 0;) order[--offsets[labels[i] + 1]] = i;
  std::memmove(offsets, offsets + 1, size_t(classes) * sizeof(int64_t));
  offsets[classes] = rows;
  return 0;
}
