// Fake quantization with one grid over all elements of a tensor, on all threads.
#pragma once

#include <cstdint>

#include "histogram.h"
#include "kernels.h"

namespace truequant {

// What is quantized: `n` elements of clip(a), or of clip(a + b) where b is not null.
struct Elements {
  const void *a, *b;
  Dtype dtype;
  int64_t n;
};

// y = the elements on the grid; y may be a. `mask` and `counting` may be null. What was quantized, but for what is counted.
Seen quantize_all(const Elements& from, const Grid& grid, Clip clip, void* y, uint8_t* mask, Counting* counting);

// What `quantize_all` sees, and nothing else.
Seen watch_all(const Elements& from, const Grid& grid, Clip clip);

// d = g where the bit is set, else +0; d may be g.
void mask_all(const void* g, const uint8_t* mask, void* d, Dtype dtype, int64_t n);

}  // namespace truequant
