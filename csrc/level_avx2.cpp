// The kernels for AVX2 with F16C, whatever the compiler's own target is.
#include "kernels.h"
#include "storage.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <immintrin.h>

#include <cmath>
#include <cstring>

// All headers come before this line: what they define must run on every CPU.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,f16c")
#endif

namespace truequant {
namespace {

#include "vector_avx2.h"

#include "kernels.inl"
#include "kernels_norm.inl"

}  // namespace

const Kernels* avx2_kernels() {
  static const Kernels kernels = TRUEQUANT_KERNELS("avx2");
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

const Kernels* avx2_kernels() { return nullptr; }

}  // namespace truequant

#endif
