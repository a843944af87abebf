// Kernels around products of codes, which are summed in integers.
#pragma once

#include <cstdint>

namespace truequant {

// The grids of a sum by onnxruntime's rule: of the operands their scales, zero points and ratios to the scale of the sum, and the
// constant that joins the zero points. result: the scale of the values that are wanted, 0 for codes.
struct SumGrids {
  float scale_a, zero_a, ratio_a, scale_b, zero_b, ratio_b, constant, zero, low, high, result;
};

struct CodeKernels {
  // to = x / scale - lowest - 128 where every x is `scale` times a whole number from `lowest` to `lowest` + 255, rounded as a
  // product of float32 is; false where one is not, and `to` is of no use then. `total` grows by the whole numbers.
  bool (*codes)(const float* x, int8_t* to, int64_t n, float scale, float lowest, int64_t& total);
  // In place: float((sum - offset) * factor + bias) for each of n sums of int32, where `bias` may be null.
  void (*scaled)(void* sums, const int32_t* offset, const float* factor, const float* bias, int64_t n);
  // y = (q - zero) * scale of q = clamp(rint(x / scale) + zero, low, high), where q is 0, clamped, for NaN.
  void (*quantized)(const float* x, float* y, int64_t n, float scale, float zero, float low, float high);
  // q = clamp(rint(fma(ratio_a, a, fma(ratio_b, b, constant))), low, high) of the codes a and b of values on their grids, each fma
  // a sum in double precision; y as `result` says.
  void (*sum)(const float* a, const float* b, float* y, int64_t n, const SumGrids& grids);
};

}  // namespace truequant
