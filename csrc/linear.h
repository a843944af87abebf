// Linear layers that keep what their operands were made from.
#pragma once

#include <ATen/core/Tensor.h>

namespace truequant {

// Whether the product of these has a gradient, and an operand of it is one that can be made again.
bool gains(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias);

// `x @ weight.T + bias` (undefined: none) of operands of one dtype, `x` a matrix of rows without gaps or contiguous.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias);

}  // namespace truequant
