#include "grid.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

namespace truequant {
namespace {

float finite(float v) { return std::isnan(v) ? 0.0f : std::min(std::max(v, -FLT_MAX), FLT_MAX); }

}  // namespace

float bounded_scale(float scale, bool power_of_two) {
  scale = std::min(std::max(scale, kMinScale), kMaxScale);
  if (!power_of_two) return scale;
  int exponent;
  const float mantissa = std::frexp(scale, &exponent);
  return std::ldexp(1.0f, mantissa == 0.5f ? exponent - 1 : exponent);
}

Qparams scale_and_zero_point(float minimum, float maximum, const Scheme& scheme) {
  const float low = std::min(finite(minimum), 0.0f), high = std::max(finite(maximum), 0.0f);
  if (scheme.is_symmetric) {
    const float reach = scheme.is_signed ? std::max(-low, high) : high;
    return {bounded_scale(reach / scheme.qmax, scheme.power_of_two), 0.0f};
  }
  const float levels = scheme.qmax - scheme.qmin;
  const float scale = bounded_scale(high / levels - low / levels, scheme.power_of_two);
  return {scale, std::min(std::max(std::nearbyint(scheme.qmin - low / scale), scheme.qmin), scheme.qmax)};
}

bool fold(const State& state, const Scheme& scheme) {
  const float low = *state.pending_minimum, high = *state.pending_maximum;
  const bool there = low <= high;
  if (there) {
    const bool first = *state.updates == 0 || *state.minimum > *state.maximum;
    if (first) {
      *state.minimum = low;
      *state.maximum = high;
    } else if (scheme.momentum >= 0) {
      const float keep = static_cast<float>(scheme.momentum), take = static_cast<float>(1.0 - scheme.momentum);
      *state.minimum = keep * *state.minimum + take * low;
      *state.maximum = keep * *state.maximum + take * high;
    } else {
      *state.minimum = std::min(*state.minimum, low);
      *state.maximum = std::max(*state.maximum, high);
    }
  }
  *state.pending_minimum = INFINITY;
  *state.pending_maximum = -INFINITY;
  return there;
}

void take_range(const State& state, const Scheme& scheme) {
  Range range{*state.minimum, *state.maximum};
  if (scheme.percent >= 0) range = percentile(state.histogram, range.low, range.high, scheme.percent);
  const Qparams found = scale_and_zero_point(range.low, range.high, scheme);
  *state.scale = found.scale;
  *state.zero_point = found.zero_point;
}

void commit(const State& state, const Scheme& scheme) {
  *state.updates += fold(state, scheme);
  if (*state.updates > 0) take_range(state, scheme);
}

void merge(const State& state, const Seen& seen) {
  if (seen.nan) return;
  if (std::isfinite(seen.min)) *state.pending_minimum = std::min(*state.pending_minimum, seen.min);
  if (std::isfinite(seen.max)) *state.pending_maximum = std::max(*state.pending_maximum, seen.max);
}

}  // namespace truequant
