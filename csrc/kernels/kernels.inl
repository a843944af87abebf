// The kernels of grids with one scale.

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

// The sum in the precision of its operands.
template <class T>
Vector::F sum(const T* a, const T* b) {
  const Vector::F s = Vector::add(Vector::load(a), Vector::load(b));
  if constexpr (sizeof(T) == 4) return s;
  else return Vector::rounded(s, T{});
}

// One vector after the other, from `begin` to `end`.
template <class T, bool SUM, int CLIP>
void forward_vectors(const T* a, const T* b, T* y, uint8_t* mask, int64_t begin, int64_t end, const Grid& grid, Seen& seen) {
  Quantizer<CLIP> quantize(grid);
  uint32_t bits;
  int64_t i = begin;
  for (; i + Vector::width <= end; i += Vector::width) {
    Vector::F v;
    if constexpr (SUM) v = sum(a + i, b + i);
    else v = Vector::load(a + i);
    Vector::store(y + i, quantize(v, bits));
    if (mask != nullptr) store_bits(mask, i, bits);
  }
  if (i < end) {
    Tail<T> tail(a + i, end - i);
    Vector::F v = Vector::load(tail.values);
    if constexpr (SUM) {
      const Tail<T> other(b + i, end - i);
      v = sum(tail.values, other.values);
    }
    Vector::store(tail.values, quantize(v, bits));
    copy_back(y + i, tail.values, end - i);
    if (mask != nullptr) store_tail_bits(mask, i, bits, end - i);
  }
  quantize.merge_into(seen);
}

// As many elements from `i` on as fill vectors in flight, of a grid that folds, up to a NaN; where they end. EASY: see `is_easy`.
template <class T, bool SUM, bool EASY, int CLIP>
int64_t forward_strides(const T* a, const T* b, T* y, uint8_t* mask, int64_t i, int64_t n, const Grid& grid, Seen& seen) {
  Quantizer<CLIP> quantize(grid);
  for (; i + kStride <= n; i += kStride) {
    Vector::F v[kSeveral], w[kSeveral];
    uint64_t bits;
    Order<T>::load(a + i, v);
    if constexpr (SUM) {
      Order<T>::load(b + i, w);
      Order<T>::add(v, w);
    }
    if (__builtin_expect(!quantize.template several<T, EASY>(v, bits), 0)) break;
    Order<T>::template store<EASY>(y + i, v);
    if (mask != nullptr) Order<T>::store_bits(mask, i, bits);
  }
  quantize.merge_into(seen);
  return i;
}

#ifdef TRUEQUANT_WORDS
#include "kernels_words.inl"
#endif

constexpr int64_t kManyElements = 16384;  // that are worth a look at all codes

template <class T, int CLIP, bool SUM>
void forward_of(const T* a, const T* b, T* y, uint8_t* mask, int64_t n, const Grid& grid, Seen& seen) {
  int64_t i = 0;
  if (n >= kStride && folds(grid)) {
    bool easy = false;
    if constexpr (sizeof(T) == 2) easy = n >= kManyElements && is_easy<T>(grid);
#ifdef TRUEQUANT_WORDS
    if constexpr (sizeof(T) == 2 && !SUM && (CLIP == kNone || CLIP == kRelu)) {
      if (easy) i = forward_words<T, CLIP>(a, y, mask, n, grid, seen);
    }
#endif
    while (i + kStride <= n) {
      if (easy && sizeof(T) == 2) i = forward_strides<T, SUM, sizeof(T) == 2, CLIP>(a, b, y, mask, i, n, grid, seen);
      else i = forward_strides<T, SUM, false, CLIP>(a, b, y, mask, i, n, grid, seen);
      if (i + kStride > n) break;
      forward_vectors<T, SUM, CLIP>(a, b, y, mask, i, i + kStride, grid, seen);
      i += kStride;
    }
  }
  if (i < n) forward_vectors<T, SUM, CLIP>(a, b, y, mask, i, n, grid, seen);
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
  for (; i + kStride <= n; i += kStride) {
    Vector::F v[kSeveral];
    Order<T>::load(from + i, v);
    extremes.look_for_nan(v);
    extremes.widen<false>(v);
  }
  for (; i + Vector::width <= n; i += Vector::width) extremes.widen(Vector::load(from + i));
  if (i < n) extremes.widen(Vector::load(Tail<T>(from + i, n - i).values));
  extremes.merge_into(seen);
}

#define TRUEQUANT_CLIPS(T) {forward<T, kNone>, forward<T, kRelu>, forward<T, kHardtanh>, forward<T, kClamp>}
#define TRUEQUANT_KERNELS(NAME)                                                     \
  {                                                                                 \
    NAME, {TRUEQUANT_CLIPS(float), TRUEQUANT_CLIPS(BFloat16), TRUEQUANT_CLIPS(Half)}, \
        {masked<float>, masked<uint16_t>}, {range<float>, range<BFloat16>, range<Half>}, TRUEQUANT_NORMS, \
        TRUEQUANT_LEARNED, TRUEQUANT_HISTOGRAM, TRUEQUANT_CODES, TRUEQUANT_PRODUCTS, \
        TRUEQUANT_SEARCH, \
  }
