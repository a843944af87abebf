// What the compiled kernels of one instruction set offer: plain pointers, no torch.
//
// Every kernel runs on one thread over `n` consecutive elements; callers split the work at multiples of `kAlign` elements, so
// that no byte of a mask is shared. All levels compute the same bits: IEEE single precision, no contraction, no reordering.
#pragma once

#include <cstdint>

namespace truequant {

constexpr int64_t kAlign = 64;

enum Dtype { kFloat = 0, kBFloat16 = 1, kHalf = 2, kDtypes = 3 };

// What happens to a value before it is quantized, and where its gradient passes.
enum Clip {
  kNone = 0,
  kRelu = 1,      // max(x, 0); passes where the result is not <= 0
  kHardtanh = 2,  // clamped to [low, high]; passes strictly inside
  kClamp = 3,     // clamped to [low, high]; passes inside and at both ends
  kClips = 4
};

struct Grid {
  float scale, zero_point, qmin, qmax;
  float low, high;    // of the clip
  uint32_t straight;  // all ones: the gradient of the rounding is the identity everywhere
};

// Smallest and largest of the values that were quantized. NaN is reported apart.
struct Seen {
  float min, max;
  bool nan;
};

// Normalization of one channel: the value before the clip is (x - mean) * factor + shift.
struct Kernels {
  const char* name;
  // y = (clamp(rint(c / s) + z, qmin, qmax) - z) * s of c = clip(a), or of c = clip(a + b) where b is not null; bit i of
  // `mask` (may be null) says whether the gradient of element i passes; `seen` is widened by c.
  void (*forward[kDtypes][kClips])(const void* a, const void* b, void* y, uint8_t* mask, int64_t n, const Grid&, Seen&);
  // d = g where the bit is set, else +0, for elements of 4 and of 2 bytes.
  void (*masked[2])(const void* g, const uint8_t* mask, void* d, int64_t n);
  // Widens `seen` by x.
  void (*range[kDtypes])(const void* x, int64_t n, Seen& seen);
};

const Kernels* portable_kernels();
const Kernels* avx2_kernels();    // null where this build has none
const Kernels* avx512_kernels();  // null where this build has none

}  // namespace truequant
