// Learned and binary grids, and grids with a scale for each element of a run.

// v / s in one rounding, by products.
//
// The product q = v * RN(1 / s) is less than two units in its last place away. c - a * b in one rounding has the residual
// v - q * s whole, and adding its share of s once gives a neighbour of the quotient, twice the quotient itself (Markstein 1990,
// "Computation of elementary functions on the IBM RISC System/6000 processor"): as long as nothing overflows or falls below the
// smallest normal number on the way, which the bounds on s and v see to. Whatever lies outside is divided.
template <class V>
struct QuotientOf {
  using F = typename V::F;
  F scale, reciprocal, none = V::set(0.0f), nearest, farthest;

  explicit QuotientOf(float s)
      : scale(V::set(s)), reciprocal(V::set(1.0f / s)), nearest(V::set(s * 0x1p-59f)),
        farthest(V::set(0x1p-40f <= s && s <= 0x1p40f ? s * 0x1p59f : 0.0f)) {}

  F operator()(F v) const { return V::div(v, scale); }

  // False, and nothing is done, where one asks for a division.
  TRUEQUANT_INLINE bool several(const F (&v)[kSeveral], F (&q)[kSeveral]) const {
    if constexpr (V::fuses) {
      F far = none, near = V::set(std::bit_cast<float>(~uint32_t{0}));
      for (int k = 0; k < kSeveral; ++k) {
        const F size = V::abs(v[k]);
        far = V::max_as_bits(size, far);  // NaN if there is one
        near = V::min_but_zero(size, near);
      }
      if (__builtin_expect(V::at_most(far, farthest) != kEvery || V::less(near, nearest) != 0, 0)) return false;
      F rest[kSeveral];
      for (int k = 0; k < kSeveral; ++k) q[k] = V::mul(v[k], reciprocal);
      for (int times = 0; times < 2; ++times) {
        for (int k = 0; k < kSeveral; ++k) rest[k] = V::sub_mul(v[k], q[k], scale);
        for (int k = 0; k < kSeveral; ++k) q[k] = V::mul_add(rest[k], reciprocal, q[k]);
      }
    } else {
      for (int k = 0; k < kSeveral; ++k) q[k] = V::div(v[k], scale);
    }
    return true;
  }
};
using Quotient = QuotientOf<Vector>;

// The float next to `v`.
inline float next_to(float v, bool up) {
  if (v == 0.0f) return up ? 0x1p-149f : -0x1p-149f;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(v) + ((v > 0.0f) == up ? 1 : -1));
}

// The last float p on the way to `edge - zero_point`, both whole, for which p + zero_point, rounded, does not reach `edge`: what is
// rounded to `edge` begins in the middle between it and its neighbour, with it since the last bit of `edge` is 0.
inline float last_before(float edge, float zero_point, bool up) {
  const double begins = 0.5 * (static_cast<double>(edge) + next_to(edge, !up));
  const double end = begins - zero_point;
  const float p = static_cast<float>(end);
  return (up ? p >= end : p <= end) ? next_to(p, !up) : p;
}

// Where the gradient of a value passes, and what a step of the scale does to its result.
template <int RULE>
struct Slopes {
  Vector::F qmin, qmax, none = Vector::set(0.0f), one = Vector::set(1.0f), minus = Vector::set(-1.0f);
  Vector::F first, last, lowest, highest;  // of steps: on the grid, and inside of it
  bool folds;

  explicit Slopes(const Grid& g) : qmin(Vector::set(g.qmin)), qmax(Vector::set(g.qmax)) {
    const float below = g.zero_point - g.qmin, above = g.qmax - g.zero_point;
    const auto is_whole = [](float v) { return std::nearbyint(v) == v && std::fabs(v) < 0x1p20f; };
    folds = RULE == kLearned && is_whole(g.qmin) && is_whole(g.qmax) && is_whole(g.zero_point) && below >= 0 && above >= 0;
    if (!folds) return;
    first = Vector::set(-below);
    last = Vector::set(above);
    lowest = Vector::set(last_before(g.qmin, g.zero_point, false));
    highest = Vector::set(last_before(g.qmax, g.zero_point, true));
  }

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

  // The same where `folds`, of steps that are not NaN: the zero point moves the ends.
  uint32_t folded(Vector::F steps, Vector::F& slope) const {
    const uint32_t inside = Vector::at_most(lowest, steps) & Vector::at_most(steps, highest);
    const Vector::F moved = Vector::clamp(Vector::rint(steps), first, last);
    slope = Vector::select(inside, Vector::sub(moved, steps), moved);
    return inside;
  }
};

template <class T>
using Bits = std::conditional_t<sizeof(T) == 4, float, uint16_t>;

template <class T>
void keep(uint32_t bits, const T* g, T* d) {
  Vector::keep(bits, reinterpret_cast<const Bits<T>*>(g), reinterpret_cast<Bits<T>*>(d));
}

template <bool OFFSET>
struct SumsOf {
  Doubles scale;

