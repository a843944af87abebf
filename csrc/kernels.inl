// The kernels, written once over `Vector`; each level compiles them for its own instructions.

#define TRUEQUANT_INLINE inline __attribute__((always_inline))  // where vectors must stay in registers

template <class T>
struct Tail {
  // The last elements of a run in a whole vector, the first of them repeated, so that no extremum changes.
  T values[Vector::width];
  Tail(const T* p, int64_t n) {
    for (int64_t k = 0; k < Vector::width; ++k) values[k] = p[k < n ? k : 0];
  }
};

template <class T>
void copy_back(T* p, const T* values, int64_t n) {
  for (int64_t k = 0; k < n; ++k) p[k] = values[k];
}

inline void store_bits(uint8_t* mask, int64_t at, uint32_t bits) {
  if constexpr (Vector::width == 16) {
    const uint16_t both = static_cast<uint16_t>(bits);  // levels with vectors so wide are little-endian
    std::memcpy(mask + (at >> 3), &both, sizeof both);
  } else {
    mask[at >> 3] = static_cast<uint8_t>(bits);
  }
}

inline uint32_t load_bits(const uint8_t* mask, int64_t at) {
  if constexpr (Vector::width == 16) {
    uint16_t both;
    std::memcpy(&both, mask + (at >> 3), sizeof both);
    return both;
  } else {
    return mask[at >> 3];
  }
}

inline void store_tail_bits(uint8_t* mask, int64_t at, uint32_t bits, int64_t n) {
  bits &= (1u << n) - 1;
  for (int64_t k = 0; k < (n + 7) / 8; ++k) mask[(at >> 3) + k] = static_cast<uint8_t>(bits >> 8 * k);
}

inline uint32_t load_tail_bits(const uint8_t* mask, int64_t at, int64_t n) {
  uint32_t bits = 0;
  for (int64_t k = 0; k < (n + 7) / 8; ++k) bits |= static_cast<uint32_t>(mask[(at >> 3) + k]) << 8 * k;
  return bits;
}

// Smallest and largest of vectors of values.
struct Extremes {
  Vector::F min = Vector::set(INFINITY), max = Vector::set(-INFINITY);
  uint32_t nan = 0;

  void widen(Vector::F v) {
    min = Vector::min(v, min);
    max = Vector::max(v, max);
    nan |= Vector::unordered(v, v);
  }
  void merge_into(Seen& seen) const {
    float low[Vector::width], high[Vector::width];
    Vector::store(low, min);
    Vector::store(high, max);
    for (int k = 0; k < Vector::width; ++k) {
      seen.min = low[k] < seen.min ? low[k] : seen.min;
      seen.max = high[k] > seen.max ? high[k] : seen.max;
    }
    seen.nan |= nan != 0;
  }
  static constexpr uint32_t kAll = (1u << Vector::width) - 1;
};

// The value after the clip, and where its gradient passes.
template <int CLIP>
struct Clipping {
  Vector::F low, high;
  explicit Clipping(const Grid& grid) : low(Vector::set(CLIP == kRelu ? 0.0f : grid.low)), high(Vector::set(grid.high)) {}

  Vector::F clip(Vector::F v) const {
    if constexpr (CLIP == kNone) return v;
    if constexpr (CLIP == kRelu) return Vector::max(low, v);
    return Vector::min(high, Vector::max(low, v));
  }
  uint32_t passes(Vector::F before, Vector::F after) const {
    if constexpr (CLIP == kNone) return ~0u;
    if constexpr (CLIP == kRelu) return ~Vector::at_most(after, low);
    if constexpr (CLIP == kHardtanh) return ~(Vector::at_most(before, low) | Vector::at_most(high, before));
    return Vector::at_most(low, before) & Vector::at_most(before, high);
  }
};

// Values in steps of the scale, rounded: rint(v / s), by a product where that gives the same.
//
// t = v * (1 / s) differs from the quotient by less than 1.5 * 2^-23 * |v / s|, and rounds to another integer only where half an
// integer lies between the two: for |v / s| < 1024 never unless t is within 2^-12 of one. Then, and where there are more codes
// than that, the quotient is taken. Larger values are clipped either way.
struct Steps {
  Vector::F scale, reciprocal, near;

  explicit Steps(const Grid& g)
      : scale(Vector::set(g.scale)), reciprocal(Vector::set(1.0f / g.scale)),
        near(Vector::set(g.qmax - g.qmin <= kFewCodes ? 0.5f - 0x1p-12f : -1.0f)) {}

  Vector::F operator()(Vector::F v) const {
    const Vector::F t = Vector::mul(v, reciprocal);
    const Vector::F rounded = Vector::rint(t);
    const uint32_t close = Vector::at_most(near, Vector::abs(Vector::sub(t, rounded)));
    return __builtin_expect(close == 0, 1) ? rounded : Vector::rint(Vector::div(v, scale));
  }
};

