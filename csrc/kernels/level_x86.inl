// The kernels for TRUEQUANT_TARGET, whatever the compiler's own target is, as TRUEQUANT_KERNELS_OF().
#include "kernels.h"
#include "storage.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>

#define TRUEQUANT_PRAGMA(words) _Pragma(#words)
#define TRUEQUANT_PUSH_CLANG(name) TRUEQUANT_PRAGMA(clang attribute push(__attribute__((target(name))), apply_to = function))
#define TRUEQUANT_PUSH_GCC(name) TRUEQUANT_PRAGMA(GCC target(name))

// All headers come before this line: what they define must run on every CPU.
#if defined(__clang__)
TRUEQUANT_PUSH_CLANG(TRUEQUANT_TARGET)
#else
#pragma GCC push_options
TRUEQUANT_PUSH_GCC(TRUEQUANT_TARGET)
#endif

namespace truequant {
namespace {

#include TRUEQUANT_VECTOR

#include "quantizer.inl"
#include "kernels.inl"
#include "kernels_learned.inl"
#include "kernels_histogram.inl"
#include "kernels_codes.inl"
#include "kernels_products.inl"
#include "kernels_norm.inl"

#define TRUEQUANT_GROUP_SUMS
#include "kernels_search.inl"

}  // namespace

const Kernels* TRUEQUANT_KERNELS_OF() {
  static const Kernels kernels = TRUEQUANT_KERNELS(TRUEQUANT_NAME);
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

const Kernels* TRUEQUANT_KERNELS_OF() { return nullptr; }

}  // namespace truequant

#endif
