// The module `truequant.kernels._native`.
//
// Functions return NotImplemented where a call is not for them: another device or dtype, a subclass, a transform that wants to
// see torch's own ops. They change nothing then, and the caller takes the reference.
#include <cmath>
#include <optional>

#include "../kernels/dispatch.h"
#include "autograd.h"
#include "passes.h"
#include "python_calls.h"
#include "tensors.h"
#include "threads_of_torch.h"

namespace truequant {
namespace {

// The histogram of an observer, of no bins where it has none; false where it is none that a kernel can use.
bool read_histogram(Histogram& histogram, PyObject* observer) {
  PyObject* found = PyDict_GetItem(observer, buffer_names().counts);
  if (found == nullptr) return true;
  if (!THPVariable_CheckExact(found)) return false;
  const at::Tensor& counts = THPVariable_Unpack(found);
  const int64_t n = counts.numel();
  if (!is_plain(counts) || counts.scalar_type() != at::kLong || !counts.is_contiguous() || n < 4 || n % 2 || n > kMostBins) return false;
  int64_t* exponent = number_of<int64_t>(observer, buffer_names().exponent, at::kLong);
  histogram = {static_cast<int64_t*>(counts.mutable_data_ptr()), exponent, n / 2};
  return histogram.exponent != nullptr;
}

bool read_observer(State& state, PyObject* observer) {
  const BufferNames& n = buffer_names();
  state.minimum = number_of<float>(observer, n.minimum, at::kFloat);
  state.maximum = number_of<float>(observer, n.maximum, at::kFloat);
  state.pending_minimum = number_of<float>(observer, n.pending_minimum, at::kFloat);
  state.pending_maximum = number_of<float>(observer, n.pending_maximum, at::kFloat);
  state.updates = number_of<int64_t>(observer, n.updates, at::kLong);
  return state.minimum && state.maximum && state.pending_minimum && state.pending_maximum && state.updates &&
         read_histogram(state.histogram, observer);
}

bool read_state(State& state, PyObject* quantizer, PyObject* observer) {
  const BufferNames& n = buffer_names();
  state.scale = number_of<float>(quantizer, n.scale, at::kFloat);
  state.zero_point = number_of<float>(quantizer, n.zero_point, at::kFloat);
  if (state.scale == nullptr || state.zero_point == nullptr) return false;
  return observer == Py_None || read_observer(state, observer);
}

// What fake quantization takes from Python: the state, scheme, clip and grid of a call, and the commit that comes first.
struct Call {
  State state{};
  Scheme scheme{};
  Clip clip = kNone;
  Grid grid{};
  bool observes = false;
  std::optional<Counting> counting;

