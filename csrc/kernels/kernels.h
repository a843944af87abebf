// What the compiled kernels of one instruction set offer: plain pointers, no torch.
//
// Every kernel runs on one thread over `n` consecutive elements; callers split the work at multiples of `kAlign` elements, so
// that no byte of a mask is shared. All levels compute the same bits: IEEE single precision, no contraction, no reordering.
#pragma once

#include <cstdint>

#include "kernels_codes.h"
#include "kernels_histogram.h"
#include "kernels_learned.h"
#include "kernels_norm.h"
#include "kernels_products.h"
#include "kernels_search.h"
#include "values.h"

namespace truequant {

struct Kernels {
  const char* name;
  // y = (clamp(rint(c / s) + z, qmin, qmax) - z) * s of c = clip(a), or of c = clip(a + b) where b is not null; bit i of
  // `mask` (may be null) says whether the gradient of element i passes; `seen` is widened by c.
  void (*forward[kDtypes][kClips])(const void* a, const void* b, void* y, uint8_t* mask, int64_t n, const Grid&, Seen&);
  // d = g where the bit is set, else +0, for elements of 4 and of 2 bytes. Where d is g, runs of set bits are not touched.
  void (*masked[2])(const void* g, const uint8_t* mask, void* d, int64_t n);
  // Widens `seen` by x.
  void (*range[kDtypes])(const void* x, int64_t n, Seen& seen);
  NormKernels norm;
  LearnedKernels learned;
  HistogramKernels histogram;
  CodeKernels codes;
  ProductKernels products;
  SearchKernels search;
};

const Kernels* portable_kernels();
const Kernels* avx2_kernels();    // null where this build has none
const Kernels* avx512_kernels();  // null where this build has none

}  // namespace truequant
