#include "../kernels/products.h"
#include "../kernels/sums.h"

#include <ATen/ops/_int_mm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <vector>

#include "passes.h"

namespace truequant {
namespace {

constexpr int64_t kFewestRows = 16;

// Whether torch's product of int8 is exact here, and then quicker than ours. Without VNNI, or where oneDNN was told not to use
// it, pairs of products saturate; these sums would show it.
bool is_exact() {
  if (!has_exact_products()) return false;
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

}  // namespace

at::Tensor product_of_codes(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, const ProductGrids& grids) {
  const int64_t outputs = weight.size(0), inputs = weight.size(1), rows = inputs > 0 ? x.numel() / inputs : 0;
  if (x.scalar_type() != at::kFloat || rows < kFewestRows || outputs < kFewestRows || inputs > kLongestSum) return {};
  if (!weight.is_contiguous() || (bias.defined() && !bias.is_contiguous())) return {};
  if (grids.weight_scales != 1 && grids.weight_scales != outputs) return {};
  const at::Tensor a = at::empty({rows, inputs}, x.options().dtype(at::kChar)), b = at::empty({outputs, inputs}, a.options());
  const int64_t stride = x.dim() == 2 ? x.stride(0) : inputs;
  SumsToFloats follows;
  if (!codes_of_rows(x.const_data_ptr<float>(), rows, inputs, stride, grids.scale, grids.lowest, a.mutable_data_ptr<int8_t>()) ||
      !codes_of_weight(weight.const_data_ptr<float>(), outputs, inputs, grids, b.mutable_data_ptr<int8_t>(), follows)) {
    return {};
  }
  static const bool exact = is_exact();
  at::Tensor sums = exact ? at::_int_mm(a, b.t()) : at::empty({rows, outputs}, x.options().dtype(at::kInt));
  if (!exact) {
    WholeRows left(rows, inputs), right(outputs, inputs);
    whole_rows({nullptr, a.const_data_ptr<int8_t>(), nullptr, 1.0f, 0}, left);
    whole_rows({nullptr, b.const_data_ptr<int8_t>(), nullptr, 1.0f, 0}, right);
    products_of_rows(left, right, sums.mutable_data_ptr<int32_t>());
  }
  at::Tensor y = at::empty({0}, x.options());
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = outputs;
  y.set_(sums.storage(), 0, sizes);
  sums.reset();
  sums_to_floats(y.mutable_data_ptr(), rows, follows, bias.defined() ? bias.const_data_ptr<float>() : nullptr);
  return y;
}

}  // namespace truequant
