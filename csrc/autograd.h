// Gradients of the quantizers.
#pragma once

#include <ATen/core/Tensor.h>

namespace truequant {

// Whether a backward may ask for the gradient of one of these.
bool wants_gradient(const at::Tensor& a, const at::Tensor* b);

// Makes `y` the result of a quantizer of `a` (and `b`, where they were added): the gradient passes where `mask` says so,
// everywhere where it is undefined.
void record(const at::Tensor& y, const at::Tensor& a, const at::Tensor* b, const at::Tensor& mask);

}  // namespace truequant
