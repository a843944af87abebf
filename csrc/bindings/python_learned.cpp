// Fake quantization with given tensors of scales: one, or one for each index of an axis; learned, or not.
#include <algorithm>
#include <cmath>

#include "autograd.h"
#include "passes.h"
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

// Observed ranges and what follows from them, one for each index of an axis, in the buffers of a quantizer and its observer.
class Ranges {
 public:
  int64_t count = 0;

  bool read(PyObject* quantizer, PyObject* observer) {
    const BufferNames& n = buffer_names();
    PyObject* const names[] = {n.scale, n.zero_point, n.minimum, n.maximum, n.pending_minimum, n.pending_maximum};
    for (int k = 0; k < 6; ++k) {
      PyObject* found = PyDict_GetItem(k < 2 ? quantizer : observer, names[k]);
      const at::Tensor* tensor = found == nullptr ? nullptr : numbers_of(found);
      if (tensor == nullptr || !tensor->is_contiguous() || (k > 0 && tensor->numel() != count)) return false;
      count = tensor->numel();
      tensors_[k] = tensor;
      numbers_[k] = static_cast<float*>(tensor->mutable_data_ptr());
    }
    updates_ = number_of<int64_t>(observer, n.updates, at::kLong);
    return updates_ != nullptr;
  }

  // What is pending takes effect. One update is one of all: a channel that was never seen has a range of nothing from then on.
  void commit(const Scheme& scheme) const {
    bool any = false;
    for (int64_t k = 0; k < count; ++k) any |= fold(state(k), scheme);
    *updates_ += any;
    for (int64_t k = 0; k < count && *updates_ > 0; ++k) take_range(state(k), scheme);
    written(*tensors_[0]);
    written(*tensors_[1]);
  }

  void set_grid(Channels& channels, const Scheme& scheme) const {
    channels.scale.assign(numbers_[0], numbers_[0] + count);
    channels.zero_point.assign(numbers_[1], numbers_[1] + count);
    channels.grid.qmin = scheme.qmin;
    channels.grid.qmax = scheme.qmax;
    channels.grid.straight = scheme.identity ? ~0u : 0u;
  }

  // Merges what each channel saw into what is pending.
  void merge(const std::vector<Seen>& seen) const {
    for (int64_t k = 0; k < count; ++k) truequant::merge(state(k), seen[k]);
    written(*tensors_[4]);
    written(*tensors_[5]);
  }

 private:
  State state(int64_t k) const {
    return {numbers_[0] + k, numbers_[1] + k, numbers_[2] + k, numbers_[3] + k, numbers_[4] + k, numbers_[5] + k, updates_, {}};
  }

  const at::Tensor* tensors_[6] = {};
  float* numbers_[6] = {};
  int64_t* updates_ = nullptr;
};

}  // namespace

// quantize_channels(x, axis, quantizer, observer, scheme, commits)
//
// As `fake_quantize`, of an observed range for each index of an axis.
PyObject* quantize_channels(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 6, "quantize_channels takes 6 arguments, got ", count);
  if (!THPVariable_CheckExact(args[0])) return not_implemented();
  const at::Tensor& x = THPVariable_Unpack(args[0]);
  Ranges ranges;
  if (!is_plain(x) || !is_known(x.scalar_type()) || is_watched() || !ranges.read(args[2], args[3])) return not_implemented();
  const Scheme scheme = scheme_of(args[4]);
  const int64_t axis = PyLong_AsLongLong(args[1]);
  if (PyErr_Occurred() != nullptr) return nullptr;
  at::Tensor kept;
  {
    const at::AutoDispatchBelowAutograd below;
    kept = dense(x);
  }
  Channels channels;
  if (!layout_along(channels.layout, kept, axis) || channels.layout.channels != ranges.count) return not_implemented();
  if (args[5] == Py_True) ranges.commit(scheme);
  ranges.set_grid(channels, scheme);
  at::Tensor y;
  {
    const WithoutGil released;
    const bool differentiable = wants_gradient(x, nullptr);
    at::Tensor mask;
    std::vector<Seen> seen;
    {
      const at::AutoDispatchBelowAutograd below;
      y = quantized_channels(kept, channels, differentiable && !scheme.identity ? &mask : nullptr, &seen);
    }
    ranges.merge(seen);
    if (differentiable) record(y, x, nullptr, mask);
  }
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

// learned_scale(initial, shift, gain)
//
// `initial * f(shift)` with f(t) = 1 + t for t >= 0 and exp(t) below, within the bounds of scales; its gradient is multiplied by
// gain / initial^2. Float32, of one shape; bit for bit what ops of torch's make of it.
PyObject* learned_scale(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 3, "learned_scale takes 3 arguments, got ", count);
  const at::Tensor* initial = numbers_of(args[0]);
  if (initial == nullptr || is_watched() || !THPVariable_Check(args[1])) return not_implemented();
  const at::Tensor& shift = THPVariable_Unpack(args[1]);
  if (!is_plain(shift) || shift.scalar_type() != at::kFloat || shift.sizes() != initial->sizes()) return not_implemented();
  const float gain = static_cast<float>(PyFloat_AsDouble(args[2]));
  if (PyErr_Occurred() != nullptr) return nullptr;
  return THPVariable_Wrap(scale_of_shift(*initial, shift, gain));
  END_HANDLE_TH_ERRORS
}

// fake_quantize_channels(x, scale, zero_point, qmin, qmax, identity)
//
// With the straight-through gradient.
PyObject* fake_quantize_channels(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 6, "fake_quantize_channels takes 6 arguments, got ", count);
  Channels channels;
  Operands given;
  if (!given.read(args[0], args[1], channels)) return not_implemented();
  const at::Tensor* zero = numbers_of(args[2]);
  if (zero == nullptr || zero->numel() != channels.layout.channels) return not_implemented();
  set_range(channels, args[3], args[4]);
  channels.zero_point = values_of(*zero);
  channels.grid.straight = args[5] == Py_True ? ~0u : 0u;
  if (PyErr_Occurred() != nullptr) return nullptr;
  at::Tensor y;
  {
    const WithoutGil released;
    const bool differentiable = wants_gradient(*given.x, nullptr);
    at::Tensor mask;
    {
      const at::AutoDispatchBelowAutograd below;
      const bool masks = differentiable && channels.grid.straight == 0;
      y = quantized_channels(given.kept, channels, masks ? &mask : nullptr, nullptr);
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
