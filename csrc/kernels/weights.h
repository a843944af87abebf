// Weights: a scale for each row from its largest absolute value, and fake quantization.
#pragma once

#include <cstdint>

#include "grid.h"

namespace truequant {

// Runs of elements that share a scale: all, those of one index of axis 0, or groups of `group` elements within those.
struct Rows {
  int64_t count, per_channel, channel_length, group;
  bool grouped;

  int64_t begin(int64_t row) const { return row / per_channel * channel_length + row % per_channel * group; }
  int64_t length(int64_t row) const {
    const int64_t from = row % per_channel * group;
    return channel_length - from < group ? channel_length - from : group;
  }
  int64_t elements() const { return count / per_channel * channel_length; }
};

// y = weight on its grid. Where `ranges`, each row's scale is computed first and written to `scale`. Whether a gradient stops.
bool quantize_rows(const void* weight, Dtype dtype, void* y, float* scale, const Rows& rows, const Scheme& scheme, bool ranges);

// Where gradients of that pass: a bit for each element.
void mask_rows(const void* weight, Dtype dtype, const float* scale, const Rows& rows, const Scheme& scheme, uint8_t* mask);

}  // namespace truequant
