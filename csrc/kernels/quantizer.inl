// What quantizes vectors, written once over `Vector` as all kernels are: each level compiles them for its own instructions.

#define TRUEQUANT_INLINE inline __attribute__((always_inline))  // where vectors must stay in registers
#if defined(__clang__)
#define TRUEQUANT_ONCE __attribute__((noinline))
#else
#define TRUEQUANT_ONCE __attribute__((noinline, noclone))  // compiled once, however often it is called
#endif

// Vectors in flight: the steps of one fill the pipelines of the CPU while those of another wait for their operands.
constexpr int kSeveral = Vector::several;
constexpr int64_t kStride = kSeveral * Vector::width;
constexpr int kParts = kLanes / Vector::width;
constexpr uint32_t kEvery = (1u << Vector::width) - 1;
constexpr uint64_t kWhole = ~uint64_t{0} >> (64 - kStride);
static_assert(kSeveral % 2 == 0 && kStride <= 64 && kAlign % kStride == 0);

// How `kStride` elements lie in as many vectors: one vector behind the other, or, where that spares shuffles, the even elements
// of 2 * width in one vector and the odd ones in the next.
template <class T, class V = Vector>
struct Order {
  using Vectors = V::F[kSeveral];
  static constexpr bool pairs = std::is_same_v<T, BFloat16> && V::pairs;

  static TRUEQUANT_INLINE void load(const T* p, Vectors& v) {
    if constexpr (pairs) {
      for (int k = 0; k < kSeveral; k += 2) V::widen(V::load_words(p + k * V::width), v[k], v[k + 1], T{});
    } else {
      for (int k = 0; k < kSeveral; ++k) v[k] = V::load(p + k * V::width);
    }
  }
  // None of them is NaN. EASY: whether `never_tied` said so.
  template <bool EASY>
  static TRUEQUANT_INLINE void store(T* p, const Vectors& v) {
    if constexpr (pairs) {
      for (int k = 0; k < kSeveral; k += 2) V::store_words(p + k * V::width, V::template narrow<EASY>(v[k], v[k + 1], T{}));
    } else {
      for (int k = 0; k < kSeveral; ++k) V::store(p + k * V::width, v[k]);
    }
  }
  // Whether the products of `scale` with the integers from `first` to `last` are rounded alike by every rule for ties.
  static bool never_tied(float first, float last, float scale) {
    if constexpr (pairs) {
      for (float code = first; code <= last; ++code) {
        if (V::is_tied(code * scale)) return false;
      }
    }
    return true;
  }
  // v + w in the precision of T.
  static TRUEQUANT_INLINE void add(Vectors& v, const Vectors& w) {
    for (int k = 0; k < kSeveral; ++k) {
      v[k] = V::add(v[k], w[k]);
      if constexpr (sizeof(T) != 4) v[k] = V::rounded(v[k], T{});
    }
  }
  // Bits of the vectors in the order of elements.
  static TRUEQUANT_INLINE uint64_t in_order(const uint32_t (&bits)[kSeveral]) {
    uint64_t all = 0;
    for (int k = 0; k < kSeveral; ++k) {
      if constexpr (!pairs) all |= static_cast<uint64_t>(bits[k] & kEvery) << k * V::width;
      else if (k % 2) all |= V::woven(bits[k - 1], bits[k]) << (k - 1) * V::width;
    }
    return all;
  }
  static TRUEQUANT_INLINE void store_bits(uint8_t* mask, int64_t at, uint64_t all) {
    if constexpr (std::endian::native == std::endian::little) {
      std::memcpy(mask + (at >> 3), &all, kStride / 8);
    } else {
      for (int k = 0; k < kStride / 8; ++k) mask[(at >> 3) + k] = static_cast<uint8_t>(all >> 8 * k);
    }
  }
};

// Smallest and largest of vectors of values.
struct Extremes {
  Vector::F min = Vector::set(INFINITY), max = Vector::set(-INFINITY);
  uint32_t nan = 0;