  static SumsOf of(const Vector::F* terms, const Vector::F*) { return {Doubles::of(terms)}; }
  static SumsOf nothing() { return {Doubles::set(0.0)}; }
  static TRUEQUANT_INLINE SumsOf add(const SumsOf& a, const SumsOf& b) { return {Doubles::add(a.scale, b.scale)}; }
};
template <>
struct SumsOf<true> {
  Doubles scale, offset;

  static SumsOf of(const Vector::F* terms, const Vector::F* outside) { return {Doubles::of(terms), Doubles::of(outside)}; }
  static SumsOf nothing() { return {Doubles::set(0.0), Doubles::set(0.0)}; }
  static TRUEQUANT_INLINE SumsOf add(const SumsOf& a, const SumsOf& b) {
    return {Doubles::add(a.scale, b.scale), Doubles::add(a.offset, b.offset)};
  }
};

constexpr int64_t kGroup = 4 * kLanes, kChunk = 8 * kGroup;
constexpr int kLevels = 6;  // of a tree of kBlock / kGroup leaves
static_assert(kBlock / kGroup == 1 << (kLevels - 1));

// What gradients need of the values of a chunk, whatever the rule is: the clipped values in steps of the scale, and, of each
// vector, where the clip lets gradients pass. Found before the gradients are read, since the chain of operations of both is longer
// than what a CPU looks ahead; by functions of their own, or each rule would be compiled for each clip.
struct Clipped {
  alignas(64) float steps[kChunk];
  uint32_t passes[kChunk / Vector::width];
};

template <class T>
struct ClippedBy {
  // Of at most kChunk elements, a multiple of kStride, whose gradients are wanted soon; false where one asks for a division.
  bool (*several)(const T* x, const T* g, int64_t n, const Grid&, const Quotient&, Clipped&);
  // Of kLanes elements.
  void (*row)(const T* x, const Grid&, const Quotient&, Clipped&);
};

template <class T, int CLIP>
bool clip_several(const T* x, const T* g, int64_t n, const Grid& grid, const Quotient& quotient, Clipped& found) {
  const Clipping<CLIP> clipping(grid);
  for (int64_t i = 0; i < n; i += kStride) {
    Vector::F v[kSeveral], q[kSeveral];
    for (int k = 0; k < kSeveral; ++k) {
      const Vector::F before = Vector::load(x + i + k * Vector::width);
      v[k] = clipping.clip(before);
      found.passes[i / Vector::width + k] = clipping.passes(before, v[k]);
    }
    if (!quotient.several(v, q)) return false;
    for (int k = 0; k < kSeveral; ++k) {
      Vector::store(found.steps + i + k * Vector::width, q[k]);
      __builtin_prefetch(g + i + k * Vector::width);
    }
  }
  return true;
}

template <class T, int CLIP>
void clip_row(const T* x, const Grid& grid, const Quotient& quotient, Clipped& found) {
  const Clipping<CLIP> clipping(grid);
  for (int k = 0; k < kParts; ++k) {
    const Vector::F before = Vector::load(x + k * Vector::width), v = clipping.clip(before);
    found.passes[k] = clipping.passes(before, v);
    Vector::store(found.steps + k * Vector::width, quotient(v));
  }
}

template <class T, int RULE>
struct Gradients {
  using Sums = SumsOf<RULE == kOffset>;
  const T *g, *x;
  T* d;
  int64_t n;
  const Grid& grid;
  ClippedBy<T> clipped_by;
  Slopes<RULE> slopes;
  Quotient quotient;
  Vector::F zero_point;
  uint32_t straight;

  Gradients(const T* g_, const T* x_, T* d_, int64_t n_, const Grid& grid_, ClippedBy<T> clipped_by_)
      : g(g_), x(x_), d(d_), n(n_), grid(grid_), clipped_by(clipped_by_), slopes(grid), quotient(grid.scale),
        zero_point(Vector::set(grid.zero_point)), straight(grid.straight) {}

  // `count` vectors: their share of the sums, and their gradients. FOLDED: as `slopes` is.
  template <bool FOLDED, int COUNT>
  TRUEQUANT_INLINE void some(const T* from, const T* values, const float* steps, const uint32_t* passes, T* to, Sums* rows) const {
    Vector::F terms[COUNT], outside[COUNT];
    for (int k = 0; k < COUNT; ++k) {
      const int64_t at = k * Vector::width;
      const Vector::F gradient = Vector::load(from + at), step = Vector::load(steps + at);
      Vector::F slope;
      uint32_t inside;
      if constexpr (FOLDED) inside = slopes.folded(step, slope);
      else inside = slopes(RULE == kBinary ? Vector::load(values + at) : step, step, zero_point, slope);
      terms[k] = Vector::mul(gradient, slope);
      if constexpr (RULE == kOffset) outside[k] = Vector::select(inside, slopes.none, gradient);
      keep((inside | straight) & passes[k], from + at, to + at);
    }
    for (int r = 0; r < COUNT / kParts; ++r) rows[r] = Sums::of(terms + r * kParts, outside + r * kParts);
  }

