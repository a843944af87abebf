// Bins of what a quantizer sees.

// Smallest and largest of values, 0 standing for what is not finite.
struct FiniteExtremes {
  Extremes all;
  Vector::F none = Vector::set(0.0f), infinite = Vector::set(INFINITY);

  void widen(Vector::F v) {
    const Vector::F known = Vector::select(Vector::less(Vector::abs(v), infinite), v, none);
    all.min = Vector::min(known, all.min);
    all.max = Vector::max(known, all.max);
  }
};

template <class T, int CLIP>
void histogram_values(const void* a, const void* b, float* v, int64_t n, const Grid& grid, Seen& seen) {
  const T *from = static_cast<const T*>(a), *other = static_cast<const T*>(b);
  const Clipping<CLIP> clipping(grid);
  FiniteExtremes extremes;
  const auto one = [&](const T* first, const T* second, float* to) {
    const Vector::F value = clipping.clip(second != nullptr ? sum(first, second) : Vector::load(first));
    extremes.widen(value);
    Vector::store(to, value);
  };
  int64_t i = 0;
  for (; i + Vector::width <= n; i += Vector::width) one(from + i, other != nullptr ? other + i : nullptr, v + i);
  if (i < n) {
    const Tail<T> tail(from + i, n - i);
    if (other == nullptr) {
      one(tail.values, nullptr, v + i);
    } else {
      const Tail<T> second(other + i, n - i);
      one(tail.values, second.values, v + i);
    }
  }
  extremes.all.merge_into(seen);
}

inline void histogram_bins(const float* v, int64_t n, float first, float second, int32_t bins, int32_t* bin) {
  const Vector::F a = Vector::set(first), b = Vector::set(second), zero = Vector::set(0.0f), minus = Vector::set(-1.0f);
  const Vector::F infinite = Vector::set(INFINITY), middle = Vector::set(static_cast<float>(bins));
  const Vector::F outside = Vector::set(static_cast<float>(2 * bins));
  for (int64_t i = 0; i < n; i += Vector::width) {
    const Vector::F value = Vector::load(v + i);
    // Powers of two: exact, unless the product is smaller than any float, and then its floor is -1 or 0 by the sign.
    const Vector::F steps = Vector::floor(Vector::mul(Vector::mul(value, a), b));
    const Vector::F below = Vector::select(Vector::less(value, zero), Vector::min(steps, minus), steps);
    Vector::store(bin + i, Vector::select(Vector::less(Vector::abs(value), infinite), Vector::add(below, middle), outside));
  }
}

#define TRUEQUANT_VALUES(T) \
  {histogram_values<T, kNone>, histogram_values<T, kRelu>, histogram_values<T, kHardtanh>, histogram_values<T, kClamp>}
#define TRUEQUANT_HISTOGRAM {{TRUEQUANT_VALUES(float), TRUEQUANT_VALUES(BFloat16), TRUEQUANT_VALUES(Half)}, histogram_bins}
