// Weights whose scale is searched, and what is computed of them in evaluation.
#pragma once

#include <cstdint>

#include "weights.h"

namespace truequant {

// Rows of `length` elements, each with `grids` candidates of a scale and a zero point, and the codes of all of them.
struct Searched {
  const float *rows, *scales, *zero_points;
  int64_t count, length, grids;
  float qmin, qmax;
};

// chosen[row] = the first of its grids with the least squared error; NaN counts 0.
void least_error(const Searched& of, int64_t* chosen);

// A number that tells bytes from others: what follows from two tensors of other bits is the same with a chance of 2^-64.
uint64_t fingerprint(const void* memory, int64_t bytes);

// y = weight on its grid, or its codes; NaN has code 0.
void rows_on_grid(const float* weight, float* y, const float* scale, const Rows& rows, const Scheme& scheme);
void codes_of_grid(const float* weight, int8_t* codes, const float* scale, const Rows& rows, const Scheme& scheme);

// Every token on its own grid: scale = clamp(max |x| / qmax, kMinScale, kMaxScale). False, and `y` is of no use, where one has NaN.
bool tokens_on_grid(const float* x, float* y, int64_t tokens, int64_t inputs, float qmax);

// A linear layer of weights in `outputs` rows of `groups` groups, every code from -8 to 8, and tokens on grids of their own:
// y = float(sum over groups of sum(q * w) * scale, float64) * token scale + bias, which may be null.
struct GroupLinear {
  const int8_t* codes;
  const float* scale;
  const float* bias;
  int64_t outputs, groups, length;
  float qmax;
};

// False, and `y` is of no use, where no kernel computes it: another CPU, larger codes, NaN among the tokens.
bool group_linear(const float* x, int64_t tokens, const GroupLinear& layer, float* y);

}  // namespace truequant
