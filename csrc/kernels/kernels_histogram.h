// Kernels of quantizers that count what they see in bins.
#pragma once

#include <cstdint>

#include "values.h"

namespace truequant {

struct HistogramKernels {
  // v = clip(a), or clip(a + b) where b is not null, of at most kBlock elements, in float32; `seen` is widened by those that are
  // finite, and by 0 for each that is not. Up to a multiple of kAlign, what follows in `v` repeats one of them.
  void (*values[kDtypes][kClips])(const void* a, const void* b, float* v, int64_t n, const Grid&, Seen& seen);
  // The bin of each of at most kBlock elements, floor(v * first * second) + bins, where `first * second` is one over the width
  // of a bin; 2 * bins for what is not finite.
  void (*bins)(const float* v, int64_t n, float first, float second, int32_t bins, int32_t* bin);
};

}  // namespace truequant