template <int CLIP>
struct Quantizer {
  Clipping<CLIP> clipping;
  Steps steps;
  Vector::F scale, zero_point, qmin, qmax;
  uint32_t straight, passed = ~0u;
  Extremes seen;

  explicit Quantizer(const Grid& g)
      : clipping(g), steps(g), scale(Vector::set(g.scale)), zero_point(Vector::set(g.zero_point)), qmin(Vector::set(g.qmin)),
        qmax(Vector::set(g.qmax)), straight(g.straight) {}

  Vector::F operator()(Vector::F before, uint32_t& bits) {
    const Vector::F v = clipping.clip(before);
    seen.widen(v);
    const Vector::F code = Vector::add(steps(v), zero_point);
    const Vector::F inside = Vector::min(qmax, Vector::max(qmin, code));
    bits = (Vector::equal(code, inside) | straight) & clipping.passes(before, v);
    passed &= bits;
    return Vector::mul(Vector::sub(inside, zero_point), scale);
  }
  void merge_into(Seen& all) const {
    seen.merge_into(all);
    all.stopped |= (~passed & Extremes::kAll) != 0;
  }
};

// The sum in the precision of its operands.
template <class T>
Vector::F sum(const T* a, const T* b) {
  const Vector::F s = Vector::add(Vector::load(a), Vector::load(b));
  if constexpr (sizeof(T) == 4) return s;
  T rounded[Vector::width];
  Vector::store(rounded, s);
  return Vector::load(rounded);
}

template <class T, int CLIP, bool SUM>
void forward_of(const T* a, const T* b, T* y, uint8_t* mask, int64_t n, const Grid& grid, Seen& seen) {
  Quantizer<CLIP> quantize(grid);
  uint32_t bits;
  int64_t i = 0;
  for (; i + Vector::width <= n; i += Vector::width) {
    Vector::F v;
    if constexpr (SUM) v = sum(a + i, b + i);
    else v = Vector::load(a + i);
    Vector::store(y + i, quantize(v, bits));
    if (mask != nullptr) store_bits(mask, i, bits);
  }
  if (i < n) {
    Tail<T> tail(a + i, n - i);
    Vector::F v = Vector::load(tail.values);
    if constexpr (SUM) {
      const Tail<T> other(b + i, n - i);
      v = sum(tail.values, other.values);
    }
    Vector::store(tail.values, quantize(v, bits));
    copy_back(y + i, tail.values, n - i);
    if (mask != nullptr) store_tail_bits(mask, i, bits, n - i);
  }
  quantize.merge_into(seen);
}

template <class T, int CLIP>
void forward(const void* a, const void* b, void* y, uint8_t* mask, int64_t n, const Grid& grid, Seen& seen) {
  const T* pa = static_cast<const T*>(a);
  const T* pb = static_cast<const T*>(b);
  if (b == nullptr) forward_of<T, CLIP, false>(pa, pb, static_cast<T*>(y), mask, n, grid, seen);
  else forward_of<T, CLIP, true>(pa, pb, static_cast<T*>(y), mask, n, grid, seen);
}

template <class U>
void masked(const void* g, const uint8_t* mask, void* d, int64_t n) {
  const U* from = static_cast<const U*>(g);
  U* to = static_cast<U*>(d);
  int64_t i = 0;
  if (from == to) {
    for (; i + kAlign <= n; i += kAlign) {
      uint64_t bits;
      std::memcpy(&bits, mask + (i >> 3), sizeof bits);
      if (bits == ~uint64_t{0}) continue;
      for (int64_t k = i; k < i + kAlign; k += Vector::width) Vector::keep(load_bits(mask, k), from + k, to + k);
    }
  }
  for (; i + Vector::width <= n; i += Vector::width) Vector::keep(load_bits(mask, i), from + i, to + i);
  if (i < n) {
    Tail<U> tail(from + i, n - i);
    Vector::keep(load_tail_bits(mask, i, n - i), tail.values, tail.values);
    copy_back(to + i, tail.values, n - i);
  }
}

template <class T>
void range(const void* x, int64_t n, Seen& seen) {
  const T* from = static_cast<const T*>(x);
  Extremes extremes;
  int64_t i = 0;
  for (; i + Vector::width <= n; i += Vector::width) extremes.widen(Vector::load(from + i));
  if (i < n) extremes.widen(Vector::load(Tail<T>(from + i, n - i).values));
  extremes.merge_into(seen);
}

#define TRUEQUANT_CLIPS(T) {forward<T, kNone>, forward<T, kRelu>, forward<T, kHardtanh>, forward<T, kClamp>}
#define TRUEQUANT_KERNELS(NAME)                                                     \
  {                                                                                 \
    NAME, {TRUEQUANT_CLIPS(float), TRUEQUANT_CLIPS(BFloat16), TRUEQUANT_CLIPS(Half)}, \
        {masked<float>, masked<uint16_t>}, {range<float>, range<BFloat16>, range<Half>}, TRUEQUANT_NORMS, \
        TRUEQUANT_LEARNED, TRUEQUANT_HISTOGRAM,                                     \
  }
