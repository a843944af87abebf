// The kernels for AVX-512 (F, BW, DQ, VL), whatever the compiler's own target is.
#include "kernels.h"
#include "storage.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <immintrin.h>

#include <cmath>
#include <cstring>

// All headers come before this line: what they define must run on every CPU.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")
#endif

namespace truequant {
namespace {

#include "vector_avx512.h"

#include "kernels.inl"
#include "kernels_norm.inl"

}  // namespace

const Kernels* avx512_kernels() {
  static const Kernels kernels = TRUEQUANT_KERNELS("avx512");
  return &kernels;
}

}  // namespace truequant

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else

namespace truequant {

const Kernels* avx512_kernels() { return nullptr; }

}  // namespace truequant

#endif
