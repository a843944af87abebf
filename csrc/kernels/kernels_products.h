// Kernels of products of whole numbers of 16 bits, whose sums int32 holds exactly.
#pragma once

#include <cstdint>

namespace truequant {

struct ProductKernels {
  // The rows and columns of a tile.
  int64_t rows, columns;
  // sums[r * stride + c] = (add ? the same : 0) + sum over p of a[r][2p] * b(2p, c) + a[r][2p + 1] * b(2p + 1, c), for every row
  // and column of a tile. panel: the pairs b(2p, c), b(2p + 1, c) of all columns, pair after pair.
  void (*tile)(const int16_t* const* a, const int16_t* panel, int64_t pairs, int32_t* sums, int64_t stride, bool add);
  // sums[i] += weight * x[i * stride] for n sums.
  void (*tap)(const int16_t* x, int64_t stride, int32_t weight, int32_t* sums, int64_t n);
  // to = x / scale where every x is `scale` times a whole number of at most 16 bits; false where one is not.
  bool (*whole)(const float* x, int16_t* to, int64_t n, float scale);
  // How sums become what the next layer reads: q = clamp(rint(float(sum - offset) * factor) + zero, low, high), then
  // (q - zero) * scale, or q where `scale` is 0. step: 1 where each sum has an offset and factor of its own, 0 where one pair is
  // for all.
  void (*requantized)(const int32_t* sums, float* y, int64_t n, const int32_t* offset, const float* factor, int64_t step,
                      float zero, float low, float high, float scale);
};

}  // namespace truequant
