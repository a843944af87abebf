// Eight floats in two registers of the baseline, by the vector extension of GCC and Clang. (One vector of 32 bytes would do too,
// but where registers have 16, GCC compares and selects its elements one by one.)
struct Vector {
  static constexpr int width = 8, several = 2;
  static constexpr bool pairs = false;
  typedef float V __attribute__((vector_size(16)));
  typedef int32_t I __attribute__((vector_size(16)));
  typedef uint32_t U __attribute__((vector_size(16)));
  typedef uint16_t Short __attribute__((vector_size(8)));
  struct F {
    V half[2];
  };

  template <class G>
  static F each(const G& g) {
    return {{g(0), g(1)}};
  }
  static V as_float(I v) { return reinterpret_cast<V>(v); }
  static I as_int(V v) { return reinterpret_cast<I>(v); }

  // Between float16 and float32 without instructions for it: the exponent is moved by a product with a power of two. What has an
  // exponent of 0 as float16 comes out by subtracting 0.5 from 0.5 plus its mantissa.
  static V of_half(U bits) {
    const U sign = (bits & 0x8000) << 16, twice = bits << 17;
    const V normal = reinterpret_cast<V>((twice >> 4) + (0xe0u << 23)) * 0x1p-112f;
    const V small = reinterpret_cast<V>((twice >> 17) | (126u << 23)) - 0.5f;
    return reinterpret_cast<V>(reinterpret_cast<U>(twice < (U{} + (1u << 27)) ? small : normal) | sign);
  }
  // To the nearest, half to even: adding a power of two leaves as many bits of the mantissa as float16 has at that exponent. NaN
  // keeps its sign alone.
  static U to_half(V v) {
    const U u = reinterpret_cast<U>(v), sign = u & 0x80000000, twice = u + u;
    const V bounded = reinterpret_cast<V>(u & INT32_MAX) * 0x1p112f * 0x1p-110f;  // beyond float16: infinity
    const U exponent = twice & 0xff000000, lowest = U{} + 0x71000000;
    const V rounding = reinterpret_cast<V>(((exponent < lowest ? lowest : exponent) >> 1) + 0x07800000);
    const U rounded = reinterpret_cast<U>(rounding + bounded);
    const U found = ((rounded >> 13) & 0x7c00) + (rounded & 0xfff);
    return (sign >> 16) | (twice > (U{} + 0xff000000) ? U{} + 0x7e00 : found);
  }

