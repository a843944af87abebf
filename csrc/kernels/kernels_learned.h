// Kernels of grids whose scale is learned, of binary ones, and of grids with a scale for each element of a run.
#pragma once

#include <cstdint>

#include "values.h"

namespace truequant {

// Whose gradients: of LSQ, of LSQ+ with its offset, of binary codes.
enum Rule { kLearned = 0, kOffset = 1, kBinary = 2, kRules = 3 };

// A sum of a run has kLanes lanes in double precision, element i in lane i % kLanes. Within a lane neighbours are added, again
// and again; then the lanes likewise. What is missing counts as 0.

struct LearnedKernels {
  // d = g where the gradient passes, else +0, of at most kBlock elements; what they add to the gradient of the scale, and, for
  // kOffset, of the offset, in sixteen lanes each. Binary codes are of values that are not clipped: null for other clips.
  void (*gradients[kDtypes][kRules][kClips])(const void* g, const void* x, void* d, int64_t n, const Grid&, double* scale,
                                             double* offset);
  // The same of a run with a scale and a zero point for each element, whose terms are given.
  void (*column_gradients[kDtypes][kRules])(const void* g, const void* x, void* d, int64_t n, const Grid&, const float* scale,
                                            const float* zero_point, float* scale_terms, float* offset_terms);
  // Fake quantization of such a run; `mask` may be null; `low` and `high` (may be null) are widened, and NaN stays there.
  void (*columns[kDtypes])(const void* x, void* y, uint8_t* mask, int64_t n, const Grid&, const float* scale,
                           const float* zero_point, float* low, float* high);
  // y = -s where x < 0, else s.
  void (*binary[kDtypes])(const void* x, void* y, int64_t n, float scale);
};

}  // namespace truequant
