// Gradients of the quantizers.
#pragma once

#include <ATen/core/Tensor.h>

#include "norm.h"

namespace truequant {

// Whether a backward may ask for the gradient of one of these.
bool wants_gradient(const at::Tensor& a, const at::Tensor* b);

// Makes `y` the result of a quantizer of `a` (and `b`, where they were added): the gradient passes where `mask` says so,
// everywhere where it is undefined.
void record(const at::Tensor& y, const at::Tensor& a, const at::Tensor* b, const at::Tensor& mask);

// Makes `y` the quantized result of a BatchNorm of `x` with `gamma` and `beta` (undefined: none), all in one node.
void record_norm(const at::Tensor& y, const at::Tensor& x, const at::Tensor& gamma, const at::Tensor& beta, const at::Tensor& mask,
                 const Moments& moments);

// The same for gradients of three inputs.
bool wants_gradient(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c);

}  // namespace truequant
