// Eight floats in whatever registers the baseline has, by the vector extension of GCC and Clang.
struct Vector {
  static constexpr int width = 8, several = 2;
  static constexpr bool pairs = false;
  typedef float F __attribute__((vector_size(32)));
  typedef int32_t I __attribute__((vector_size(32)));

  static F set(float v) { return F{v, v, v, v, v, v, v, v}; }
  static F load(const float* p) {
    F v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static F load(const BFloat16* p) {
    I v;
    for (int k = 0; k < width; ++k) v[k] = static_cast<int32_t>(static_cast<uint32_t>(p[k].bits) << 16);
    return reinterpret_cast<F>(v);
  }
  static F load(const Half* p) {
    F v;
    for (int k = 0; k < width; ++k) v[k] = c10::detail::fp16_ieee_to_fp32_value(p[k].bits);
    return v;
  }
  static void store(float* p, F v) { std::memcpy(p, &v, sizeof v); }
  static void store(BFloat16* p, F v) {
    const I u = reinterpret_cast<I>(v);
    for (int k = 0; k < width; ++k) {
      const uint32_t bits = static_cast<uint32_t>(u[k]);
      p[k].bits = static_cast<uint16_t>(v[k] != v[k] ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
  }
  static void store(Half* p, F v) {
    for (int k = 0; k < width; ++k) p[k].bits = c10::detail::fp16_ieee_from_fp32_value(v[k]);
  }
  // To the precision of two-byte floats.
  template <class T>
  static F rounded(F v, T) {
    T values[width];
    store(values, v);
    return load(values);
  }
  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F div(F a, F b) { return a / b; }
  static constexpr bool fuses = false;  // no product and sum in one rounding that every CPU has
  // In one rounding where that is as quick.
  static F product_plus(F a, F b, F c) { return a * b + c; }
  static F product_minus(F a, F b, F c) { return a * b - c; }
  static F abs(F a) { return reinterpret_cast<F>(reinterpret_cast<I>(a) & (I{} + INT32_MAX)); }
  // Below 2^23 adding 2^23 rounds to an integer, half to even; above it every float is one.
  static F rint(F a) {
    const I sign = reinterpret_cast<I>(a) & (I{} + INT32_MIN);
    const F size = reinterpret_cast<F>(reinterpret_cast<I>(a) & (I{} + INT32_MAX));
    const F shift = set(8388608.0f);
    const F rounded = reinterpret_cast<F>(reinterpret_cast<I>((size + shift) - shift) | sign);
    return size < shift ? rounded : a;
  }
  static F floor(F a) {
    const F rounded = rint(a);
    return rounded > a ? rounded - 1.0f : rounded;
  }
  static void store(int32_t* p, F whole) {
    const I v = __builtin_convertvector(whole, I);
    std::memcpy(p, &v, sizeof v);
  }
  // max(|a|, largest), which is never NaN: where `a` is, `largest`.
  static F farther(F a, F largest) { return max(abs(a), largest); }
  // Both give the second operand where one is NaN.
  static F min(F a, F b) { return a < b ? a : b; }
  static F max(F a, F b) { return a > b ? a : b; }
  static uint32_t bits(I mask) {
#ifdef __SSE2__
    __m128 half[2];
    std::memcpy(half, &mask, sizeof mask);
    return static_cast<uint32_t>(_mm_movemask_ps(half[0]) | _mm_movemask_ps(half[1]) << 4);
#else
    uint32_t result = 0;
    for (int k = 0; k < width; ++k) result |= (static_cast<uint32_t>(mask[k]) & 1u) << k;
    return result;
#endif
  }
  static uint32_t equal(F a, F b) { return bits(a == b); }
  static uint32_t less(F a, F b) { return bits(a < b); }
  static uint32_t at_most(F a, F b) { return bits(a <= b); }
  static uint32_t unordered(F a, F b) { return bits((a != a) | (b != b)); }
  static I wide(uint32_t bits) {
    const I one = {1, 2, 4, 8, 16, 32, 64, 128};
    return ((I{} + static_cast<int32_t>(bits)) & one) == one;
  }
  static F select(uint32_t bits, F a, F b) { return wide(bits) ? a : b; }
  static void keep(uint32_t bits, const float* g, float* d) {
    store(d, reinterpret_cast<F>(reinterpret_cast<I>(load(g)) & wide(bits)));
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
