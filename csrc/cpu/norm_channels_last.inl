// The forward where channels come last: some of a row's channels, in lanes. A vector is of one
// pixel, and statistics are those of lanes.

template <class S, class T>
struct ChannelsLast {
  const cmik_norm_call& call;
  const NormScratch& scratch;
  int64_t row, first, lanes, area, stride;  // the first channel, how many; numbers between pixels
  const T *x, *residual;
  T *mean, *scale, *shift;

  ChannelsLast(const NormJob& job, int64_t item, const NormScratch& s)
      : call(job.call), scratch(s), lanes(job.channels) {
    const int64_t pieces = call.channels / lanes;
    row = item / pieces, first = item % pieces * lanes;
    area = call.height * call.width;
    stride = std::is_same_v<S, T> ? call.channels : lanes;
    x = numbers(call.x, 0);
    residual = call.residual ? numbers(call.residual, 1) : nullptr;
    mean = plane(2), scale = plane(3), shift = plane(4);
  }

  T* plane(int number) const { return reinterpret_cast<T*>(scratch.planes[number]); }

  // Of all pixels, in the arithmetic type: where they stand, or converted into a plane.
  const T* numbers(const void* all, int number) const {
    const S* from = static_cast<const S*>(all) + row * area * call.channels + first;
    if constexpr (std::is_same_v<S, T>) {
      return from;
    } else {
      for (int64_t k = 0; k < area; ++k)
        widen(from + k * call.channels, 1, lanes, plane(number) + k * lanes);
      return plane(number);
    }
  }

  // Call f(lane, count, V) for V whole vectors of lanes, or for one of `count`.
  template <class F>
  void by_lanes(F&& f) const {
    int64_t j = 0;
    for (; j + kUnroll * kWidth<T> <= lanes; j += kUnroll * kWidth<T>)
      f(j, kWidth<T>, std::integral_constant<int, kUnroll>{});
    for (; j + kWidth<T> <= lanes; j += kWidth<T>)
      f(j, kWidth<T>, std::integral_constant<int, 1>{});
    if (j < lanes) f(j, lanes - j, std::integral_constant<int, 1>{});
  }

  // Each lane's total over the pixels of term(numbers, lane, count).
  template <class Term>
  void lane_totals(T* out, Term&& term) const {
    by_lanes([&](int64_t lane, int64_t count, auto vectors) {
      constexpr int V = vectors;
      Vec<T> total[V] = {};
      for (int64_t begin = 0; begin < area; begin += kPixels) {
        const int64_t end = begin + kPixels < area ? begin + kPixels : area;
        Vec<T> part[V] = {};
        for (int64_t k = begin; k < end; ++k)
          for (int v = 0; v < V; ++v) {
            const int64_t j = lane + v * kWidth<T>;
            part[v] += term(load_some(x + k * stride + j, count, T(0)), j, count);
          }
        for (int v = 0; v < V; ++v) total[v] += part[v];
      }
      for (int v = 0; v < V; ++v) store_some(out + lane + v * kWidth<T>, count, total[v]);
    });
  }

  static double total_of(const T* numbers, int64_t start, int64_t count) {
    double sum = 0;
    for (int64_t j = start; j < start + count; ++j) sum += double(numbers[j]);
    return sum;
  }

  void find_factors() const {
    const int64_t maps = call.channels / call.groups, set = row / (call.rows / call.sets);
    const T* weight = static_cast<const T*>(call.weight);
    const T* bias = static_cast<const T*>(call.bias);
    const double count = double(maps * area);
    T *sums = plane(5), *squares = plane(6);
    lane_totals(sums, [](Vec<T> v, int64_t, int64_t) { return v; });
    for (int64_t j = 0; j < lanes; ++j) mean[j] = T(total_of(sums, j / maps * maps, maps) / count);
    lane_totals(squares, [&](Vec<T> v, int64_t j, int64_t n) {
      const Vec<T> d = v - load_some(mean + j, n, T(0));
      return d * d;
    });
    for (int64_t j = 0; j < lanes; ++j) {
      const int64_t start = j / maps * maps;
      double sum = total_of(squares, start, maps);
      if (!std::isfinite(sum))
        sum = large_moments(maps * area, mean[j],
                            [&](int64_t i) { return x[i / maps * stride + start + i % maps]; });
      const int64_t parameter = set * call.channels + first + j;
      scale[j] = T(1 / std::sqrt(sum / count + call.eps)) * (weight ? weight[parameter] : T(1));
      shift[j] = bias ? bias[parameter] : T(0);
    }
  }

  void make() const {
    find_factors();
    const int64_t height = call.height / call.pool, width = call.width / call.pool;
    S* out = static_cast<S*>(call.out) + row * height * width * call.channels + first;
    const T slope = T(call.slope);
    by_lanes([&](int64_t lane, int64_t count, auto vectors) {
      constexpr int V = vectors;
      Vec<T> m[V], s[V], b[V];
      for (int v = 0; v < V; ++v) {
        const int64_t j = lane + v * kWidth<T>;
        m[v] = load_some(mean + j, count, T(0));
        s[v] = load_some(scale + j, count, T(0));
        b[v] = load_some(shift + j, count, T(0));
      }
      for (int64_t i = 0; i < height; ++i)
        for (int64_t at = 0; at < width; ++at)
          for (int v = 0; v < V; ++v) {
            const int64_t j = lane + v * kWidth<T>;
            const auto pixel = [&](int64_t k) {
              Vec<T> y = (load_some(x + k * stride + j, count, T(0)) - m[v]) * s[v] + b[v];
              if (residual) y += load_some(residual + k * stride + j, count, T(0));
              return activated<T>(y, slope);
            };
            const int64_t k = (i * call.width + at) * call.pool;
            Vec<T> y = pixel(k);
            if (call.pool == 2)
              y = ((y + pixel(k + call.width)) + (pixel(k + 1) + pixel(k + call.width + 1))) *
                  T(0.25);
            put(out + (i * width + at) * call.channels + j, count, y);
          }
    });
  }

  static void put(S* to, int64_t count, Vec<T> numbers) {
    if constexpr (std::is_same_v<S, T>) {
      store_some(to, count, numbers);
    } else {
      T wide[kWidth<T>];
      store(wide, numbers);
      narrow(wide, count, to);
    }
  }

  static constexpr int64_t kPixels = 64;  // whose numbers are added before a lane's total grows

  static void forward(const NormJob& job, int64_t item, const NormScratch& scratch) {
    ChannelsLast(job, item, scratch).make();
  }
};
