// Weights: a scale for each row from its largest absolute value, and fake quantization.
#pragma once

#include <ATen/core/Tensor.h>

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
};

// The rows of `weight` for `scales` scales; false where they do not lie one behind the other in memory.
bool rows_of(Rows& rows, const at::Tensor& weight, int64_t scales, int64_t group);

// `weight` on its grid. Where `ranges`, each row's scale is computed first and written to `scale`. `mask` is undefined
// afterwards where every gradient passes, or none is wanted.
at::Tensor quantized_weight(const at::Tensor& weight, float* scale, const Rows& rows, const Scheme& scheme, bool ranges,
                            bool differentiable, at::Tensor& mask);

}  // namespace truequant
