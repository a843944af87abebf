// Learned and binary grids, and grids with a scale for each element of a run.

// v / s in one rounding, by products.
//
// The product q = v * RN(1 / s) is less than two units in its last place away. c - a * b in one rounding has the residual
// v - q * s whole, and adding its share of s once gives a neighbour of the quotient, twice the quotient itself (Markstein 1990,
// "Computation of elementary functions on the IBM RISC System/6000 processor"): as long as nothing overflows or falls below the
// smallest normal number on the way, which the bounds on s and q see to. Whatever lies outside is divided.
template <class V>
struct QuotientOf {
  using F = typename V::F;
  static constexpr float kSmallest = 0x1p-60f, kLargest = 0x1p60f;
  F scale, reciprocal, none = V::set(0.0f), smallest = V::set(kSmallest), largest;

  explicit QuotientOf(float s)
      : scale(V::set(s)), reciprocal(V::set(1.0f / s)),
        largest(V::set(0x1p-40f <= s && s <= 0x1p40f ? kLargest : 0.0f)) {}

  F operator()(F v) const {
    if constexpr (V::fuses) {
      F q = V::mul(v, reciprocal);
      const F size = V::abs(q);
      const uint32_t held = (V::at_most(smallest, size) & V::at_most(size, largest)) | V::equal(v, none);
      if (__builtin_expect(held == kEvery, 1)) {
        q = V::mul_add(V::sub_mul(v, q, scale), reciprocal, q);
        return V::mul_add(V::sub_mul(v, q, scale), reciprocal, q);
      }
    }
    return V::div(v, scale);
  }
};
using Quotient = QuotientOf<Vector>;

// Where the gradient of a value passes, and what a step of the scale does to its result.
template <int RULE>
struct Slopes {
  Vector::F qmin, qmax, none = Vector::set(0.0f), one = Vector::set(1.0f), minus = Vector::set(-1.0f);

  explicit Slopes(const Grid& g) : qmin(Vector::set(g.qmin)), qmax(Vector::set(g.qmax)) {}

  // steps: v / scale.
  uint32_t operator()(Vector::F v, Vector::F steps, Vector::F zero_point, Vector::F& slope) const {
    if constexpr (RULE == kBinary) {
      const Vector::F sign = Vector::select(Vector::less(v, none), minus, one), code = Vector::rint(steps);
      const uint32_t inside = Vector::at_most(minus, code) & Vector::at_most(code, one);
      slope = Vector::select(inside, Vector::sub(sign, steps), sign);
      return inside;
    } else {
      const Vector::F position = Vector::add(steps, zero_point);
      const uint32_t inside = Vector::less(qmin, position) & Vector::less(position, qmax);
      const Vector::F code = Vector::min(qmax, Vector::max(qmin, Vector::add(Vector::rint(steps), zero_point)));
      if constexpr (RULE == kLearned) {
        const Vector::F moved = Vector::sub(code, zero_point);
        slope = Vector::select(inside, Vector::sub(moved, steps), moved);
      } else {
        slope = Vector::select(inside, Vector::sub(code, position), code);
      }
      return inside;
    }
  }
};

template <class T>
using Bits = std::conditional_t<sizeof(T) == 4, float, uint16_t>;

template <class T>
void keep(uint32_t bits, const T* g, T* d) {
  Vector::keep(bits, reinterpret_cast<const Bits<T>*>(g), reinterpret_cast<Bits<T>*>(d));
}

struct Sums {
  Doubles scale, offset;
};

constexpr int64_t kGroup = 4 * kLanes;
constexpr int kLevels = 6;  // of a tree of kBlock / kGroup leaves
static_assert(kBlock / kGroup == 1 << (kLevels - 1));

template <class T, int RULE, int CLIP>
struct Gradients {
  const T *g, *x;
  T* d;
  int64_t n;
  Slopes<RULE> slopes;
  Clipping<CLIP> clipping;
  Quotient quotient;
  Vector::F zero_point;
  uint32_t straight;

  Gradients(const T* g_, const T* x_, T* d_, int64_t n_, const Grid& grid)
      : g(g_), x(x_), d(d_), n(n_), slopes(grid), clipping(grid), quotient(grid.scale),
        zero_point(Vector::set(grid.zero_point)), straight(grid.straight) {}