  // quantizer, observer, scheme, commits, clip, low, high; false where a buffer is none that a kernel can use.
  bool read(PyObject* const* args, at::ScalarType dtype) {
    observes = args[1] != Py_None;
    if (!read_state(state, args[0], args[1])) return false;
    scheme = scheme_of(args[2]);
    clip = static_cast<Clip>(PyLong_AsLong(args[4]));
    if (clip == kHardtanh || clip == kClamp) {
      grid.low = in_dtype(PyFloat_AsDouble(args[5]), dtype);
      grid.high = in_dtype(PyFloat_AsDouble(args[6]), dtype);
    }
    return PyErr_Occurred() == nullptr;
  }
  // What counts the `n` elements that pass; null where nothing does.
  Counting* counter(int64_t n) {
    return state.histogram.bins > 0 ? &counting.emplace(state.histogram, n) : nullptr;
  }
  // What was seen becomes pending.
  void keep(const Seen& seen) {
    if (observes) merge(state, counting.has_value() ? counting->finish() : seen);
  }
  void take_commit(PyObject* const* args) {
    commit(state, scheme);
    written(THPVariable_Unpack(PyDict_GetItem(args[0], buffer_names().scale)));
    written(THPVariable_Unpack(PyDict_GetItem(args[0], buffer_names().zero_point)));
  }
  void set_grid() {
    grid.scale = *state.scale;
    grid.zero_point = *state.zero_point;
    grid.qmin = scheme.qmin;
    grid.qmax = scheme.qmax;
    grid.straight = scheme.identity ? ~0u : 0u;
  }
};

}  // namespace

// fake_quantize(x, other, quantizer, observer, scheme, commits, clip, low, high, only_observes)
//
// x: a tensor, or a list of one: its memory is the result's where nothing but the list holds it.
// quantizer, observer: dictionaries of their buffers; observer is None where nothing is observed. commits: whether what is
// pending takes effect first. other: None, or what is added to x before the clip. only_observes: only merge what would be quantized
// into what is pending; the result is None.
PyObject* fake_quantize(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 10, "fake_quantize takes 10 arguments, got ", count);
  const bool listed = PyList_CheckExact(args[0]) && PyList_GET_SIZE(args[0]) == 1;
  PyObject* given = listed ? PyList_GET_ITEM(args[0], 0) : args[0];
  if (!THPVariable_CheckExact(given) || (args[1] != Py_None && !THPVariable_CheckExact(args[1]))) return not_implemented();
  const at::Tensor& x = THPVariable_Unpack(given);
  const at::Tensor* other = args[1] == Py_None ? nullptr : &THPVariable_Unpack(args[1]);
  if (!is_plain(x) || !is_known(x.scalar_type()) || is_watched()) return not_implemented();
  if (other != nullptr && (!is_plain(*other) || other->scalar_type() != x.scalar_type() || other->sizes() != x.sizes() ||
                           other->strides() != x.strides() || !x.is_non_overlapping_and_dense())) {
    return not_implemented();
  }
  Call call;
  if (!call.read(args + 2, x.scalar_type())) return PyErr_Occurred() != nullptr ? nullptr : not_implemented();
  const bool only_observes = args[9] == Py_True;
  if (only_observes && x.numel() == 0) return not_implemented();
  if (args[5] == Py_True) call.take_commit(args + 2);
  call.set_grid();
  const bool spent = listed && !only_observes && other == nullptr && Py_REFCNT(given) == 1 && is_owned(x);
  at::Tensor y;
  {
    const WithoutGil released;
    const bool differentiable = !only_observes && wants_gradient(x, other);
    const bool masks = differentiable && !(call.scheme.identity && call.clip == kNone);
    at::Tensor mask;
    Seen seen = kNothing;
    {
      const at::AutoDispatchBelowAutograd below;
      const at::Tensor kept = other == nullptr ? dense(x) : x;
      Counting* counting = call.counter(kept.numel());
      if (only_observes) seen = watched(kept, other, call.grid, call.clip, counting);
      else y = quantized(kept, other, call.grid, call.clip, spent, masks ? &mask : nullptr, seen, counting);
    }
    call.keep(seen);
    if (!seen.stopped) mask.reset();  // every gradient passes
    if (differentiable) record(y, x, other, mask, other == nullptr ? origin(call.grid, call.clip, x, y) : nullptr);
  }
  if (only_observes) Py_RETURN_NONE;
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

namespace {

// observe(x, observer)
//
// Merges x into what is pending in the buffers of an observer with one range. True.
PyObject* observe(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 2, "observe takes 2 arguments, got ", count);
  if (!THPVariable_CheckExact(args[0])) return not_implemented();
  const at::Tensor& x = THPVariable_Unpack(args[0]);
  State state{};
  if (!is_plain(x) || !is_known(x.scalar_type()) || is_watched() || !read_observer(state, args[1])) return not_implemented();
  {
    const WithoutGil released;
    const at::AutoDispatchBelowAutograd below;
    const at::Tensor kept = dense(x);
    if (state.histogram.bins > 0) {
      Counting counting(state.histogram, kept.numel());
      watched(kept, nullptr, Grid{}, kNone, &counting);
      merge(state, counting.finish());
    } else {
      merge(state, watched(kept, nullptr, Grid{}, kNone, nullptr));
    }
  }
  Py_RETURN_TRUE;
  END_HANDLE_TH_ERRORS
}

// An argument that is None or a plain float32 tensor of `count` numbers without gaps; false for another.
bool read_vector(at::Tensor& tensor, PyObject* argument, int64_t count) {
  if (argument == Py_None) return true;
  if (!THPVariable_CheckExact(argument)) return false;
  tensor = THPVariable_Unpack(argument);
  return is_plain(tensor) && tensor.scalar_type() == at::kFloat && tensor.numel() == count && tensor.is_contiguous();
}

}  // namespace