  // The sixteen elements from `at` on, or as many as there are.
  TRUEQUANT_ONCE Sums row(int64_t at) const {
    if (at >= n) return Sums::nothing();
    Sums found;
    Clipped clipped;
    if (at + kLanes <= n) {
      clipped_by.row(x + at, grid, quotient, clipped);
      some<false, kParts>(g + at, x + at, clipped.steps, clipped.passes, d + at, &found);
      return found;
    }
    T from[kLanes] = {}, values[kLanes] = {};
    std::copy(g + at, g + n, from);
    std::copy(x + at, x + n, values);
    clipped_by.row(values, grid, quotient, clipped);
    some<false, kParts>(from, values, clipped.steps, clipped.passes, from, &found);
    std::copy(from, from + (n - at), d + at);
    return found;
  }

  // Four rows, neighbours added first.
  Sums group(int64_t at) const {
    const Sums first = Sums::add(row(at), row(at + kLanes));
    return Sums::add(first, Sums::add(row(at + 2 * kLanes), row(at + 3 * kLanes)));
  }
  // The same of values that were clipped, `i` of them before.
  template <bool FOLDED>
  TRUEQUANT_INLINE Sums group(int64_t at, const Clipped& clipped, int64_t i) const {
    Sums rows[kGroup / kLanes];
    for (int64_t k = 0; k < kGroup; k += kStride) {
      some<FOLDED, kSeveral>(g + at + k, x + at + k, clipped.steps + i + k, clipped.passes + (i + k) / Vector::width, d + at + k,
                             rows + k / kLanes);
    }
    return Sums::add(Sums::add(rows[0], rows[1]), Sums::add(rows[2], rows[3]));
  }

  // All elements: groups are the leaves of a binary tree, of which `held` keeps the left halves that wait for their right ones.
  template <bool FOLDED>
  Sums all() const {
    Sums held[kLevels];
    int64_t groups = 0, at = 0;
    const auto hold = [&](Sums found, int level) {
      const int64_t before = groups;
      groups += int64_t{1} << level;
      for (; before >> level & 1; ++level) found = Sums::add(held[level], found);
      held[level] = found;
    };
    Clipped clipped;
    while (at + 2 * kGroup <= n) {
      const int64_t end = at + std::min(kChunk, (n - at) / (2 * kGroup) * (2 * kGroup));
      if (__builtin_expect(clipped_by.several(x + at, g + at, end - at, grid, quotient, clipped), 1)) {
        for (int64_t i = 0; at < end; at += 2 * kGroup, i += 2 * kGroup) {
          const Sums first = group<FOLDED>(at, clipped, i);
          hold(Sums::add(first, group<FOLDED>(at + kGroup, clipped, i + kGroup)), 1);
        }
      } else {
        for (; at < end; at += kGroup) hold(group(at), 0);
      }
    }
    for (; at < n; at += kGroup) hold(group(at), 0);
    Sums sums = Sums::nothing();
    for (int level = 0; level < kLevels; ++level) {
      if (groups >> level & 1) sums = Sums::add(held[level], sums);
    }
    return sums;
  }
};

template <class T, int RULE>
TRUEQUANT_ONCE void gradients_of(const T* g, const T* x, T* d, int64_t n, const Grid& grid, ClippedBy<T> clipped_by, double* scale,
                                 double* offset) {
  const Gradients<T, RULE> run(g, x, d, n, grid, clipped_by);
  const auto sums = run.slopes.folds ? run.template all<RULE == kLearned>() : run.template all<false>();
  sums.scale.store(scale);
  if constexpr (RULE == kOffset) sums.offset.store(offset);
}

template <class T, int RULE, int CLIP>
void gradients(const void* g, const void* x, void* d, int64_t n, const Grid& grid, double* scale, double* offset) {
  gradients_of<T, RULE>(static_cast<const T*>(g), static_cast<const T*>(x), static_cast<T*>(d), n, grid,
                        {clip_several<T, CLIP>, clip_row<T, CLIP>}, scale, offset);
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
#define TRUEQUANT_RULES(T) {TRUEQUANT_RULE(T, kLearned), TRUEQUANT_RULE(T, kOffset), {gradients<T, kBinary, kNone>}}
#define TRUEQUANT_COLUMNS(T) {column_gradients<T, kLearned>, column_gradients<T, kOffset>, column_gradients<T, kBinary>}
#define TRUEQUANT_LEARNED                                                                     \
  {{TRUEQUANT_RULES(float), TRUEQUANT_RULES(BFloat16), TRUEQUANT_RULES(Half)},                \
   {TRUEQUANT_COLUMNS(float), TRUEQUANT_COLUMNS(BFloat16), TRUEQUANT_COLUMNS(Half)},          \
   {columns<float>, columns<BFloat16>, columns<Half>},                                        \
   {binary<float>, binary<BFloat16>, binary<Half>}}
