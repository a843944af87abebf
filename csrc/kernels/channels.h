// Grids with a scale for each index of one axis, and learned ones.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"

namespace truequant {

// How elements lie in memory: `outer` times `channels` runs of `inner` elements, which share a scale.
struct Layout {
  int64_t outer, channels, inner;

  int64_t elements() const { return outer * channels * inner; }
};

// A grid whose scale and zero point are those of each channel.
struct Channels {
  std::vector<float> scale, zero_point;
  Grid grid{};
  Rule rule = kLearned;
  Clip clip = kNone;
  Layout layout{};
};

// y = x on its grid. `mask` and `seen` (an entry a channel) may be null; a mask is not made for binary codes, nor `seen`.
void quantize_by_channel(const Channels& channels, const void* x, Dtype dtype, void* y, uint8_t* mask, std::vector<Seen>* seen);

// Gradients of that from the gradient `g` of its result: `d` of x, `scale` and, for kOffset, `offset` of each channel, whose
// sums are in the order of `kLanes`.
void gradients_by_channel(const Channels& channels, const void* g, const void* x, Dtype dtype, void* d,
                          std::vector<double>& scale, std::vector<double>& offset);

}  // namespace truequant