  static F set(float v) {
    return each([&](int) { return V{v, v, v, v}; });
  }
  static F load(const float* p) {
    F v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static F load(const BFloat16* p) {
    return each([&](int h) {
      Short bits;
      std::memcpy(&bits, p + 4 * h, sizeof bits);
      return reinterpret_cast<V>(__builtin_convertvector(bits, U) << 16);
    });
  }
  static F load(const Half* p) {
    return each([&](int h) {
      Short bits;
      std::memcpy(&bits, p + 4 * h, sizeof bits);
      return of_half(__builtin_convertvector(bits, U));
    });
  }
  static void store(float* p, F v) { std::memcpy(p, &v, sizeof v); }
  static void store(BFloat16* p, F v) {
    for (int h = 0; h < 2; ++h) {
      const U u = reinterpret_cast<U>(v.half[h]);
      const U rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
      const Short bits = __builtin_convertvector(v.half[h] == v.half[h] ? rounded : U{} + 0x7fc0, Short);
      std::memcpy(p + 4 * h, &bits, sizeof bits);
    }
  }
  static void store(Half* p, F v) {
    for (int h = 0; h < 2; ++h) {
      const Short bits = __builtin_convertvector(to_half(v.half[h]), Short);
      std::memcpy(p + 4 * h, &bits, sizeof bits);
    }
  }
  // To the precision of two-byte floats.
  template <class T>
  static F rounded(F v, T) {
    T values[width];
    store(values, v);
    return load(values);
  }
  static F add(F a, F b) {
    return each([&](int h) { return a.half[h] + b.half[h]; });
  }
  static F sub(F a, F b) {
    return each([&](int h) { return a.half[h] - b.half[h]; });
  }
  static F mul(F a, F b) {
    return each([&](int h) { return a.half[h] * b.half[h]; });
  }
  static F div(F a, F b) {
    return each([&](int h) { return a.half[h] / b.half[h]; });
  }
  static constexpr bool fuses = false;  // no product and sum in one rounding that every CPU has
  // In one rounding where that is as quick.
  static F product_plus(F a, F b, F c) { return add(mul(a, b), c); }
  static F product_minus(F a, F b, F c) { return sub(mul(a, b), c); }
  static F abs(F a) {
    return each([&](int h) { return as_float(as_int(a.half[h]) & INT32_MAX); });
  }
  // Below 2^23 adding 2^23 rounds to an integer, half to even; above it every float is one.
  static F rint(F a) {
    return each([&](int h) {
      const I sign = as_int(a.half[h]) & INT32_MIN;
      const V size = as_float(as_int(a.half[h]) & INT32_MAX), shift = V{} + 8388608.0f;
      const V rounded = as_float(as_int((size + shift) - shift) | sign);
      return size < shift ? rounded : a.half[h];
    });
  }
  static F floor(F a) {
    const F rounded = rint(a);
    return each([&](int h) { return rounded.half[h] > a.half[h] ? rounded.half[h] - 1.0f : rounded.half[h]; });
  }
  static void store(int32_t* p, F whole) {
    for (int h = 0; h < 2; ++h) {
      const I v = __builtin_convertvector(whole.half[h], I);
      std::memcpy(p + 4 * h, &v, sizeof v);
    }
  }
  static void store(int8_t* p, F whole) {
    int32_t v[width];
    store(v, whole);
    for (int k = 0; k < width; ++k) p[k] = static_cast<int8_t>(v[k]);
  }
  static F difference(const int32_t* a, const int32_t* b) {
    return each([&](int h) {
      I v, w;
      std::memcpy(&v, a + 4 * h, sizeof v);
      std::memcpy(&w, b + 4 * h, sizeof w);
      return __builtin_convertvector(v - w, V);
    });
  }
  // max(|a|, largest), which is never NaN: where `a` is, `largest`.
  static F farther(F a, F largest) { return max(abs(a), largest); }
  // Both give the second operand where one is NaN.
  static F min(F a, F b) {
    return each([&](int h) { return a.half[h] < b.half[h] ? a.half[h] : b.half[h]; });
  }
  static F max(F a, F b) {
    return each([&](int h) { return a.half[h] > b.half[h] ? a.half[h] : b.half[h]; });
  }
  // Of all eight, none of which is NaN.
  static float least(F v) {
    float all[width], least = INFINITY;
    store(all, v);
    for (const float one : all) least = one < least ? one : least;
    return least;
  }
  static float greatest(F v) {
    float all[width], greatest = -INFINITY;
    store(all, v);
    for (const float one : all) greatest = one > greatest ? one : greatest;
    return greatest;
  }
  // Of values that are not NaN. clamp: low <= -0, +0 <= high.
  static F clamp(F v, F low, F high) { return min(high, max(low, v)); }
  static F positive(F v) { return max(v, set(0.0f)); }
  static F min_as_bits(F a, F b) { return min(a, b); }
  static F max_as_bits(F a, F b) { return max(a, b); }
  template <class G>
  static uint32_t bits(const G& g) {
    uint32_t found = 0;
    for (int h = 0; h < 2; ++h) {
      const I mask = g(h);
#ifdef __SSE2__
      found |= static_cast<uint32_t>(_mm_movemask_ps(reinterpret_cast<__m128>(mask))) << 4 * h;
#else
      const I weighed = mask & I{1, 2, 4, 8};
      found |= static_cast<uint32_t>(weighed[0] | weighed[1] | weighed[2] | weighed[3]) << 4 * h;
#endif
    }
    return found;
  }
  static uint32_t equal(F a, F b) {
    return bits([&](int h) { return a.half[h] == b.half[h]; });
  }
  static uint32_t less(F a, F b) {
    return bits([&](int h) { return a.half[h] < b.half[h]; });
  }
  static uint32_t at_most(F a, F b) {
    return bits([&](int h) { return a.half[h] <= b.half[h]; });
  }
  // True of NaN.
  static uint32_t not_at_most(F a, F b) {
    return bits([&](int h) { return ~(a.half[h] <= b.half[h]); });
  }
  static uint32_t unordered(F a, F b) {
    return bits([&](int h) { return (a.half[h] != a.half[h]) | (b.half[h] != b.half[h]); });
  }
  static I wide(uint32_t bits, int h) {
    const I one = {1, 2, 4, 8};
    return ((I{} + static_cast<int32_t>(bits >> 4 * h)) & one) == one;
  }
  static F select(uint32_t bits, F a, F b) {
    return each([&](int h) { return wide(bits, h) ? a.half[h] : b.half[h]; });
  }
  static void keep(uint32_t bits, const float* g, float* d) {
    const F v = load(g);
    store(d, each([&](int h) { return as_float(as_int(v.half[h]) & wide(bits, h)); }));
  }
  static void keep(uint32_t bits, const uint16_t* g, uint16_t* d) {
    for (int k = 0; k < width; ++k) d[k] = bits >> k & 1 ? g[k] : 0;
  }
};

// Sixteen doubles.
struct Doubles {
  double v[16];

  template <class F>
  static Doubles each(const F& f) {
    Doubles d;
    for (int k = 0; k < 16; ++k) d.v[k] = f(k);
    return d;
  }
  static Doubles set(double x) {
    return each([&](int) { return x; });
  }
  static Doubles of(const Vector::F* v) {
    return each([&](int k) { return static_cast<double>(v[k / 8].half[k % 8 / 4][k % 4]); });
  }
  static Doubles of(const float* p) {
    return each([&](int k) { return static_cast<double>(p[k]); });
  }
  static Doubles of(const double* p) {
    return each([&](int k) { return p[k]; });
  }
  static Doubles add(const Doubles& x, const Doubles& y) {
    return each([&](int k) { return x.v[k] + y.v[k]; });
  }
  static Doubles sub(const Doubles& x, const Doubles& y) {
    return each([&](int k) { return x.v[k] - y.v[k]; });
  }
  static Doubles mul(const Doubles& x, const Doubles& y) {
    return each([&](int k) { return x.v[k] * y.v[k]; });
  }
  void store(double* p) const { std::memcpy(p, v, sizeof v); }
};

// Four whole numbers of 32 bits, or eight of 16.
struct Whole {
  static constexpr int lanes = 4, rows = 4;
  typedef int32_t I __attribute__((vector_size(16)));

  static I zero() { return I{}; }
  static I load(const void* p) {
    I v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static void store(int32_t* p, I v) { std::memcpy(p, &v, sizeof v); }
  // The same two numbers of 16 bits everywhere.
  static I pair(const int16_t* p) {
    int32_t both;
    std::memcpy(&both, p, sizeof both);
    return I{both, both, both, both};
  }
  static I products(I a, I b) {
#ifdef __SSE2__
    return reinterpret_cast<I>(_mm_madd_epi16(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#else
    const I low_a = (a << 16) >> 16, low_b = (b << 16) >> 16;
    return low_a * low_b + (a >> 16) * (b >> 16);
#endif
  }
  static I add(I a, I b) { return a + b; }
};
