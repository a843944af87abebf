// Kernels around products of codes, which are summed in integers.
#pragma once

#include <cstdint>

namespace truequant {

struct CodeKernels {
  // to = x / scale - lowest - 128 where every x is `scale` times a whole number from `lowest` to `lowest` + 255, rounded as a
  // product of float32 is; false where one is not, and `to` is of no use then. `total` grows by the whole numbers.
  bool (*codes)(const float* x, int8_t* to, int64_t n, float scale, float lowest, int64_t& total);
  // In place: float((sum - offset) * factor + bias) for each of n sums of int32, where `bias` may be null.
  void (*scaled)(void* sums, const int32_t* offset, const float* factor, const float* bias, int64_t n);
};

}  // namespace truequant
