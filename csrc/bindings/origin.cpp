#include "origin.h"

#include <torch/csrc/autograd/variable.h>

#include <utility>

#include "passes.h"
#include "tensors.h"

namespace truequant {

Origin::Origin(Recipe recipe, const at::Tensor& x, const at::Tensor& made)
    : recipe_(std::move(recipe)), dtype_(made.scalar_type()), made_(made.storage().getWeakStorageImpl()),
      source_(c10::intrusive_ptr<c10::StorageImpl>()), made_version_(made._version()) {
  const bool alike = x.sizes() == made.sizes() && x.strides() == made.strides() && !x.is_alias_of(made);
  if (!alike || x.is_inference()) return;
  source_ = x.storage().getWeakStorageImpl();
  offset_ = x.storage_offset() - made.storage_offset();
  counter_ = torch::autograd::impl::version_counter(x);
  source_version_ = counter_.current_version();
}

bool Origin::made(const at::Tensor& x) const {
  // A weak pointer keeps the address from being given out again.
  const bool same = x.has_storage() && x.storage().unsafeGetStorageImpl() == made_._unsafe_get_target();
  return same && x.scalar_type() == dtype_ && !x.is_inference() && x._version() == made_version_ &&
         (recipe_.scales.empty() || !x.is_view());
}

at::Tensor Origin::source_of(const at::Tensor& x) const {
  c10::intrusive_ptr<c10::StorageImpl> storage = source_.lock();
  if (!storage || counter_.current_version() != source_version_) return {};
  at::Tensor source = x.variable_data();
  source.unsafeGetTensorImpl()->set_storage_keep_dtype(c10::Storage(std::move(storage)));
  source.unsafeGetTensorImpl()->set_storage_offset(x.storage_offset() + offset_);
  torch::autograd::impl::set_version_counter(source, counter_);
  return source;
}

at::Tensor Origin::quantized(const at::Tensor& source) const {
  const at::AutoDispatchBelowAutograd below;
  if (recipe_.scales.empty()) {
    Seen seen = kNothing;
    return truequant::quantized(dense(source), nullptr, recipe_.grid, recipe_.clip, false, nullptr, seen);
  }
  at::Tensor mask;
  std::vector<float> scales = recipe_.scales;
  return quantized_weight(source, scales.data(), recipe_.rows, recipe_.scheme, false, false, mask);
}

std::shared_ptr<const Origin> origin(const Grid& grid, Clip clip, const at::Tensor& x, const at::Tensor& made) {
  Recipe recipe;
  recipe.grid = grid;
  recipe.clip = clip;
  return std::make_shared<const Origin>(std::move(recipe), x, made);
}

std::shared_ptr<const Origin> origin(const Scheme& scheme, const Rows& rows, const float* scales, const at::Tensor& x,
                                     const at::Tensor& made) {
  Recipe recipe;
  recipe.scheme = scheme;
  recipe.rows = rows;
  recipe.scales.assign(scales, scales + rows.count);
  return std::make_shared<const Origin>(std::move(recipe), x, made);
}

}  // namespace truequant