// fake_quantize_norm(x, gamma, beta, running mean, running var, eps, momentum, only_observes, quantizer, observer, scheme,
//                    commits, clip, low, high)
//
// BatchNorm over the batch, clip and fake quantization. only_observes: only merge what would be quantized into what is pending;
// running statistics stay, and the result is None.
PyObject* fake_quantize_norm(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 15, "fake_quantize_norm takes 15 arguments, got ", count);
  if (!THPVariable_CheckExact(args[0]) || is_watched()) return not_implemented();
  const at::Tensor& x = THPVariable_Unpack(args[0]);
  Runs runs{};
  if (!is_plain(x) || x.scalar_type() != at::kFloat || !runs_of(runs, x) || x.numel() <= runs.channels) return not_implemented();
  at::Tensor gamma, beta, running_mean, running_var;
  if (!read_vector(gamma, args[1], runs.channels) || !read_vector(beta, args[2], runs.channels) ||
      !read_vector(running_mean, args[3], runs.channels) || !read_vector(running_var, args[4], runs.channels)) {
    return not_implemented();
  }
  const double eps = PyFloat_AsDouble(args[5]), momentum = PyFloat_AsDouble(args[6]);
  const bool only_observes = args[7] == Py_True;
  Call call;
  if (!call.read(args + 8, at::kFloat)) return PyErr_Occurred() != nullptr ? nullptr : not_implemented();
  if (args[11] == Py_True) call.take_commit(args + 8);
  call.set_grid();
  at::Tensor y;
  {
    const WithoutGil released;
    const bool differentiable = !only_observes && wants_gradient(x, gamma, beta);
    const bool masks = differentiable && !(call.scheme.identity && call.clip == kNone);
    const bool tracks = running_mean.defined() && !only_observes;
    at::Tensor mask;
    Moments moments;
    Seen seen = kNothing;
    {
      const at::AutoDispatchBelowAutograd below;
      moments = moments_of(x, runs, eps, tracks ? running_mean : at::Tensor(), tracks ? running_var : at::Tensor(), momentum);
      seen = normalized(x, runs, moments, gamma, beta, call.grid, call.clip, only_observes ? nullptr : &y, masks ? &mask : nullptr,
                        call.counter(x.numel()));
    }
    if (tracks) {
      written(running_mean);
      written(running_var);
    }
    call.keep(seen);
    if (!seen.stopped) mask.reset();
    if (differentiable) record_norm(y, x, gamma, beta, mask, moments);
  }
  if (only_observes) Py_RETURN_NONE;
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

namespace {

PyObject* level_names(PyObject*, PyObject*) {
  const auto found = levels();
  PyObject* result = PyTuple_New(static_cast<Py_ssize_t>(found.size()));
  for (size_t k = 0; k < found.size(); ++k) {
    PyTuple_SET_ITEM(result, static_cast<Py_ssize_t>(k), PyUnicode_FromString(found[k].c_str()));
  }
  return result;
}

PyObject* level_in_use(PyObject*, PyObject*) { return PyUnicode_FromString(kernels().name); }

PyObject* choose_level(PyObject*, PyObject* name) {
  const char* text = PyUnicode_AsUTF8(name);
  if (text == nullptr) return nullptr;
  return PyBool_FromLong(choose(text));
}

template <class F>
PyCFunction fast(F* function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef methods[] = {
    {"fake_quantize", fast(fake_quantize), METH_FASTCALL, nullptr},
    {"observe", fast(observe), METH_FASTCALL, nullptr},
    {"fake_quantize_weight", fast(fake_quantize_weight), METH_FASTCALL, nullptr},
    {"fake_quantize_norm", fast(fake_quantize_norm), METH_FASTCALL, nullptr},
    {"rounded_bias", fast(rounded_bias), METH_FASTCALL, nullptr},
    {"fake_quantize_channels", fast(fake_quantize_channels), METH_FASTCALL, nullptr},
    {"quantize_channels", fast(quantize_channels), METH_FASTCALL, nullptr},
    {"learned_scale", fast(learned_scale), METH_FASTCALL, nullptr},
    {"fake_quantize_learned", fast(fake_quantize_learned), METH_FASTCALL, nullptr},
    {"fake_binarize", fast(fake_binarize), METH_FASTCALL, nullptr},
    {"linear", fast(linear), METH_FASTCALL, nullptr},
    {"linear_of_codes", fast(linear_of_codes), METH_FASTCALL, nullptr},
    {"convolution_of_codes", fast(convolution_of_codes), METH_FASTCALL, nullptr},
    {"products_of_codes", fast(products_of_codes), METH_FASTCALL, nullptr},
    {"quantized_values", fast(quantized_values), METH_FASTCALL, nullptr},
    {"sum_of_codes", fast(sum_of_codes), METH_FASTCALL, nullptr},
    {"quantize", fast(quantize), METH_FASTCALL, nullptr},
    {"quantize_norm", fast(quantize_norm), METH_FASTCALL, nullptr},
    {"shifted_bias", fast(shifted_bias), METH_FASTCALL, nullptr},
    {"layer_operands", fast(layer_operands), METH_FASTCALL, nullptr},
    {"least_error", fast(least_error), METH_FASTCALL, nullptr},
    {"fingerprint", fast(fingerprint), METH_FASTCALL, nullptr},
    {"weight_on_grid", fast(weight_on_grid), METH_FASTCALL, nullptr},
    {"tokens_on_grid", fast(tokens_on_grid), METH_FASTCALL, nullptr},
    {"group_linear", fast(group_linear), METH_FASTCALL, nullptr},
    {"levels", level_names, METH_NOARGS, nullptr},
    {"level", level_in_use, METH_NOARGS, nullptr},
    {"choose", choose_level, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_native", "Compiled kernels.", -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace truequant

PyMODINIT_FUNC PyInit__native() {
  truequant::use_threads_of_torch();
  return PyModule_Create(&truequant::module);
}
