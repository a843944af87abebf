// Sixteen floats in an AVX-512 register. Comparisons give bits, one an element.
struct Vector {
  static constexpr int width = 16, several = 4;
  static constexpr bool pairs = true;
  using F = __m512;

  static F set(float v) { return _mm512_set1_ps(v); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load(const BFloat16* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  static F load(const Half* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static void store(BFloat16* p, F v) {
    const __m512i u = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i r = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    r = _mm512_mask_mov_epi32(r, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc0));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(r));
  }
  static void store(Half* p, F v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  // The upper halves of the results are `v` rounded to even.
  static __m512i upper(F v) {
    const __m512i u = _mm512_castps_si512(v), up = _mm512_add_epi32(u, _mm512_set1_epi32(0x7fff));
    return _mm512_mask_add_epi32(up, _mm512_test_epi32_mask(u, _mm512_set1_epi32(0x10000)), up, _mm512_set1_epi32(1));
  }
  // Whether rounding the upper half to even and rounding it up differ.
  static bool is_tied(float v) { return (std::bit_cast<uint32_t>(v) & 0x1ffff) == 0x8000; }
  // To the precision of two-byte floats.
  static F rounded(F v, BFloat16) {
    const __m512i r = _mm512_and_si512(upper(v), _mm512_set1_epi32(static_cast<int>(0xffff0000)));
    return _mm512_mask_mov_ps(_mm512_castsi512_ps(r), _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), v);
  }
  static F rounded(F v, Half) { return _mm512_cvtph_ps(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static constexpr bool fuses = true;
  static F mul_add(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F sub_mul(F c, F a, F b) { return _mm512_fnmadd_ps(a, b, c); }
  // In one rounding where that is as quick.
  static F product_plus(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F product_minus(F a, F b, F c) { return _mm512_fmsub_ps(a, b, c); }
  static F abs(F a) { return _mm512_abs_ps(a); }
  // max(|a|, largest), which is never NaN: where `a` is, `largest`.
  static F farther(F a, F largest) { return _mm512_range_ps(a, largest, 0b1011); }
  static F rint(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F floor(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
  static void store(int32_t* p, F whole) { _mm512_storeu_si512(p, _mm512_cvttps_epi32(whole)); }
  static void store(int8_t* p, F whole) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(whole)));
  }
  static F difference(const int32_t* a, const int32_t* b) {
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_loadu_si512(a), _mm512_loadu_si512(b)));
  }
  // Both give the second operand where one is NaN.
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  // Of all sixteen, none of which is NaN.
  static float least(F v) { return _mm512_reduce_min_ps(v); }
  static float greatest(F v) { return _mm512_reduce_max_ps(v); }
  // Of values that are not NaN, by their bits, which a CPU compares in more places than floats. They are sign and magnitude: a
  // signed minimum bounds them from above, an unsigned one from below.
  static F clamp(F v, F low, F high) {  // low <= -0, +0 <= high
    const __m512i upper = _mm512_min_epi32(_mm512_castps_si512(v), _mm512_castps_si512(high));
    return _mm512_castsi512_ps(_mm512_min_epu32(upper, _mm512_castps_si512(low)));
  }
  static F positive(F v) { return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(v), _mm512_setzero_si512())); }
  // At most one of the two is below +0.
  static F min_as_bits(F a, F b) {
    return _mm512_castsi512_ps(_mm512_min_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
  }
  static F max_as_bits(F a, F b) {
    return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
  }
  // The smaller one, as the float below it; zeros are passed over, and `smallest` begins with all bits set.
  static F min_but_zero(F v, F smallest) {
    const __m512i below = _mm512_sub_epi32(_mm512_castps_si512(v), _mm512_set1_epi32(1));
    return _mm512_castsi512_ps(_mm512_min_epu32(below, _mm512_castps_si512(smallest)));
  }
  static uint32_t equal(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
  static uint32_t less(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
  static uint32_t at_most(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
  // True of NaN.
  static uint32_t not_at_most(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLE_UQ); }
  static uint32_t unordered(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q); }
  static F select(uint32_t bits, F a, F b) { return _mm512_mask_blend_ps(static_cast<__mmask16>(bits), b, a); }
  // No masked loads: AMD's Zen 5 fetches nothing ahead of them, and memory that is not in a cache takes 1.6 to 2.2 times as long.
  static void keep(uint32_t bits, const float* g, float* d) {
    const __m512i mask = _mm512_movm_epi32(static_cast<__mmask16>(bits));
    _mm512_storeu_ps(d, _mm512_and_ps(_mm512_castsi512_ps(mask), _mm512_loadu_ps(g)));
  }
  static void keep(uint32_t bits, const uint16_t* g, uint16_t* d) {
    const __m256i mask = _mm256_movm_epi16(static_cast<__mmask16>(bits));
    const __m256i kept = _mm256_and_si256(mask, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(g)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(d), kept);
  }

  // Thirty-two two-byte floats, as words.
  using W = __m512i;
  static W set_words(uint16_t v) { return _mm512_set1_epi16(static_cast<short>(v)); }
  static W load_words(const void* p) { return _mm512_loadu_si512(p); }
  static void store_words(void* p, W w) { _mm512_storeu_si512(p, w); }
  static W min_signed(W a, W b) { return _mm512_min_epi16(a, b); }
  static W max_signed(W a, W b) { return _mm512_max_epi16(a, b); }
  static W min_unsigned(W a, W b) { return _mm512_min_epu16(a, b); }
  static W max_unsigned(W a, W b) { return _mm512_max_epu16(a, b); }
  static uint32_t same(W a, W b) { return _mm512_cmpeq_epi16_mask(a, b); }
  static uint32_t less_signed(W a, W b) { return _mm512_cmplt_epi16_mask(a, b); }
  static uint32_t less_unsigned(W a, W b) { return _mm512_cmplt_epu16_mask(a, b); }
  static W select_words(uint32_t bits, W a, W b) { return _mm512_mask_blend_epi16(bits, b, a); }
  // 0 < v <= most, of what is not below +0.
  static uint32_t positive_to(W v, W most) { return _mm512_cmplt_epu16_mask(_mm512_sub_epi16(v, _mm512_set1_epi16(1)), most); }
  // As two vectors: of bfloat16 the even and the odd elements, which takes no shuffle, of float16 the lower and the upper half.
  static void widen(W both, F& even, F& odd, BFloat16) {
    even = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    odd = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
  }
  static void widen(W both, F& first, F& second, Half) {
    first = _mm512_cvtph_ps(_mm512_castsi512_si256(both));
    second = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(both, 1));
  }
  // None is NaN. NEVER_TIED: none is in the middle of two bfloat16.
  template <bool NEVER_TIED>
  static W narrow(F even, F odd, BFloat16) {
    const __m512i half = _mm512_set1_epi32(0x8000);
    const __m512i a = NEVER_TIED ? _mm512_add_epi32(_mm512_castps_si512(even), half) : upper(even);
    const __m512i b = NEVER_TIED ? _mm512_add_epi32(_mm512_castps_si512(odd), half) : upper(odd);
    return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(a, 16), b);
  }
  template <bool>
  static W narrow(F first, F second, Half) {
    constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtps_ph(first, mode)), _mm512_cvtps_ph(second, mode), 1);
  }
  // One value, rounded toward 0 and to the nearest.
  static BFloat16 truncated(float v, BFloat16) { return {static_cast<uint16_t>(std::bit_cast<uint32_t>(v) >> 16)}; }
  static Half truncated(float v, Half) { return {_cvtss_sh(v, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC)}; }
  template <class T>
  static T nearest(float v, T) {
    T values[width];
    store(values, set(v));
    return values[0];
  }
  static float value(BFloat16 v) { return std::bit_cast<float>(static_cast<uint32_t>(v.bits) << 16); }
  static float value(Half v) { return _cvtsh_ss(v.bits); }
  // Bits of even and of odd elements.
  static uint64_t woven(uint32_t even, uint32_t odd) { return _pdep_u32(even, 0x55555555) | _pdep_u32(odd, 0xaaaaaaaa); }
};

