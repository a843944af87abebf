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
  // Every second element of 32: no shuffle is needed.
  static void load_pairs(const BFloat16* p, F& even, F& odd) {
    const __m512i both = _mm512_loadu_si512(p);
    even = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    odd = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
  }
  // The upper halves of the results are `v` rounded to even.
  static __m512i upper(F v) {
    const __m512i u = _mm512_castps_si512(v), up = _mm512_add_epi32(u, _mm512_set1_epi32(0x7fff));
    return _mm512_mask_add_epi32(up, _mm512_test_epi32_mask(u, _mm512_set1_epi32(0x10000)), up, _mm512_set1_epi32(1));
  }
  // Whether rounding the upper half to even and rounding it up differ.
  static bool is_tied(float v) { return (std::bit_cast<uint32_t>(v) & 0x1ffff) == 0x8000; }
  template <bool NAN_TOO, bool NEVER_TIED>
  static void store_pairs(BFloat16* p, F even, F odd) {
    const __m512i half = _mm512_set1_epi32(0x8000);
    __m512i a = NEVER_TIED ? _mm512_add_epi32(_mm512_castps_si512(even), half) : upper(even);
    __m512i b = NEVER_TIED ? _mm512_add_epi32(_mm512_castps_si512(odd), half) : upper(odd);
    if constexpr (NAN_TOO) {
      const __m512i nan = _mm512_set1_epi32(0x7fc00000);
      a = _mm512_mask_mov_epi32(a, _mm512_cmp_ps_mask(even, even, _CMP_UNORD_Q), nan);
      b = _mm512_mask_mov_epi32(b, _mm512_cmp_ps_mask(odd, odd, _CMP_UNORD_Q), nan);
    }
    _mm512_storeu_si512(p, _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(a, 16), b));
  }
  // Bits of even and of odd elements.
  static uint64_t woven(uint32_t even, uint32_t odd) { return _pdep_u32(even, 0x55555555) | _pdep_u32(odd, 0xaaaaaaaa); }
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
  static uint32_t equal(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
  static uint32_t less(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
  static uint32_t at_most(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
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
};

// Sixteen doubles.
struct Doubles {
  __m512d a, b;

  static Doubles set(double v) { return {_mm512_set1_pd(v), _mm512_set1_pd(v)}; }
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
