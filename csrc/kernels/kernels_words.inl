// Two-byte floats, thirty-two to a vector, for as long as possible: sign and magnitude, as all floats are. One signed and one
// unsigned minimum of words clamp them, a comparison of words finds what was clipped, in the order of elements, and three extremes
// of words hold the smallest and the largest.

// The largest |v| for which rint(v / scale) is `code` at most: exact, without a division. The quotient is rounded to a float and
// that to an integer, both half to even. What rounds to `code` ends at code + 0.5, with it where `code` is even, and what rounds to
// that float ends in the middle between it and its neighbour: 25 bits, times 24 of the scale, which no float is equal to.
inline float end_of(float code, float scale) {
  const float half = code + 0.5f;
  const float next = std::bit_cast<float>(std::bit_cast<uint32_t>(half) + (static_cast<int>(code) % 2 == 0 ? 1 : -1));
  const double end = 0.5 * (static_cast<double>(half) + next) * scale;
  const float v = static_cast<float>(end);
  return v > end ? std::bit_cast<float>(std::bit_cast<uint32_t>(v) - 1) : v;
}

constexpr int kWords = 2 * Vector::width;
static_assert(kStride == 2 * kWords);

struct WordExtremes {
  using W = Vector::W;
  W positive = Vector::set_words(0x8000), negative = Vector::set_words(0), nearest = Vector::set_words(0xffff);

  // POSITIVE: of what is not below +0 after a ReLU of `before`.
  template <bool POSITIVE>
  TRUEQUANT_INLINE void widen(W before, W w) {
    positive = Vector::max_signed(w, positive);
    negative = Vector::max_unsigned(before, negative);
    nearest = Vector::min_unsigned(w, nearest);
  }
  // NaN lies beyond the infinity of its sign.
  TRUEQUANT_INLINE bool has_nan(W infinity, W minus_infinity) const {
    return (Vector::less_signed(infinity, positive) | Vector::less_unsigned(minus_infinity, negative)) != 0;
  }
  template <class T, bool POSITIVE>
  void merge_into(Extremes& seen) const {
    T far[kWords], below[kWords], near[kWords];
    Vector::store_words(far, positive);
    Vector::store_words(below, negative);
    Vector::store_words(near, nearest);
    for (int k = 0; k < kWords; ++k) {
      if (far[k].bits >= 0x8000) far[k] = near[k];  // none of the lane is positive: the smallest magnitude is the largest
      if (POSITIVE || below[k].bits < 0x8000) below[k] = near[k];
    }
    for (int k = 0; k < kWords; k += Vector::width) {
      seen.widen(Vector::load(far + k));
      seen.widen(Vector::load(below + k));
    }
  }
};

// `forward_strides` where results need no second look.
template <class T, int CLIP>
int64_t forward_words(const T* a, T* y, uint8_t* mask, int64_t n, const Grid& grid, Seen& seen) {
  using W = Vector::W;
  constexpr bool positive = CLIP == kRelu;
  constexpr uint16_t infinity = std::is_same_v<T, Half> ? 0x7c00 : 0x7f80;
  const float first = grid.qmin - grid.zero_point, last = grid.qmax - grid.zero_point;
  const T lowest = Vector::truncated(-end_of(-first, grid.scale), T{}), highest = Vector::truncated(end_of(last, grid.scale), T{});
  Quantizer<CLIP> quantize(grid);
  // Where there are more codes than floats of two bytes between them, the last value in range may not have the last code.
  const auto misses = [&](T end, float code) { return std::nearbyint(Vector::value(end) / grid.scale) != code; };
  const bool above = misses(highest, last), below = !positive && misses(lowest, first);
  const W low = Vector::set_words(lowest.bits), high = Vector::set_words(highest.bits);
  const W top = Vector::set_words(Vector::nearest(last * grid.scale, T{}).bits);
  const W bottom = Vector::set_words(Vector::nearest(first * grid.scale, T{}).bits);
  const W most = Vector::set_words(grid.straight != 0 ? infinity : highest.bits);
  const W inf = Vector::set_words(infinity), minus = Vector::set_words(0x8000 | infinity), none = Vector::set_words(0);
  const uint64_t straight = grid.straight != 0 ? kWhole : 0;
  WordExtremes extremes;
  uint64_t passed = kWhole;
  int64_t i = 0;
  for (; i + kStride <= n;) {
    const WordExtremes before = extremes;
    const int64_t begin = i;
    for (; i + kStride <= std::min(n, begin + kBlock); i += kStride) {
      Vector::F v[kSeveral];
      W clipped[2];
      uint32_t bits[2];
      for (int k = 0; k < 2; ++k) {
        const W w = Vector::load_words(a + i + k * kWords);
        clipped[k] = positive ? Vector::max_signed(w, none) : w;
        extremes.widen<positive>(w, clipped[k]);
        W inside = Vector::min_signed(clipped[k], high);
        if constexpr (positive) {
          bits[k] = Vector::positive_to(clipped[k], most);
        } else {
          inside = Vector::min_unsigned(inside, low);
          bits[k] = Vector::same(inside, w);
        }
        Vector::widen(inside, v[2 * k], v[2 * k + 1], T{});
      }
      for (int k = 0; k < kSeveral; ++k) v[k] = Vector::mul(quantize.steps.by_product(v[k]), quantize.scale);
      for (int k = 0; k < 2; ++k) {
        W result = Vector::template narrow<true>(v[2 * k], v[2 * k + 1], T{});
        if (above) result = Vector::select_words(Vector::less_signed(high, clipped[k]), top, result);
        if (below) result = Vector::select_words(Vector::less_unsigned(low, clipped[k]), bottom, result);
        Vector::store_words(y + i + k * kWords, result);
      }
      const uint64_t all_bits = bits[0] | static_cast<uint64_t>(bits[1]) << kWords | (positive ? 0 : straight);
      passed &= all_bits;
      if (mask != nullptr) Order<T>::store_bits(mask, i, all_bits);
    }
    if (__builtin_expect(extremes.has_nan(inf, minus), 0)) {
      extremes = before;  // or it would be found in every block from here on
      forward_vectors<T, false, CLIP>(a, a, y, mask, begin, i, grid, seen);
    }
  }
  quantize.all_passed = passed | ~kWhole;
  extremes.merge_into<T, positive>(quantize.seen);
  quantize.merge_into(seen);
  return i;
}