  // Sixteen elements.
  TRUEQUANT_INLINE Sums whole(const T* from, const T* values, T* to) const {
    float terms[kLanes], outside[kLanes];
    for (int k = 0; k < kLanes; k += Vector::width) {
      const Vector::F before = Vector::load(values + k), gradient = Vector::load(from + k), v = clipping.clip(before);
      Vector::F slope;
      const uint32_t inside = slopes(v, quotient(v), zero_point, slope);
      Vector::store(terms + k, Vector::mul(gradient, slope));
      if constexpr (RULE == kOffset) Vector::store(outside + k, Vector::select(inside, slopes.none, gradient));
      keep((inside | straight) & clipping.passes(before, v), from + k, to + k);
    }
    if constexpr (RULE == kOffset) return {Doubles::of(terms), Doubles::of(outside)};
    return {Doubles::of(terms), Doubles::set(0.0)};
  }

  Sums part(int64_t at) const {
    if (at >= n) return {Doubles::set(0.0), Doubles::set(0.0)};
    if (at + kLanes <= n) return whole(g + at, x + at, d + at);
    T from[kLanes] = {}, values[kLanes] = {};
    std::copy(g + at, g + n, from);
    std::copy(x + at, x + n, values);
    const Sums found = whole(from, values, from);
    std::copy(from, from + (n - at), d + at);
    return found;
  }

  static TRUEQUANT_INLINE Sums add(const Sums& a, const Sums& b) {
    if constexpr (RULE == kOffset) return {Doubles::add(a.scale, b.scale), Doubles::add(a.offset, b.offset)};
    return {Doubles::add(a.scale, b.scale), a.offset};
  }

  // All elements, neighbours added first: groups of four rows are the leaves of a binary tree, of which `held` keeps the left
  // halves that wait for their right ones.
  TRUEQUANT_INLINE Sums all() const {
    Sums held[kLevels];
    int64_t groups = 0, at = 0;
    const auto hold = [&](Sums found) {
      int level = 0;
      for (int64_t k = groups++; k & 1; k >>= 1) found = add(held[level++], found);
      held[level] = found;
    };
    const auto row = [&](int k) { return whole(g + at + k * kLanes, x + at + k * kLanes, d + at + k * kLanes); };
    for (; at + kGroup <= n; at += kGroup) {
      const Sums first = add(row(0), row(1));
      hold(add(first, add(row(2), row(3))));
    }
    if (at < n) {
      const Sums first = add(part(at), part(at + kLanes));
      hold(add(first, add(part(at + 2 * kLanes), part(at + 3 * kLanes))));
    }
    Sums sums{Doubles::set(0.0), Doubles::set(0.0)};
    for (int level = 0; level < kLevels; ++level) {
      if (groups >> level & 1) sums = add(held[level], sums);
    }
    return sums;
  }
};

template <class T, int RULE, int CLIP>
void gradients(const void* g, const void* x, void* d, int64_t n, const Grid& grid, double* scale, double* offset) {
  const Gradients<T, RULE, CLIP> run(static_cast<const T*>(g), static_cast<const T*>(x), static_cast<T*>(d), n, grid);
  const Sums sums = run.all();
  sums.scale.store(scale);
  if constexpr (RULE == kOffset) sums.offset.store(offset);
}

template <class T, int RULE>
void column_gradients(const void* g, const void* x, void* d, int64_t n, const Grid& grid, const float* scale,
                      const float* zero_point, float* scale_terms, float* offset_terms) {
  const T *from = static_cast<const T*>(g), *values = static_cast<const T*>(x);
  T* to = static_cast<T*>(d);
  const Slopes<RULE> slopes(grid);
  const auto one = [&](const T* a, const T* v, const float* s, const float* z, T* r, float* terms, float* outside) {
    const Vector::F gradient = Vector::load(a);
    const Vector::F value = Vector::load(v);
    Vector::F slope;
    const uint32_t inside = slopes(value, Vector::div(value, Vector::load(s)), Vector::load(z), slope);
    Vector::store(terms, Vector::mul(gradient, slope));
    if constexpr (RULE == kOffset) Vector::store(outside, Vector::select(inside, slopes.none, gradient));
    keep(inside | grid.straight, a, r);
  };
  int64_t i = 0;
  for (; i + Vector::width <= n; i += Vector::width) {
    one(from + i, values + i, scale + i, zero_point + i, to + i, scale_terms + i, offset_terms + i);
  }
  if (i < n) {
    Tail<T> a(from + i, n - i);
    const Tail<T> v(values + i, n - i);
    const Tail<float> s(scale + i, n - i), z(zero_point + i, n - i);
    float terms[Vector::width], outside[Vector::width] = {};
    one(a.values, v.values, s.values, z.values, a.values, terms, outside);
    copy_back(to + i, a.values, n - i);
    copy_back(scale_terms + i, terms, n - i);
    if constexpr (RULE == kOffset) copy_back(offset_terms + i, outside, n - i);
  }
}

