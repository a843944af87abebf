// Kernels of weights whose scale is searched, and of values on the grids of groups and of tokens.
#pragma once

#include <cstdint>

namespace truequant {

// Of a product of tokens and of weights of few bits: eight outputs, and the groups of their rows one behind the other.
struct GroupPanel {
  const uint8_t* codes;  // of each group `length` / 4 runs of 8 outputs by 4 elements, each a code plus 8
  const float* scale;    // eight for each group
  int64_t groups, length;
};

// Codes of tokens, `groups * length` each, and the sums of their groups times 8.
struct GroupTokens {
  const int8_t* codes;
  const int32_t* sums;
};

// Grids that elements may lie on: multiples of a scale from `low` to `high`.
struct Candidates {
  const float *scale, *low, *high;
  int64_t count;
};

struct SearchKernels {
  // errors[k] = the squared error of `n` elements on the k-th grid, float64, in 16 lanes; NaN counts 0.
  void (*errors)(const float* x, int64_t n, const Candidates& grids, double* errors);
  // y = clamp(rint(x / scale), qmin, qmax) * scale, and the same codes; NaN has code 0.
  void (*on_grid)(const float* x, float* y, int64_t n, float scale, float qmin, float qmax);
  void (*bytes)(const float* x, int8_t* codes, int64_t n, float scale, float qmin, float qmax);
  // The largest |x|, not NaN; whether none is.
  bool (*reach)(const float* x, int64_t n, float& reach);
  // sums[8 * t + k] = the product of token t, of `tokens` consecutive ones from 1 to 4, with output k; each sum of a group is an
  // integer, and is exact times its scale. Null where no level has it.
  void (*group_sums)(const GroupPanel& panel, const GroupTokens& from, int64_t tokens, double* sums);
};

}  // namespace truequant
