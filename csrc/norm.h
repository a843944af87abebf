// BatchNorm in training with clip and quantizer behind it, in the passes over memory that BatchNorm needs anyway.
#pragma once

#include <ATen/core/Tensor.h>

#include "histogram.h"
#include "kernels.h"

namespace truequant {

// How a tensor of (N, C, …) lies in memory: `rows` runs of `length` elements. Run r belongs to channel r % channels, or, where
// it is `varying`, holds one element of each channel. Masks have `mask_stride` bytes a run.
struct Runs {
  int64_t rows, length, channels;
  bool varying;
  int64_t mask_stride() const { return (length + 15) / 16 * 2; }
};

// False where the layout is neither contiguous nor channels-last.
bool runs_of(Runs& runs, const at::Tensor& x);

struct Moments {
  at::Tensor mean, invstd;  // float32, (C,)
};

// Mean and inverse standard deviation of the batch; `running_mean` and `running_var` (null: none) move by `momentum`.
Moments batch_moments(const at::Tensor& x, const Runs& runs, double eps, float* running_mean, float* running_var, double momentum);

// Quantizes clip((x - mean) * invstd * gamma + beta) as x * factor + shift, factor = invstd * gamma, shift = beta - mean * factor.
// gamma and beta may be null. Without `y` it only looks. `counting` (may be null) counts what is quantized.
void normalized(const at::Tensor& x, const Runs& runs, const Moments& moments, const float* gamma, const float* beta,
                const Grid& grid, Clip clip, at::Tensor* y, at::Tensor* mask, Seen& seen, Counting* counting);

struct NormGradients {
  at::Tensor x, gamma, beta;
};

// Gradients of all that from the gradient of its result; `mask` may be undefined: everywhere. x and gradient lie alike. That of
// x takes the memory of `gradient` where that is `spent`.
NormGradients norm_gradients(const at::Tensor& gradient, const at::Tensor& mask, const at::Tensor& x, const Runs& runs,
                             const Moments& moments, const at::Tensor& gamma, bool wants_x, bool spent);

}  // namespace truequant