// Sixteen doubles.
struct Doubles {
  __m512d a, b;

  static Doubles set(double v) { return {_mm512_set1_pd(v), _mm512_set1_pd(v)}; }
  static Doubles of(const Vector::F* v) {
    return {_mm512_cvtps_pd(_mm512_castps512_ps256(*v)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(*v, 1))};
  }
  static Doubles of(const float* p) { return {_mm512_cvtps_pd(_mm256_loadu_ps(p)), _mm512_cvtps_pd(_mm256_loadu_ps(p + 8))}; }
  static Doubles of(const double* p) { return {_mm512_loadu_pd(p), _mm512_loadu_pd(p + 8)}; }
  static Doubles add(Doubles x, Doubles y) { return {_mm512_add_pd(x.a, y.a), _mm512_add_pd(x.b, y.b)}; }
  static Doubles sub(Doubles x, Doubles y) { return {_mm512_sub_pd(x.a, y.a), _mm512_sub_pd(x.b, y.b)}; }
  static Doubles mul(Doubles x, Doubles y) { return {_mm512_mul_pd(x.a, y.a), _mm512_mul_pd(x.b, y.b)}; }
  void store(double* p) const {
    _mm512_storeu_pd(p, a);
    _mm512_storeu_pd(p + 8, b);
  }
};

// Sixteen whole numbers of 32 bits, or 32 of 16.
struct Whole {
  static constexpr int lanes = 16, rows = 12;
  using I = __m512i;

  static I zero() { return _mm512_setzero_si512(); }
  static I load(const void* p) { return _mm512_loadu_si512(p); }
  static void store(int32_t* p, I v) { _mm512_storeu_si512(p, v); }
  // The same two numbers of 16 bits everywhere.
  static I pair(const int16_t* p) {
    int32_t both;
    std::memcpy(&both, p, sizeof both);
    return _mm512_set1_epi32(both);
  }
  static I products(I a, I b) { return _mm512_madd_epi16(a, b); }
  static I add(I a, I b) { return _mm512_add_epi32(a, b); }
};
