// The kernels for the baseline of whatever CPU this is compiled for.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "kernels.h"
#include "storage.h"

namespace truequant {
namespace {

#include "vector_portable.h"

#include "quantizer.inl"
#include "kernels.inl"
#include "kernels_learned.inl"
#include "kernels_histogram.inl"
#include "kernels_codes.inl"
#include "kernels_products.inl"
#include "kernels_norm.inl"
#include "kernels_search.inl"

}  // namespace

const Kernels* portable_kernels() {
  static const Kernels kernels = TRUEQUANT_KERNELS("portable");
  return &kernels;
}

}  // namespace truequant
