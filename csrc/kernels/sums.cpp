#include "sums.h"

#include <algorithm>
#include <atomic>

#include "blocks.h"
#include "dispatch.h"

namespace truequant {

bool has_exact_products() {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  return __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

bool codes_of_rows(const float* x, int64_t rows, int64_t columns, int64_t stride, float scale, float lowest, int8_t* codes) {
  std::atomic<bool> on{true};
  const auto run = [&](const float* from, int8_t* to, int64_t n) {
    int64_t total = 0;
    if (on.load(std::memory_order_relaxed) && !kernels().codes.codes(from, to, n, scale, lowest, total)) on = false;
  };
  if (stride == columns) {
    each_block(rows * columns, [&](int64_t i, int64_t count) { run(x + i, codes + i, count); });
  } else {
    for (int64_t row = 0; row < rows; ++row) run(x + row * stride, codes + row * columns, columns);
  }
  return on;
}

bool codes_of_weight(const float* weight, int64_t outputs, int64_t inputs, const ProductGrids& grids, int8_t* codes,
                     SumsToFloats& follows) {
  follows.offset.resize(outputs);
  follows.factor.resize(outputs);
  const int32_t middle = static_cast<int32_t>(grids.lowest) + 128;
  std::atomic<bool> on{true};
  parallel_for(0, outputs, std::max<int64_t>(1, kBlock / inputs), [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) {
      const float scale = grids.weight_scale[grids.weight_scales == 1 ? 0 : k];
      int64_t total = 0;
      if (!kernels().codes.codes(weight + k * inputs, codes + k * inputs, inputs, scale, -128.0f, total)) on = false;
      follows.offset[k] = -middle * static_cast<int32_t>(total);  // what the sum lacks of that of the codes themselves
      follows.factor[k] = grids.scale * scale;
    }
  });
  return on;
}

void sums_to_floats(void* sums, int64_t rows, const SumsToFloats& how, const float* bias) {
  const int64_t outputs = static_cast<int64_t>(how.factor.size());
  char* memory = static_cast<char*>(sums);
  parallel_for(0, rows, std::max<int64_t>(1, kBlock / outputs), [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      kernels().codes.scaled(memory + row * outputs * 4, how.offset.data(), how.factor.data(), bias, outputs);
    }
  });
}

}  // namespace truequant
