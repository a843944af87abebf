#include "tensors.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/where.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <cmath>

#include "blocks.h"
#include "dispatch.h"

namespace truequant {
namespace {

constexpr c10::DispatchKeySet kInterpreted({
    c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot, c10::DispatchKey::FuncTorchBatched,
    c10::DispatchKey::FuncTorchGradWrapper, c10::DispatchKey::FuncTorchDynamicLayerFrontMode,
    c10::DispatchKey::FuncTorchDynamicLayerBackMode, c10::DispatchKey::FuncTorchVmapMode, c10::DispatchKey::Functionalize,
    c10::DispatchKey::Tracer, c10::DispatchKey::Batched, c10::DispatchKey::VmapMode,
});

at::Tensor bool_mask(const at::Tensor& mask, at::IntArrayRef sizes, at::IntArrayRef strides) {
  at::Tensor wide = at::empty_strided(sizes, strides, mask.options().dtype(at::kBool));
  const uint8_t* bits = mask.const_data_ptr<uint8_t>();
  bool* out = wide.mutable_data_ptr<bool>();
  for (int64_t i = 0; i < wide.numel(); ++i) out[i] = bits[i >> 3] >> (i & 7) & 1;
  return wide;
}

}  // namespace

bool is_plain(const at::Tensor& x) {
  return x.defined() && x.device().is_cpu() && x.layout() == at::kStrided && !x.key_set().has_any(kInterpreted) &&
         !x.is_neg() && !x.is_conj();
}

bool is_known(at::ScalarType dtype) { return dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf; }

bool is_watched() {
  return c10::impl::TorchDispatchModeTLS::any_modes_set() ||
         c10::impl::tls_local_dispatch_key_set().included_.has_any(kInterpreted);
}

void written(const at::Tensor& x) {
  if (!x.is_inference()) x.unsafeGetTensorImpl()->bump_version();
}

at::Tensor dense(const at::Tensor& x) {
  if (x.is_non_overlapping_and_dense()) return x;
  at::Tensor copy = at::empty_like(x);
  copy.copy_(x);
  return copy;
}

// As torch's functions do it, less their way through the dispatcher, which takes longer than the kernels do for few elements.
at::Tensor new_numbers(int64_t n, at::ScalarType dtype) { return at::detail::empty_cpu({n}, dtype); }

at::Tensor new_like(const at::Tensor& x) { return at::detail::empty_strided_cpu(x.sizes(), x.strides(), x.scalar_type()); }

at::Tensor new_mask(int64_t n) { return new_numbers((n + 7) / 8, at::kByte); }

bool is_owned(const at::Tensor& x) {
  if (x.use_count() != 1 || !x.has_storage() || !x.is_non_overlapping_and_dense()) return false;
  const size_t holders = x.storage().use_count();
  if (holders != 2 || !x.is_view()) return holders == 1;
  return x._base().use_count() == 1;  // held by the view alone: what a linear layer of three dimensions returns
}

at::Tensor quantized(const at::Tensor& a, const at::Tensor* b, const Grid& grid, Clip clip, bool spent, at::Tensor* mask,
                     Seen& seen, Counting* counting) {
  at::Tensor y = spent ? a.variable_data() : new_like(a);
  const int64_t n = a.numel();
  if (mask != nullptr) *mask = new_mask(n);
  uint8_t* bits = mask != nullptr ? mask->mutable_data_ptr<uint8_t>() : nullptr;
  const auto forward = kernels().forward[dtype_of(a.scalar_type())][clip];
  const Dtype dtype = dtype_of(a.scalar_type());
  Watch watch;
  const auto run = [&](int64_t i, int64_t count) {
    const char* other = b != nullptr ? at_element(*b, i) : nullptr;
    if (counting != nullptr) counting->add(at_element(a, i), other, dtype, clip, count, grid);
    forward(at_element(a, i), other, at_element(y, i), bits != nullptr ? bits + i / 8 : nullptr, count, grid, watch.mine());
  };
  each_block(n, [&](int64_t i, int64_t count) {
    if (counting == nullptr) return run(i, count);
    for (int64_t k = 0; k < count; k += kBlock) run(i + k, std::min(kBlock, count - k));  // counted while it is in the cache
  });
  seen = watch.all();
  return y;
}

Seen watched(const at::Tensor& a, const at::Tensor* b, const Grid& grid, Clip clip) {
  const Dtype dtype = dtype_of(a.scalar_type());
  const Kernels& chosen = kernels();
  Watch watch;
  each_block(a.numel(), [&](int64_t i, int64_t count) {
    if (b == nullptr && clip == kNone) return chosen.range[dtype](at_element(a, i), count, watch.mine());
    alignas(64) char unused[kBlock * sizeof(float)];
    for (int64_t k = i; k < i + count; k += kBlock) {
      chosen.forward[dtype][clip](at_element(a, k), b != nullptr ? at_element(*b, k) : nullptr, unused, nullptr,
                                  std::min(kBlock, i + count - k), grid, watch.mine());
    }
  });
  return watch.all();
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
  const auto kernel = kernels().masked[gradient.element_size() == 4 ? 0 : 1];
  const uint8_t* bits = mask.const_data_ptr<uint8_t>();
  each_block(g.numel(), [&](int64_t i, int64_t count) { kernel(at_element(g, i), bits + i / 8, at_element(d, i), count); });
  return d;
}

}  // namespace truequant
