// Kernels of BatchNorm in training with a quantizer behind it. A run is `n` consecutive elements of one channel, or, where it
// is `varying`, one element of each of `n` channels.
#pragma once

#include <cstdint>

#include "values.h"

namespace truequant {

// Sums of sixteen lanes: lane i % 16 for element i of every run.
struct Lanes {
  double sum[16], product[16];
};

// Of each channel.
struct NormGradient {
  const float *mean, *slope, *offset, *factor;
};

struct NormKernels {
  // sum += x - pivot, product += (x - pivot)^2
  void (*moments)(const float* x, int64_t n, float pivot, Lanes& lanes);
  // sum += g', product += g' * (x - mean), g' the gradient where the mask (null: everywhere) lets it pass
  void (*gradient_sums)(const float* g, const uint8_t* mask, const float* x, int64_t n, float mean, Lanes& lanes);
  // The same where every element is another channel.
  void (*column_moments)(const float* x, int64_t n, const float* pivot, double* sum, double* product);
  void (*column_gradient_sums)(const float* g, const uint8_t* mask, const float* x, int64_t n, const float* mean, double* sum,
                               double* product);
  // Quantizes clip(x * factor + shift); y and mask may be null.
  void (*normalize[kClips])(const float* x, float* y, uint8_t* mask, int64_t n, const float* factor, const float* shift,
                            bool varying, const Grid&, Seen&);
  // d = ((g' - offset) - (x - mean) * slope) * factor
  void (*gradient)(const float* g, const uint8_t* mask, const float* x, float* d, int64_t n, const NormGradient&, bool varying);
  // y = x * factor + shift
  void (*scaled)(const float* x, float* y, int64_t n, const float* factor, const float* shift, bool varying);
};

}  // namespace truequant
