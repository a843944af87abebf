// Eight floats in an AVX register. Comparisons give bits, one an element.
struct Vector {
  static constexpr int width = 8, several = 4;
  static constexpr bool pairs = false;
  using F = __m256;

  static F set(float v) { return _mm256_set1_ps(v); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static F load(const BFloat16* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  static F load(const Half* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static void store(BFloat16* p, F v) {
    const __m256i u = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i r = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    r = _mm256_blendv_epi8(r, _mm256_set1_epi32(0x7fc0), _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
    const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
  }
  static void store(Half* p, F v) {
    const __m128i packed = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
  }
  // To the precision of two-byte floats.
  template <class T>
  static F rounded(F v, T) {
    T values[width];
    store(values, v);
    return load(values);
  }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static constexpr bool fuses = true;
  static F mul_add(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F sub_mul(F c, F a, F b) { return _mm256_fnmadd_ps(a, b, c); }
  // In one rounding where that is as quick.
  static F product_plus(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F product_minus(F a, F b, F c) { return _mm256_fmsub_ps(a, b, c); }
  static F abs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static F rint(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F floor(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
  static void store(int32_t* p, F whole) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_cvttps_epi32(whole)); }
  static void store(int8_t* p, F whole) {
    const __m256i v = _mm256_cvttps_epi32(whole);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
  }
  static F difference(const int32_t* a, const int32_t* b) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(v, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b))));
  }
  // max(|a|, largest), which is never NaN: where `a` is, `largest`.
  static F farther(F a, F largest) { return max(abs(a), largest); }
  // Both give the second operand where one is NaN.
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
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
  // Of values that are not NaN, by their bits, which a CPU compares in more places than floats. They are sign and magnitude: a
  // signed minimum bounds them from above, an unsigned one from below.
  static F clamp(F v, F low, F high) {  // low <= -0, +0 <= high
    const __m256i upper = _mm256_min_epi32(_mm256_castps_si256(v), _mm256_castps_si256(high));
    return _mm256_castsi256_ps(_mm256_min_epu32(upper, _mm256_castps_si256(low)));
  }
  static F positive(F v) { return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(v), _mm256_setzero_si256())); }
  // At most one of the two is below +0.
  static F min_as_bits(F a, F b) {
    return _mm256_castsi256_ps(_mm256_min_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
  }
  static F max_as_bits(F a, F b) {
    return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
  }
  // The smaller one, as the float below it; zeros are passed over, and `smallest` begins with all bits set.
  static F min_but_zero(F v, F smallest) {
    const __m256i below = _mm256_sub_epi32(_mm256_castps_si256(v), _mm256_set1_epi32(1));
    return _mm256_castsi256_ps(_mm256_min_epu32(below, _mm256_castps_si256(smallest)));
  }
  static uint32_t equal(F a, F b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)); }
  static uint32_t less(F a, F b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
  static uint32_t at_most(F a, F b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LE_OQ)); }
  // True of NaN.
  static uint32_t not_at_most(F a, F b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_NLE_UQ)); }
  static uint32_t unordered(F a, F b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_UNORD_Q)); }
  static __m256i wide(uint32_t bits) {
    const __m256i one = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), one), one);
  }
  static F select(uint32_t bits, F a, F b) { return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(wide(bits))); }
  static void keep(uint32_t bits, const float* g, float* d) {
    _mm256_storeu_ps(d, _mm256_and_ps(_mm256_castsi256_ps(wide(bits)), _mm256_loadu_ps(g)));
  }
  static void keep(uint32_t bits, const uint16_t* g, uint16_t* d) {
    const __m128i one = _mm_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128);
    const __m128i mask = _mm_cmpeq_epi16(_mm_and_si128(_mm_set1_epi16(static_cast<short>(bits)), one), one);
    const __m128i kept = _mm_and_si128(mask, _mm_loadu_si128(reinterpret_cast<const __m128i*>(g)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(d), kept);
  }
};

// Sixteen doubles.
struct Doubles {
  __m256d v[4];

  template <class F>
  static Doubles each(const F& f) {
    return {{f(0), f(1), f(2), f(3)}};
  }
  static Doubles set(double x) {
    return each([&](int) { return _mm256_set1_pd(x); });
  }
  static Doubles of(const Vector::F* v) {
    const auto half = [&](int k) { return k % 2 ? _mm256_extractf128_ps(v[k / 2], 1) : _mm256_castps256_ps128(v[k / 2]); };
    return each([&](int k) { return _mm256_cvtps_pd(half(k)); });
  }
  static Doubles of(const float* p) {
    return each([&](int k) { return _mm256_cvtps_pd(_mm_loadu_ps(p + 4 * k)); });
  }
  static Doubles of(const double* p) {
    return each([&](int k) { return _mm256_loadu_pd(p + 4 * k); });
  }
  static Doubles add(Doubles x, Doubles y) {
    return each([&](int k) { return _mm256_add_pd(x.v[k], y.v[k]); });
  }
  static Doubles sub(Doubles x, Doubles y) {
    return each([&](int k) { return _mm256_sub_pd(x.v[k], y.v[k]); });
  }
  static Doubles mul(Doubles x, Doubles y) {
    return each([&](int k) { return _mm256_mul_pd(x.v[k], y.v[k]); });
  }
  void store(double* p) const {
    for (int k = 0; k < 4; ++k) _mm256_storeu_pd(p + 4 * k, v[k]);
  }
};

// Eight whole numbers of 32 bits, or sixteen of 16.
struct Whole {
  static constexpr int lanes = 8, rows = 6;
  using I = __m256i;

  static I zero() { return _mm256_setzero_si256(); }
  static I load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static void store(int32_t* p, I v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  // The same two numbers of 16 bits everywhere.
  static I pair(const int16_t* p) {
    int32_t both;
    std::memcpy(&both, p, sizeof both);
    return _mm256_set1_epi32(both);
  }
  static I products(I a, I b) { return _mm256_madd_epi16(a, b); }
  static I add(I a, I b) { return _mm256_add_epi32(a, b); }
};
