// What stands around a product of codes, which is summed in integers: codes before it, floats behind it.
#pragma once

#include <cstdint>
#include <vector>

namespace truequant {

// Whether this CPU sums products of bytes without saturating.
bool has_exact_products();

// The codes of a matrix of `rows` by `columns`, whose rows lie `stride` elements apart: x / scale - lowest - 128. False where an
// element is not on the grid; what is in `codes` is of no use then.
bool codes_of_rows(const float* x, int64_t rows, int64_t columns, int64_t stride, float scale, float lowest, int8_t* codes);

// How sums of products of codes become floats, of each output: float((sum - offset) * factor + bias).
struct SumsToFloats {
  std::vector<int32_t> offset;
  std::vector<float> factor;
};

// The grids of the operands of a linear layer: multiples of `scale`, from `lowest` on, 256 of them; of a weight with the scales
// of its rows, or one for all.
struct ProductGrids {
  float scale, lowest;
  const float* weight_scale;
  int64_t weight_scales;
};

// The codes of a weight without gaps, and what follows for sums; false as above.
bool codes_of_weight(const float* weight, int64_t outputs, int64_t inputs, const ProductGrids& grids, int8_t* codes,
                     SumsToFloats& follows);

// In place, of `rows` by as many sums of int32 as `how` has; `bias` may be null.
void sums_to_floats(void* sums, int64_t rows, const SumsToFloats& how, const float* bias);

}  // namespace truequant
