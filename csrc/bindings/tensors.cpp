#include "tensors.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

#include <algorithm>

namespace truequant {
namespace {

constexpr c10::DispatchKeySet kInterpreted({
    c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot, c10::DispatchKey::FuncTorchBatched,
    c10::DispatchKey::FuncTorchGradWrapper, c10::DispatchKey::FuncTorchDynamicLayerFrontMode,
    c10::DispatchKey::FuncTorchDynamicLayerBackMode, c10::DispatchKey::FuncTorchVmapMode, c10::DispatchKey::Functionalize,
    c10::DispatchKey::Tracer, c10::DispatchKey::Batched, c10::DispatchKey::VmapMode,
});

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

at::Tensor new_floats(const std::vector<float>& values, at::IntArrayRef sizes) {
  at::Tensor found = at::detail::empty_cpu(sizes, at::kFloat);
  std::copy(values.begin(), values.end(), found.mutable_data_ptr<float>());
  return found;
}

at::Tensor new_like(const at::Tensor& x) { return at::detail::empty_strided_cpu(x.sizes(), x.strides(), x.scalar_type()); }

at::Tensor new_mask(int64_t n) { return new_numbers((n + 7) / 8, at::kByte); }

bool is_owned(const at::Tensor& x) {
  if (x.use_count() != 1 || !x.has_storage() || !x.is_non_overlapping_and_dense()) return false;
  const size_t holders = x.storage().use_count();
  if (holders != 2 || !x.is_view()) return holders == 1;
  return x._base().use_count() == 1;  // held by the view alone: what a linear layer of three dimensions returns
}

}  // namespace truequant
