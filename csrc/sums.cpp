#include "sums.h"

#include <ATen/ops/_int_mm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "blocks.h"
#include "dispatch.h"

namespace truequant {
namespace {

constexpr int64_t kFewestRows = 16, kLongestSum = 1 << 14;

bool has_vnni() {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  return __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

// Whether torch's product of int8 is exact here. Without VNNI, or where oneDNN was told not to use it, pairs of products
// saturate; these sums would show it.
bool is_exact() {
  if (!has_vnni()) return false;
  try {
    const int64_t n = 64;
    const auto options = at::TensorOptions().dtype(at::kChar);
    for (const int left : {-128, 127}) {
      for (const int right : {-128, 127}) {
        const at::Tensor a = at::full({n, n}, left, options), b = at::full({n, n}, right, options);
        const at::Tensor sums = at::_int_mm(a, b.t());
        const int32_t* found = sums.const_data_ptr<int32_t>();
        if (!std::all_of(found, found + n * n, [&](int32_t sum) { return sum == n * left * right; })) return false;
      }
    }
    return true;
  } catch (const c10::Error&) {
    return false;
  }
}

// The codes of a matrix whose rows have `columns` elements each, without gaps between these, less 128 and `lowest`.
at::Tensor codes(const at::Tensor& x, int64_t rows, int64_t columns, int64_t stride, float scale, float lowest) {
  at::Tensor result = at::empty({rows, columns}, x.options().dtype(at::kChar));
  const float* from = x.const_data_ptr<float>();
  int8_t* to = result.mutable_data_ptr<int8_t>();
  std::atomic<bool> on{true};
  const auto run = [&](const float* p, int8_t* q, int64_t n) {
    int64_t total = 0;
    if (on.load(std::memory_order_relaxed) && !kernels().codes.codes(p, q, n, scale, lowest, total)) on = false;
  };
  if (stride == columns) {
    each_block(rows * columns, [&](int64_t i, int64_t count) { run(from + i, to + i, count); });
  } else {
    for (int64_t row = 0; row < rows; ++row) run(from + row * stride, to + row * columns, columns);
  }
  return on ? result : at::Tensor();
}

}  // namespace

at::Tensor product_of_codes(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, const ProductGrids& grids) {
  const int64_t outputs = weight.size(0), inputs = weight.size(1), rows = inputs > 0 ? x.numel() / inputs : 0;
  if (x.scalar_type() != at::kFloat || rows < kFewestRows || outputs < kFewestRows || inputs > kLongestSum) return {};
  if (!weight.is_contiguous() || (bias.defined() && !bias.is_contiguous())) return {};
  if (grids.weight_scales != 1 && grids.weight_scales != outputs) return {};
  static const bool exact = is_exact();
  if (!exact) return {};
  const at::Tensor a = codes(x, rows, inputs, x.dim() == 2 ? x.stride(0) : inputs, grids.scale, grids.lowest);
  if (!a.defined()) return {};

  at::Tensor b = at::empty({outputs, inputs}, a.options());
  std::vector<int32_t> offset(outputs);
  std::vector<float> factor(outputs);
  const int32_t middle = static_cast<int32_t>(grids.lowest) + 128;
  std::atomic<bool> on{true};
  at::parallel_for(0, outputs, std::max<int64_t>(1, kBlock / inputs), [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) {
      const float scale = grids.weight_scale[grids.weight_scales == 1 ? 0 : k];
      int64_t total = 0;
      const float* from = weight.const_data_ptr<float>() + k * inputs;
      if (!kernels().codes.codes(from, b.mutable_data_ptr<int8_t>() + k * inputs, inputs, scale, -128.0f, total)) on = false;
      offset[k] = -middle * static_cast<int32_t>(total);  // what the sum lacks of that of the codes themselves
      factor[k] = grids.scale * scale;
    }
  });
  if (!on) return {};

  at::Tensor sums = at::_int_mm(a, b.t());
  at::Tensor y = at::empty({0}, x.options());
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = outputs;
  y.set_(sums.storage(), 0, sizes);
  sums.reset();
  char* memory = static_cast<char*>(y.mutable_data_ptr());
  const float* added = bias.defined() ? bias.const_data_ptr<float>() : nullptr;
  at::parallel_for(0, rows, std::max<int64_t>(1, kBlock / outputs), [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      kernels().codes.scaled(memory + row * outputs * 4, offset.data(), factor.data(), added, outputs);
    }
  });
  return y;
}

}  // namespace truequant
