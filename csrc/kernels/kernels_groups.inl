// Products of tokens with weights of few bits, summed in integers a group, by instructions that AVX2 has.
//
// A code plus 8 is at most 16 and a token's at most 127: pairs sum to 4064 in 16 bits, and eight pairs to 32512.

template <int TOKENS>
void group_sums_of(const GroupPanel& panel, const GroupTokens& from, double* sums) {
  const __m256i ones = _mm256_set1_epi16(1);
  const int64_t inputs = panel.groups * panel.length, runs = panel.length / 4;
  const uint8_t* codes = panel.codes;
  __m256d total[TOKENS][2];
  for (int t = 0; t < TOKENS; ++t) total[t][0] = total[t][1] = _mm256_setzero_pd();
  for (int64_t group = 0; group < panel.groups; ++group) {
    __m256i whole[TOKENS];
    for (int t = 0; t < TOKENS; ++t) whole[t] = _mm256_set1_epi32(-from.sums[t * panel.groups + group]);
    const int8_t* token = from.codes + group * panel.length;
    for (int64_t run = 0; run < runs;) {
      const int64_t end = run + 8 < runs ? run + 8 : runs;
      __m256i pairs[TOKENS];
      for (int t = 0; t < TOKENS; ++t) pairs[t] = _mm256_setzero_si256();
      for (; run < end; ++run, codes += 32) {
        const __m256i weight = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
        for (int t = 0; t < TOKENS; ++t) {
          int32_t four;
          std::memcpy(&four, token + t * inputs + 4 * run, sizeof four);
          pairs[t] = _mm256_add_epi16(pairs[t], _mm256_maddubs_epi16(weight, _mm256_set1_epi32(four)));
        }
      }
      for (int t = 0; t < TOKENS; ++t) whole[t] = _mm256_add_epi32(whole[t], _mm256_madd_epi16(pairs[t], ones));
    }
    const __m256d first = _mm256_cvtps_pd(_mm_loadu_ps(panel.scale + 8 * group));
    const __m256d second = _mm256_cvtps_pd(_mm_loadu_ps(panel.scale + 8 * group + 4));
    for (int t = 0; t < TOKENS; ++t) {
      const __m256d low = _mm256_cvtepi32_pd(_mm256_castsi256_si128(whole[t]));
      const __m256d high = _mm256_cvtepi32_pd(_mm256_extracti128_si256(whole[t], 1));
      total[t][0] = _mm256_add_pd(_mm256_mul_pd(low, first), total[t][0]);  // the product is exact
      total[t][1] = _mm256_add_pd(_mm256_mul_pd(high, second), total[t][1]);
    }
  }
  for (int t = 0; t < TOKENS; ++t) {
    _mm256_storeu_pd(sums + 8 * t, total[t][0]);
    _mm256_storeu_pd(sums + 8 * t + 4, total[t][1]);
  }
}

inline void group_sums(const GroupPanel& panel, const GroupTokens& from, int64_t tokens, double* sums) {
  switch (tokens) {
    case 1: return group_sums_of<1>(panel, from, sums);
    case 2: return group_sums_of<2>(panel, from, sums);
    case 3: return group_sums_of<3>(panel, from, sums);
    default: return group_sums_of<4>(panel, from, sums);
  }
}
