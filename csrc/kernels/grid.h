// Ranges, scales and zero points of one quantizer: what `observers` and `numerics` compute, without a tensor for each step.
#pragma once

#include <cstdint>

#include "histogram.h"
#include "kernels.h"

namespace truequant {

constexpr float kMinScale = 0x1p-64f;
constexpr float kMaxScale = 0x1p64f;

// How a range becomes a scale. `momentum` is negative where the range is the widest ever seen; `percent`, unless negative, says
// how much of what was counted the range holds.
struct Scheme {
  float qmin, qmax;
  bool is_symmetric, is_signed, power_of_two;
  bool identity;  // gradient
  double momentum, percent;
};

// The state of a quantizer, in the buffers that the model's state dict holds.
struct State {
  float *scale, *zero_point;
  float *minimum, *maximum, *pending_minimum, *pending_maximum;
  int64_t* updates;
  Histogram histogram;  // of no bins where nothing is counted
};

struct Qparams {
  float scale, zero_point;
};

Qparams scale_and_zero_point(float minimum, float maximum, const Scheme& scheme);
float bounded_scale(float scale, bool power_of_two);

// Folds what is pending into the range; whether anything was.
bool fold(const State& state, const Scheme& scheme);

// Sets scale and zero point from the range.
void take_range(const State& state, const Scheme& scheme);

// Both, of a quantizer with one range: nothing is set before something was seen.
void commit(const State& state, const Scheme& scheme);

// Merges what was seen into what is pending. An end that is not finite counts as not seen.
void merge(const State& state, const Seen& seen);

}  // namespace truequant
