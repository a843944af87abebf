// Fake quantization with given tensors of scales: one, or one for each index of an axis; learned, or not.
#include <algorithm>
#include <cmath>

#include "autograd.h"
#include "channels.h"
#include "python_calls.h"
#include "tensors.h"

namespace truequant {
namespace {

// A plain float32 tensor of one number or of one for each channel.
const at::Tensor* numbers_of(PyObject* argument) {
  if (!THPVariable_CheckExact(argument)) return nullptr;
  const at::Tensor& tensor = THPVariable_Unpack(argument);
  return is_plain(tensor) && tensor.scalar_type() == at::kFloat && tensor.numel() > 0 ? &tensor : nullptr;
}

std::vector<float> values_of(const at::Tensor& tensor) {
  const at::Tensor whole = tensor.contiguous();
  const float* from = whole.const_data_ptr<float>();
  return {from, from + whole.numel()};
}

// x and its scales, dense; false where a kernel cannot read them.
struct Operands {
  const at::Tensor* x = nullptr;
  const at::Tensor* scale = nullptr;
  at::Tensor kept;

  bool read(PyObject* first, PyObject* second, Channels& channels) {
    if (!THPVariable_CheckExact(first)) return false;
    x = &THPVariable_Unpack(first);
    scale = numbers_of(second);
    if (scale == nullptr || !is_plain(*x) || !is_known(x->scalar_type()) || is_watched()) return false;
    const at::AutoDispatchBelowAutograd below;
    kept = dense(*x);
    if (!layout_of(channels.layout, kept, *scale)) return false;
    channels.scale = values_of(*scale);
    return true;
  }
};

void set_range(Channels& channels, PyObject* qmin, PyObject* qmax) {
  channels.grid.qmin = static_cast<float>(PyFloat_AsDouble(qmin));
  channels.grid.qmax = static_cast<float>(PyFloat_AsDouble(qmax));
}

float clamped(float v, float low, float high) { return v < low ? low : v > high ? high : v; }

// Merges what each channel saw into a buffer of what is pending.
void merge_seen(const std::vector<Seen>& seen, float* low, float* high) {
  for (size_t k = 0; k < seen.size(); ++k) {
    if (seen[k].nan) continue;
    if (std::isfinite(seen[k].min)) low[k] = std::min(low[k], seen[k].min);
    if (std::isfinite(seen[k].max)) high[k] = std::max(high[k], seen[k].max);
  }
}

bool is_pending(PyObject* argument, int64_t channels) {
  const at::Tensor* found = numbers_of(argument);
  return found != nullptr && found->numel() == channels && found->is_contiguous();
}

}  // namespace

// fake_quantize_channels(x, scale, zero_point, qmin, qmax, identity, low, high)
//
// With the straight-through gradient. low, high: None, or the pending ranges of the channels, which are widened by x.
PyObject* fake_quantize_channels(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 8, "fake_quantize_channels takes 8 arguments, got ", count);
  Channels channels;
  Operands given;
  if (!given.read(args[0], args[1], channels)) return not_implemented();
  const at::Tensor* zero = numbers_of(args[2]);
  const bool watches = args[6] != Py_None;
  const int64_t c = channels.layout.channels;
  if (zero == nullptr || zero->numel() != c || (watches && (!is_pending(args[6], c) || !is_pending(args[7], c)))) {
    return not_implemented();
  }
  set_range(channels, args[3], args[4]);
  channels.zero_point = values_of(*zero);
  channels.grid.straight = args[5] == Py_True ? ~0u : 0u;
  if (PyErr_Occurred() != nullptr) return nullptr;
  at::Tensor y;
  {
    const WithoutGil released;
    const bool differentiable = wants_gradient(*given.x, nullptr);
    at::Tensor mask;
    std::vector<Seen> seen;
    {
      const at::AutoDispatchBelowAutograd below;
      const bool masks = differentiable && channels.grid.straight == 0;
      y = quantized_channels(given.kept, channels, masks ? &mask : nullptr, watches ? &seen : nullptr);
    }
    if (watches) {
      const at::Tensor &low = THPVariable_Unpack(args[6]), &high = THPVariable_Unpack(args[7]);
      merge_seen(seen, static_cast<float*>(low.mutable_data_ptr()), static_cast<float*>(high.mutable_data_ptr()));
      for (const at::Tensor* moved : {&low, &high}) {
        if (!moved->is_inference()) moved->unsafeGetTensorImpl()->bump_version();
      }
    }
    if (differentiable) record(y, *given.x, nullptr, mask);
  }
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

// fake_quantize_learned(x, scale, zero_point, offset, qmin, qmax, factor, clip, low, high)
//
// zero_point or offset is None: with an offset, zero points follow from it (LSQ+). Gradients of scales are multiplied by factor.
PyObject* fake_quantize_learned(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 10, "fake_quantize_learned takes 10 arguments, got ", count);
  LearnedGrid grid;
  Channels& channels = grid.channels;
  Operands given;
  if (!given.read(args[0], args[1], channels)) return not_implemented();
  const bool offsets = args[3] != Py_None;
  const at::Tensor* second = numbers_of(offsets ? args[3] : args[2]);
  const size_t c = channels.scale.size();
  if (second == nullptr || second->numel() != static_cast<int64_t>(c) || (offsets && second->sizes() != given.scale->sizes())) {
    return not_implemented();
  }
  set_range(channels, args[4], args[5]);
  grid.factor = static_cast<float>(PyFloat_AsDouble(args[6]));
  channels.clip = static_cast<Clip>(PyLong_AsLong(args[7]));
  if (channels.clip != kNone && c > 1) return not_implemented();
  if (channels.clip == kHardtanh || channels.clip == kClamp) {
    channels.grid.low = in_dtype(PyFloat_AsDouble(args[8]), given.x->scalar_type());
    channels.grid.high = in_dtype(PyFloat_AsDouble(args[9]), given.x->scalar_type());
  }
  if (PyErr_Occurred() != nullptr) return nullptr;
  channels.rule = offsets ? kOffset : kLearned;
  channels.zero_point = values_of(*second);
  if (offsets) {
    grid.beyond.resize(c);
    for (size_t k = 0; k < c; ++k) {
      const float exact = -channels.zero_point[k] / channels.scale[k];
      grid.beyond[k] = exact > channels.grid.qmax ? 1.0f : exact < channels.grid.qmin ? -1.0f : 0.0f;
      channels.zero_point[k] = clamped(std::nearbyint(exact), channels.grid.qmin, channels.grid.qmax);
    }
  }
  const at::Tensor offset = offsets ? *second : at::Tensor();
  grid.sizes = given.scale->sizes().vec();
  at::Tensor y;
  {
    const WithoutGil released;
    {
      const at::AutoDispatchBelowAutograd below;
      y = quantized_channels(given.kept, channels, nullptr, nullptr);
    }
    if (wants_gradient(*given.x, *given.scale, offset)) record_learned(y, *given.x, given.kept, *given.scale, offset, grid);
  }
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

// fake_binarize(x, scale, factor, identity)
PyObject* fake_binarize(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 4, "fake_binarize takes 4 arguments, got ", count);
  LearnedGrid grid;
  Operands given;
  if (!given.read(args[0], args[1], grid.channels)) return not_implemented();
  if (grid.channels.layout.inner == 1 && grid.channels.layout.channels > 1) return not_implemented();
  grid.channels.rule = kBinary;
  grid.channels.zero_point.assign(grid.channels.scale.size(), 0.0f);
  grid.channels.grid.straight = args[3] == Py_True ? ~0u : 0u;
  grid.factor = static_cast<float>(PyFloat_AsDouble(args[2]));
  grid.sizes = given.scale->sizes().vec();
  if (PyErr_Occurred() != nullptr) return nullptr;
  at::Tensor y;
  {
    const WithoutGil released;
    {
      const at::AutoDispatchBelowAutograd below;
      y = quantized_channels(given.kept, grid.channels, nullptr, nullptr);
    }
    if (wants_gradient(*given.x, *given.scale, at::Tensor())) {
      record_learned(y, *given.x, given.kept, *given.scale, at::Tensor(), grid);
    }
  }
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

}  // namespace truequant
