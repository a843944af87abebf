// What kernels take and give: plain values, no torch.
#pragma once

#include <cstdint>

namespace truequant {

constexpr int64_t kAlign = 64;
constexpr int64_t kBlock = 2048;  // elements that one thread takes at once, a multiple of kAlign
constexpr int64_t kLanes = 16;    // of sums

enum Dtype { kFloat = 0, kBFloat16 = 1, kHalf = 2, kDtypes = 3 };

constexpr int64_t size_of(Dtype dtype) { return dtype == kFloat ? 4 : 2; }

// What happens to a value before it is quantized, and where its gradient passes.
enum Clip {
  kNone = 0,
  kRelu = 1,      // max(x, 0); passes where the result is not <= 0
  kHardtanh = 2,  // clamped to [low, high]; passes strictly inside
  kClamp = 3,     // clamped to [low, high]; passes inside and at both ends
  kClips = 4
};

// Codes at most so far from the zero point may be found by a product with 1 / scale: see `Steps`.
constexpr float kFewCodes = 1000.0f;

struct Grid {
  float scale, zero_point, qmin, qmax;
  float low, high;    // of the clip
  uint32_t straight;  // all ones: the gradient of the rounding is the identity everywhere
};

// Smallest and largest of the values that were quantized, NaN reported apart, and whether a gradient was stopped.
struct Seen {
  float min, max;
  bool nan, stopped;
};
constexpr Seen kNothing{__builtin_inff(), -__builtin_inff(), false, false};

}  // namespace truequant
