// Sums of products of codes, in integers.
#pragma once

#include <ATen/core/Tensor.h>

namespace truequant {

// The grids of the operands of a linear layer: multiples of `scale`, from `lowest` on, 256 of them; of a weight with the scales
// of its rows, or one for all.
struct ProductGrids {
  float scale, lowest;
  const float* weight_scale;
  int64_t weight_scales;
};

// `x @ weight.T + bias` (undefined: none), float32: the exact sum of the products of codes, rounded to float32, times the product
// of the scales, plus the bias. Undefined where an operand does not lie on its grid, where this CPU has no kernel that sums
// exactly, or where there are too few rows for one to be quicker. `x` as `linear` takes it.
at::Tensor product_of_codes(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, const ProductGrids& grids);

}  // namespace truequant
