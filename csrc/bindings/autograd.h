// Gradients of the quantizers.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "origin.h"
#include "passes.h"

namespace truequant {

// Whether a backward may ask for the gradient of one of these.
bool wants_gradient(const at::Tensor& a, const at::Tensor* b);
bool wants_gradient(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c);

// Makes `y` the result of a quantizer of `a` (and `b`, where they were added): the gradient passes where `mask` says so,
// everywhere where it is undefined. `origin`: how it was made from `a`, for those who want to make it again.
void record(const at::Tensor& y, const at::Tensor& a, const at::Tensor* b, const at::Tensor& mask,
            std::shared_ptr<const Origin> origin = nullptr);

// How `x`, the result of a quantizer or a view of one, was made; null where that is not known.
std::shared_ptr<const Origin> origin_of(const at::Tensor& x);

// Makes `y` the quantized result of a BatchNorm of `x` with `gamma` and `beta` (undefined: none), all in one node.
void record_norm(const at::Tensor& y, const at::Tensor& x, const at::Tensor& gamma, const at::Tensor& beta, const at::Tensor& mask,
                 const Moments& moments);

// `initial * f(shift)`, f(t) = 1 + t for t >= 0 and exp(t) below, within the bounds of scales. The gradient of the shift is
// multiplied by gain / initial^2. Plain float32 tensors of one shape.
at::Tensor scale_of_shift(const at::Tensor& initial, const at::Tensor& shift, float gain);

// A learned grid: `beyond` says of each offset (LSQ+) whether it lies beyond the top (1) or bottom (-1) of the codes.
struct LearnedGrid {
  Channels channels;
  std::vector<float> beyond;
  float factor = 1.0f;
  std::vector<int64_t> sizes;  // of the scales

  // Whether a step along the gradient brings 0 no further out of the codes.
  bool inward(size_t k, float gradient) const {
    return !((beyond[k] > 0 && gradient > 0) || (beyond[k] < 0 && gradient < 0));
  }
};

// Makes `y` the result of a learned quantizer of `x`, which is `kept` without gaps, with gradients for scales and offsets
// (undefined: none).
void record_learned(const at::Tensor& y, const at::Tensor& x, const at::Tensor& kept, const at::Tensor& scale,
                    const at::Tensor& offset, const LearnedGrid& grid);

}  // namespace truequant
