// Grids with a scale for each index of one axis, and learned ones.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "kernels.h"

namespace truequant {

// How a dense tensor lies in memory: `outer` times `channels` runs of `inner` elements, which share a scale.
struct Layout {
  int64_t outer, channels, inner;
};

// For `scale`, which broadcasts against the dense tensor `x`; false where its entries vary along more than one axis.
bool layout_of(Layout& layout, const at::Tensor& x, const at::Tensor& scale);

// For a scale for each index of an axis, which counts from the end where it is negative; false where there is none.
bool layout_along(Layout& layout, const at::Tensor& x, int64_t axis);

// A grid whose scale and zero point are those of each channel.
struct Channels {
  std::vector<float> scale, zero_point;
  Grid grid{};
  Rule rule = kLearned;
  Clip clip = kNone;
  Layout layout{};
};

// `x` on its grid. `mask` and `seen` (an entry a channel) may be null; a mask is not made for binary codes, nor `seen`.
at::Tensor quantized_channels(const at::Tensor& x, const Channels& channels, at::Tensor* mask, std::vector<Seen>* seen);

struct LearnedGradients {
  at::Tensor x;
  std::vector<double> scale, offset;
};

// Gradients of that from the gradient of its result, which lies as `x` does; those of scales in the order of `kLanes`.
LearnedGradients learned_gradients(const at::Tensor& gradient, const at::Tensor& x, const Channels& channels);

}  // namespace truequant