template <class T>
void columns(const void* x, void* y, uint8_t* mask, int64_t n, const Grid& grid, const float* scale, const float* zero_point,
             float* low, float* high) {
  const T* from = static_cast<const T*>(x);
  T* to = static_cast<T*>(y);
  const Vector::F qmin = Vector::set(grid.qmin), qmax = Vector::set(grid.qmax), nan = Vector::set(NAN);
  const auto one = [&](const T* v_at, const float* s_at, const float* z_at, T* y_at, float* low_at, float* high_at) {
    const Vector::F v = Vector::load(v_at), s = Vector::load(s_at), z = Vector::load(z_at);
    const Vector::F code = Vector::add(Vector::rint(Vector::div(v, s)), z);
    const Vector::F inside = Vector::min(qmax, Vector::max(qmin, code));
    Vector::store(y_at, Vector::mul(Vector::sub(inside, z), s));
    if (low_at != nullptr) {
      const Vector::F a = Vector::load(low_at), b = Vector::load(high_at);
      Vector::store(low_at, Vector::select(Vector::unordered(v, a), nan, Vector::min(v, a)));
      Vector::store(high_at, Vector::select(Vector::unordered(v, b), nan, Vector::max(v, b)));
    }
    return Vector::equal(code, inside) | grid.straight;
  };
  int64_t i = 0;
  for (; i + Vector::width <= n; i += Vector::width) {
    const bool watched = low != nullptr;
    const uint32_t bits =
        one(from + i, scale + i, zero_point + i, to + i, watched ? low + i : nullptr, watched ? high + i : nullptr);
    if (mask != nullptr) store_bits(mask, i, bits);
  }
  if (i < n) {
    Tail<T> v(from + i, n - i);
    const Tail<float> s(scale + i, n - i), z(zero_point + i, n - i);
    if (low != nullptr) {
      Tail<float> a(low + i, n - i), b(high + i, n - i);
      const uint32_t bits = one(v.values, s.values, z.values, v.values, a.values, b.values);
      copy_back(low + i, a.values, n - i);
      copy_back(high + i, b.values, n - i);
      if (mask != nullptr) store_tail_bits(mask, i, bits, n - i);
    } else {
      const uint32_t bits = one(v.values, s.values, z.values, v.values, nullptr, nullptr);
      if (mask != nullptr) store_tail_bits(mask, i, bits, n - i);
    }
    copy_back(to + i, v.values, n - i);
  }
}

template <class T>
void binary(const void* x, void* y, int64_t n, float scale) {
  const T* from = static_cast<const T*>(x);
  T* to = static_cast<T*>(y);
  const Vector::F none = Vector::set(0.0f), above = Vector::set(scale), below = Vector::set(-scale);
  const auto one = [&](const T* a, T* b) { Vector::store(b, Vector::select(Vector::less(Vector::load(a), none), below, above)); };
  int64_t i = 0;
  for (; i + Vector::width <= n; i += Vector::width) one(from + i, to + i);
  if (i < n) {
    Tail<T> tail(from + i, n - i);
    one(tail.values, tail.values);
    copy_back(to + i, tail.values, n - i);
  }
}

#define TRUEQUANT_RULE(T, RULE) \
  {gradients<T, RULE, kNone>, gradients<T, RULE, kRelu>, gradients<T, RULE, kHardtanh>, gradients<T, RULE, kClamp>}
#define TRUEQUANT_RULES(T) {TRUEQUANT_RULE(T, kLearned), TRUEQUANT_RULE(T, kOffset), TRUEQUANT_RULE(T, kBinary)}
#define TRUEQUANT_COLUMNS(T) {column_gradients<T, kLearned>, column_gradients<T, kOffset>, column_gradients<T, kBinary>}
#define TRUEQUANT_LEARNED                                                                     \
  {{TRUEQUANT_RULES(float), TRUEQUANT_RULES(BFloat16), TRUEQUANT_RULES(Half)},                \
   {TRUEQUANT_COLUMNS(float), TRUEQUANT_COLUMNS(BFloat16), TRUEQUANT_COLUMNS(Half)},          \
   {columns<float>, columns<BFloat16>, columns<Half>},                                        \
   {binary<float>, binary<BFloat16>, binary<Half>}}
