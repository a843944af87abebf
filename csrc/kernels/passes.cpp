#include "passes.h"

#include <algorithm>

#include "blocks.h"
#include "dispatch.h"

namespace truequant {

Seen quantize_all(const Elements& from, const Grid& grid, Clip clip, void* y, uint8_t* mask, Counting* counting) {
  const Dtype dtype = from.dtype;
  const auto forward = kernels().forward[dtype][clip];
  Watch watch;
  const auto run = [&](int64_t i, int64_t count) {
    const char *a = at_element(from.a, dtype, i), *b = at_element(from.b, dtype, i);
    if (counting != nullptr) counting->add(a, b, dtype, clip, count, grid);
    forward(a, b, at_element(y, dtype, i), mask != nullptr ? mask + i / 8 : nullptr, count, grid, watch.mine());
  };
  each_block(from.n, [&](int64_t i, int64_t count) {
    if (counting == nullptr) return run(i, count);
    for (int64_t k = 0; k < count; k += kBlock) run(i + k, std::min(kBlock, count - k));  // counted while it is in the cache
  });
  return watch.all();
}

Seen watch_all(const Elements& from, const Grid& grid, Clip clip) {
  const Dtype dtype = from.dtype;
  const Kernels& chosen = kernels();
  Watch watch;
  each_block(from.n, [&](int64_t i, int64_t count) {
    if (from.b == nullptr && clip == kNone) return chosen.range[dtype](at_element(from.a, dtype, i), count, watch.mine());
    alignas(64) char unused[kBlock * sizeof(float)];
    for (int64_t k = i; k < i + count; k += kBlock) {
      chosen.forward[dtype][clip](at_element(from.a, dtype, k), at_element(from.b, dtype, k), unused, nullptr,
                                  std::min(kBlock, i + count - k), grid, watch.mine());
    }
  });
  return watch.all();
}

void mask_all(const void* g, const uint8_t* mask, void* d, Dtype dtype, int64_t n) {
  const auto kernel = kernels().masked[dtype == kFloat ? 0 : 1];
  each_block(n, [&](int64_t i, int64_t count) { kernel(at_element(g, dtype, i), mask + i / 8, at_element(d, dtype, i), count); });
}

}  // namespace truequant
