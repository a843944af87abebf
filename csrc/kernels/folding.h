// Biases on the grid that the integer layer has for them.
#pragma once

#include <cstdint>

namespace truequant {

// BatchNorm in evaluation; null pointers for what it does not have.
struct Norm {
  const float *mean, *var, *gamma, *beta;
  double eps;
};

// What rounding adds to the folded bias of each channel: bias (may be null) alone, or folded with `norm`. `scales` is 1 or
// `channels`; free: the factor of the norm goes into the scale.
void bias_errors(float* errors, int64_t channels, const float* bias, const Norm* norm, float input_scale, const float* scale,
                 int64_t scales, bool free);

}  // namespace truequant