  void widen(Vector::F v) {
    min = Vector::min(v, min);
    max = Vector::max(v, max);
    nan |= Vector::unordered(v, v);
  }
  // NaN is passed over. POSITIVE: there is none, and nothing below +0.
  template <bool POSITIVE>
  TRUEQUANT_INLINE void widen(const Vector::F (&v)[kSeveral]) {
    for (int k = 0; k < kSeveral; ++k) {
      min = POSITIVE ? Vector::min_as_bits(v[k], min) : Vector::min(v[k], min);
      max = POSITIVE ? Vector::max_as_bits(v[k], max) : Vector::max(v[k], max);
    }
  }
  // Whether one of them is NaN.
  TRUEQUANT_INLINE bool look_for_nan(const Vector::F (&v)[kSeveral]) {
    uint32_t found = 0;
    for (int k = 0; k < kSeveral; k += 2) found |= Vector::unordered(v[k], v[k + 1]);
    nan |= found;
    return found != 0;
  }
  TRUEQUANT_INLINE void merge_into(Seen& seen) const {
    const float low = Vector::least(min), high = Vector::greatest(max);
    seen.min = low < seen.min ? low : seen.min;
    seen.max = high > seen.max ? high : seen.max;
    seen.nan |= nan != 0;
  }
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
    if constexpr (CLIP == kRelu) return Vector::not_at_most(after, low);
    if constexpr (CLIP == kHardtanh) return Vector::not_at_most(before, low) & Vector::not_at_most(high, before);
    return Vector::at_most(low, before) & Vector::at_most(before, high);
  }
};

// Values in steps of the scale, rounded: rint(v / s), by a product where that gives the same.
//
// t = v * (1 / s) differs from the quotient by less than 1.5 * 2^-23 * |v / s|, and rounds to another integer only where half an
// integer lies between the two: for values up to `reach` steps, an end of the clamp and more, never unless t is within
// reach * 2^-22 of one. Then, and where there are too many codes, the quotient is taken. Larger values are clipped either way.
struct Steps {
  float reach;
  Vector::F scale, reciprocal, near, shift = Vector::set(0x1.8p23f), none = Vector::set(0.0f);

  explicit Steps(const Grid& g)
      : reach(std::max(std::fabs(g.qmin - g.zero_point), std::fabs(g.qmax - g.zero_point)) + 2.0f),
        scale(Vector::set(g.scale)), reciprocal(Vector::set(1.0f / g.scale)),
        near(Vector::set(of_few_codes() ? 0.5f - reach * 0x1p-22f : -1.0f)) {}

  bool of_few_codes() const { return reach <= kFewCodes; }

  Vector::F operator()(Vector::F v) const {
    const Vector::F t = Vector::mul(v, reciprocal);
    const Vector::F rounded = Vector::rint(t);
    const uint32_t close = Vector::at_most(near, Vector::abs(Vector::sub(t, rounded)));
    return __builtin_expect(close == 0, 1) ? rounded : Vector::rint(Vector::div(v, scale));
  }

  Vector::F by_product(Vector::F v) const { return Vector::sub(Vector::product_plus(v, reciprocal, shift), shift); }

  // Whether the product does for all two-byte floats: a half integer lies between product and quotient of none but those next to
  // the middles of neighbouring codes.
  template <class T>
  bool product_does(float lowest, float highest) const {
    float middles[Vector::width];
    for (float first = lowest - 0.5f; first <= highest + 0.5f; first += Vector::width) {
      for (int k = 0; k < Vector::width; ++k) middles[k] = first + static_cast<float>(k);
      const Vector::F v = Vector::rounded(Vector::mul(Vector::load(middles), scale), T{});
      if (Vector::equal(by_product(v), Vector::rint(Vector::div(v, scale))) != kEvery) return false;
    }
    return true;
  }

  // The same of grids of few codes, plus `shift`. In the sum with 1.5 * 2^23 a product below 2^22 is rounded to an integer, half to
  // even; a larger one remains beyond all codes.
  //
  // EASY: where the product is known to do.
  template <bool EASY>
  TRUEQUANT_INLINE void several(const Vector::F (&v)[kSeveral], Vector::F (&shifted)[kSeveral]) const {
    Vector::F farthest = none;
    for (int k = 0; k < kSeveral; ++k) {
      shifted[k] = Vector::product_plus(v[k], reciprocal, shift);
      if constexpr (!EASY) {
        const Vector::F rest = Vector::product_minus(v[k], reciprocal, Vector::sub(shifted[k], shift));
        farthest = Vector::farther(rest, farthest);
      }
    }
    if constexpr (EASY) return;
    if (__builtin_expect(Vector::at_most(near, farthest) != 0, 0)) {
      for (int k = 0; k < kSeveral; ++k) shifted[k] = Vector::add(Vector::rint(Vector::div(v[k], scale)), shift);
    }
  }
};

