// Linear layers that keep what their operands were made from, and sum codes in integers.
#pragma once

#include <ATen/core/Tensor.h>

#include "passes.h"

namespace truequant {

// `x @ weight.T + bias` (undefined: none) of operands of one dtype, `x` a matrix of rows without gaps or contiguous. `grids`, where
// not null: on which the operands should lie; their codes are summed in integers then, where that is quicker.
//
// Undefined, and nothing computed, where neither that nor a backward that makes an operand again would be gained.
at::Tensor linear_output(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, const ProductGrids* grids);

}  // namespace truequant
