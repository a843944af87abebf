#include "passes.h"

#include <ATen/ops/empty_strided.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/where.h>

#include "../kernels/passes.h"
#include "tensors.h"

namespace truequant {
namespace {

at::Tensor bool_mask(const at::Tensor& mask, at::IntArrayRef sizes, at::IntArrayRef strides) {
  at::Tensor wide = at::empty_strided(sizes, strides, mask.options().dtype(at::kBool));
  const uint8_t* bits = mask.const_data_ptr<uint8_t>();
  bool* out = wide.mutable_data_ptr<bool>();
  for (int64_t i = 0; i < wide.numel(); ++i) out[i] = bits[i >> 3] >> (i & 7) & 1;
  return wide;
}

Elements elements_of(const at::Tensor& a, const at::Tensor* b) {
  return {a.const_data_ptr(), b != nullptr ? b->const_data_ptr() : nullptr, dtype_of(a.scalar_type()), a.numel()};
}

// The bits of a mask, or null.
uint8_t* bits_of(at::Tensor* mask) { return mask != nullptr ? mask->mutable_data_ptr<uint8_t>() : nullptr; }

// The numbers of a tensor, null where it is undefined.
const float* numbers(const at::Tensor& x) { return x.defined() ? x.const_data_ptr<float>() : nullptr; }

}  // namespace

at::Tensor quantized(const at::Tensor& a, const at::Tensor* b, const Grid& grid, Clip clip, bool spent, at::Tensor* mask,
                     Seen& seen, Counting* counting) {
  at::Tensor y = spent ? a.variable_data() : new_like(a);
  if (mask != nullptr) *mask = new_mask(a.numel());
  seen = quantize_all(elements_of(a, b), grid, clip, y.mutable_data_ptr(), bits_of(mask), counting);
  return y;
}

Seen watched(const at::Tensor& a, const at::Tensor* b, const Grid& grid, Clip clip, Counting* counting) {
  const Elements from = elements_of(a, b);
  if (counting == nullptr) return watch_all(from, grid, clip);
  counting->add_side_by_side(from.a, from.b, from.dtype, clip, from.n, grid);
  return kNothing;
}

at::Tensor masked(const at::Tensor& gradient, const at::Tensor& mask, at::IntArrayRef sizes, at::IntArrayRef strides,
                  bool spent) {
  if (!is_plain(gradient) || is_watched() || !is_known(gradient.scalar_type()) || gradient.sizes() != sizes) {
    return at::where(bool_mask(mask, sizes, strides), gradient, at::scalar_tensor(0.0, gradient.options()));
  }
  at::Tensor g = gradient;
  if (g.strides() != strides) {
    g = at::empty_strided(sizes, strides, gradient.options());
    g.copy_(gradient);
    spent = true;
  }
  at::Tensor d = spent ? g : at::empty_strided(sizes, strides, gradient.options());
  mask_all(g.const_data_ptr(), mask.const_data_ptr<uint8_t>(), d.mutable_data_ptr(), dtype_of(g.scalar_type()), g.numel());
  return d;
}

bool layout_of(Layout& layout, const at::Tensor& x, const at::Tensor& scale) {
  const int64_t n = x.numel();
  if (n == 0) return false;
  if (scale.numel() == 1) {
    layout = {1, 1, n};
    return true;
  }
  int64_t axis = -1;
  const int64_t missing = x.dim() - scale.dim();
  if (missing < 0) return false;
  for (int64_t k = 0; k < scale.dim(); ++k) {
    if (scale.size(k) == 1) continue;
    if (axis >= 0 || scale.size(k) != x.size(k + missing)) return false;
    axis = k + missing;
  }
  return layout_along(layout, x, axis);
}

bool layout_along(Layout& layout, const at::Tensor& x, int64_t axis) {
  if (axis < 0) axis += x.dim();
  if (x.numel() == 0 || axis < 0 || axis >= x.dim()) return false;
  const int64_t channels = x.size(axis), inner = x.stride(axis);
  layout = {x.numel() / (channels * inner), channels, inner};
  return true;
}

at::Tensor quantized_channels(const at::Tensor& x, const Channels& channels, at::Tensor* mask, std::vector<Seen>* seen) {
  at::Tensor y = new_like(x);
  if (mask != nullptr) *mask = new_mask(x.numel());
  quantize_by_channel(channels, x.const_data_ptr(), dtype_of(x.scalar_type()), y.mutable_data_ptr(), bits_of(mask), seen);
  return y;
}

LearnedGradients learned_gradients(const at::Tensor& gradient, const at::Tensor& x, const Channels& channels) {
  LearnedGradients found{new_like(x), {}, {}};
  gradients_by_channel(channels, gradient.const_data_ptr(), x.const_data_ptr(), dtype_of(x.scalar_type()),
                       found.x.mutable_data_ptr(), found.scale, found.offset);
  return found;
}

bool rows_of(Rows& rows, const at::Tensor& weight, int64_t scales, int64_t group) {
  const int64_t n = weight.numel(), channels = weight.dim() > 0 ? weight.size(0) : 1;
  if (n == 0 || !weight.is_non_overlapping_and_dense()) return false;
  if (scales == 1 && group == 0) {
    rows = {1, 1, n, n, false};
    return true;
  }
  const int64_t length = n / channels;
  if (channels > 1 && weight.stride(0) != length) return false;
  if (group == 0) {
    rows = {channels, 1, length, length, false};
  } else {
    if (!weight.is_contiguous()) return false;
    const int64_t groups = (length + group - 1) / group;
    rows = {channels * groups, groups, length, group, true};
  }
  return rows.count == scales;
}

at::Tensor quantized_weight(const at::Tensor& weight, float* scale, const Rows& rows, const Scheme& scheme, bool ranges,
                            bool differentiable, at::Tensor& mask) {
  at::Tensor y = new_like(weight);
  const Dtype dtype = dtype_of(weight.scalar_type());
  const bool stops = quantize_rows(weight.const_data_ptr(), dtype, y.mutable_data_ptr(), scale, rows, scheme, ranges);
  if (stops && differentiable) {
    mask = new_mask(weight.numel());
    mask_rows(weight.const_data_ptr(), dtype, scale, rows, scheme, bits_of(&mask));
  }
  return y;
}

bool runs_of(Runs& runs, const at::Tensor& x) {
  if (x.dim() < 2 || x.numel() == 0) return false;
  const int64_t n = x.size(0), c = x.size(1), space = x.numel() / (n * c);
  if (x.dim() > 2 && x.is_contiguous()) {
    runs = {n * c, space, c, false};
    return true;
  }
  const bool last = x.dim() == 2   ? x.is_contiguous()
                    : x.dim() == 4 ? x.is_contiguous(at::MemoryFormat::ChannelsLast)
                    : x.dim() == 5 ? x.is_contiguous(at::MemoryFormat::ChannelsLast3d)
                                   : false;
  runs = {n * space, c, c, true};
  return last;
}

Moments moments_of(const at::Tensor& x, const Runs& runs, double eps, const at::Tensor& running_mean,
                   const at::Tensor& running_var, double momentum) {
  Moments found{new_numbers(runs.channels, at::kFloat), new_numbers(runs.channels, at::kFloat)};
  const auto moving = [](const at::Tensor& x) { return x.defined() ? x.mutable_data_ptr<float>() : nullptr; };
  batch_moments(x.const_data_ptr<float>(), runs, eps, found.mean.mutable_data_ptr<float>(), found.invstd.mutable_data_ptr<float>(),
                moving(running_mean), moving(running_var), momentum);
  return found;
}

Seen normalized(const at::Tensor& x, const Runs& runs, const Moments& moments, const at::Tensor& gamma, const at::Tensor& beta,
                const Grid& grid, Clip clip, at::Tensor* y, at::Tensor* mask, Counting* counting) {
  if (y != nullptr) *y = new_like(x);
  if (mask != nullptr) *mask = new_numbers(runs.rows * runs.mask_stride(), at::kByte);
  const Normal normal{numbers(moments.mean), numbers(moments.invstd), numbers(gamma), numbers(beta)};
  float* to = y != nullptr ? y->mutable_data_ptr<float>() : nullptr;
  return quantize_normal(numbers(x), runs, normal, grid, clip, to, bits_of(mask), counting);
}

NormGradients norm_gradients(const at::Tensor& gradient, const at::Tensor& mask, const at::Tensor& x, const Runs& runs,
                             const Moments& moments, const at::Tensor& gamma, bool wants_x, bool spent) {
  NormGradients found{at::Tensor(), new_numbers(runs.channels, at::kFloat), new_numbers(runs.channels, at::kFloat)};
  if (wants_x) found.x = spent ? gradient : new_like(x);
  const Normal normal{numbers(moments.mean), numbers(moments.invstd), numbers(gamma), nullptr};
  normal_gradients(numbers(gradient), mask.defined() ? mask.const_data_ptr<uint8_t>() : nullptr, numbers(x), runs, normal,
                   wants_x ? found.x.mutable_data_ptr<float>() : nullptr, found.gamma.mutable_data_ptr<float>(),
                   found.beta.mutable_data_ptr<float>());
  return found;
}

}  // namespace truequant