// Whether a grid has few codes and whole ones, 0 among them: then the zero point moves the ends of the clamp, exactly.
inline bool folds(const Grid& g) {
  const auto is_whole = [](float v) { return std::nearbyint(v) == v; };
  return Steps(g).of_few_codes() && is_whole(g.qmin) && is_whole(g.qmax) && is_whole(g.zero_point) && g.qmin <= g.zero_point &&
         g.zero_point <= g.qmax;
}

// Whether of two-byte floats neither a quotient nor the rounding of a result needs a second look, whatever the values are.
template <class T>
bool is_easy(const Grid& g) {
  const float first = g.qmin - g.zero_point, last = g.qmax - g.zero_point;
  return Steps(g).product_does<T>(first, last) && Order<T>::never_tied(first, last, g.scale);
}

template <int CLIP>
struct Quantizer {
  Clipping<CLIP> clipping;
  Steps steps;
  Vector::F scale, zero_point, qmin, qmax, first, last;  // first and last code as `steps` gives them several at a time
  uint32_t straight, passed = ~0u;
  uint64_t all_passed = ~uint64_t{0};
  Extremes seen;

  explicit Quantizer(const Grid& g)
      : clipping(g), steps(g), scale(Vector::set(g.scale)), zero_point(Vector::set(g.zero_point)), qmin(Vector::set(g.qmin)),
        qmax(Vector::set(g.qmax)), first(Vector::set(0x1.8p23f + (g.qmin - g.zero_point))),
        last(Vector::set(0x1.8p23f + (g.qmax - g.zero_point))), straight(g.straight) {}

  Vector::F operator()(Vector::F before, uint32_t& bits) {
    const Vector::F v = clipping.clip(before);
    seen.widen(v);
    const Vector::F code = Vector::add(steps(v), zero_point);
    const Vector::F inside = Vector::min(qmax, Vector::max(qmin, code));
    bits = (Vector::equal(code, inside) | straight) & clipping.passes(before, v);
    passed &= bits;
    return Vector::mul(Vector::sub(inside, zero_point), scale);
  }

  // The same in place, of a grid that folds; (code - zero point) * scale is never -0. `bits` in the order of elements. False, and
  // nothing is done, where one is NaN.
  template <class T, bool EASY>
  TRUEQUANT_INLINE bool several(Vector::F (&v)[kSeveral], uint64_t& all_bits) {
    constexpr bool positive = CLIP == kRelu;
    if (__builtin_expect(seen.look_for_nan(v), 0)) return false;
    uint32_t bits[kSeveral];
    Vector::F clipped[kSeveral], shifted[kSeveral];
    for (int k = 0; k < kSeveral; ++k) clipped[k] = positive ? Vector::positive(v[k]) : clipping.clip(v[k]);
    seen.template widen<positive>(clipped);
    steps.template several<EASY>(clipped, shifted);
    const Vector::F most = straight != 0 ? Vector::set(INFINITY) : last;
    for (int k = 0; k < kSeveral; ++k) {
      Vector::F inside = Vector::min_as_bits(shifted[k], last);
      if constexpr (!positive) inside = Vector::max_as_bits(inside, first);
      if constexpr (positive) bits[k] = Vector::less(steps.none, clipped[k]) & Vector::at_most(shifted[k], most);
      else if constexpr (CLIP == kNone) bits[k] = Vector::equal(shifted[k], inside);
      else bits[k] = (Vector::equal(shifted[k], inside) | straight) & clipping.passes(v[k], clipped[k]);
      v[k] = Vector::mul(Vector::sub(inside, steps.shift), scale);
    }
    all_bits = Order<T>::in_order(bits);
    if constexpr (CLIP == kNone) all_bits |= straight != 0 ? kWhole : 0;
    all_passed &= all_bits | ~kWhole;
    return true;
  }

  TRUEQUANT_INLINE void merge_into(Seen& all) const {
    seen.merge_into(all);
    all.stopped |= (~passed & kEvery) != 0 || ~all_passed != 0;
  }
};
