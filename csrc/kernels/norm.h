// BatchNorm in training with clip and quantizer behind it, in the passes over memory that BatchNorm needs anyway.
#pragma once

#include <cstdint>

#include "histogram.h"
#include "kernels.h"

namespace truequant {

// How a tensor of (N, C, …) lies in memory: `rows` runs of `length` elements. Run r belongs to channel r % channels, or, where
// it is `varying`, holds one element of each channel. Masks have `mask_stride` bytes a run.
struct Runs {
  int64_t rows, length, channels;
  bool varying;

  int64_t mask_stride() const { return (length + 15) / 16 * 2; }
  int64_t elements_each() const { return rows * length / channels; }  // of a channel
};

// Mean and inverse standard deviation of the batch, an entry a channel; `running_mean` and `running_var` (null: none) move by
// `momentum`.
void batch_moments(const float* x, const Runs& runs, double eps, float* mean, float* invstd, float* running_mean,
                   float* running_var, double momentum);

// A BatchNorm of a batch whose moments are known; gamma and beta may be null.
struct Normal {
  const float *mean, *invstd, *gamma, *beta;
};

// Quantizes clip((x - mean) * invstd * gamma + beta) as x * factor + shift, factor = invstd * gamma, shift = beta - mean * factor.
// Without `y` it only observes. `mask` and `counting`, which counts what is quantized, may be null. What was quantized.
Seen quantize_normal(const float* x, const Runs& runs, const Normal& normal, const Grid& grid, Clip clip, float* y, uint8_t* mask,
                     Counting* counting);

// Gradients of all that from the gradient `g` of its result; `mask` may be null: everywhere. `d`, that of x, may be null: not
// wanted, or `g` itself.
void normal_gradients(const float* g, const uint8_t* mask, const float* x, const Runs& runs, const Normal& normal, float* d,
                      float* d_gamma, float* d_beta);

}  // namespace truequant
