// The module `truequant.kernels._native`.
//
// Functions return NotImplemented where a call is not for them: another device or dtype, a subclass, a transform that wants to
// see torch's own ops. They change nothing then, and the caller takes the reference.
#include <torch/csrc/autograd/python_variable.h>

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cmath>

#include "autograd.h"
#include "dispatch.h"
#include "tensors.h"

namespace truequant {
namespace {

PyObject* not_implemented() { return Py_NewRef(Py_NotImplemented); }

struct WithoutGil {
  PyThreadState* state = PyEval_SaveThread();
  ~WithoutGil() { PyEval_RestoreThread(state); }
};

// The scheme of a quantizer as Python has it: (qmin, qmax, symmetric, signed, power of two, identity, momentum or -1).
Scheme scheme_of(PyObject* tuple) {
  const auto number = [&](Py_ssize_t k) { return PyFloat_AsDouble(PyTuple_GET_ITEM(tuple, k)); };
  const auto flag = [&](Py_ssize_t k) { return PyTuple_GET_ITEM(tuple, k) == Py_True; };
  return {static_cast<float>(number(0)), static_cast<float>(number(1)), flag(2), flag(3), flag(4), flag(5), number(6)};
}

// A buffer of one number, or null.
template <class T>
T* number_of(PyObject* buffers, PyObject* name, at::ScalarType dtype) {
  PyObject* found = PyDict_GetItem(buffers, name);
  if (found == nullptr || !THPVariable_CheckExact(found)) return nullptr;
  const at::Tensor& tensor = THPVariable_Unpack(found);
  if (!is_plain(tensor) || tensor.scalar_type() != dtype || tensor.numel() != 1) return nullptr;
  return static_cast<T*>(tensor.mutable_data_ptr());
}

void changed(PyObject* buffers, PyObject* name) {
  const at::Tensor& tensor = THPVariable_Unpack(PyDict_GetItem(buffers, name));
  if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
}

struct Names {
  PyObject* scale = PyUnicode_InternFromString("scale");
  PyObject* zero_point = PyUnicode_InternFromString("zero_point");
  PyObject* minimum = PyUnicode_InternFromString("minimum");
  PyObject* maximum = PyUnicode_InternFromString("maximum");
  PyObject* pending_minimum = PyUnicode_InternFromString("pending_minimum");
  PyObject* pending_maximum = PyUnicode_InternFromString("pending_maximum");
  PyObject* updates = PyUnicode_InternFromString("updates");
};

const Names& names() {
  static const Names all;
  return all;
}

bool read_state(State& state, PyObject* quantizer, PyObject* observer) {
  const Names& n = names();
  state.scale = number_of<float>(quantizer, n.scale, at::kFloat);
  state.zero_point = number_of<float>(quantizer, n.zero_point, at::kFloat);
  if (state.scale == nullptr || state.zero_point == nullptr) return false;
  if (observer == Py_None) return true;
  state.minimum = number_of<float>(observer, n.minimum, at::kFloat);
  state.maximum = number_of<float>(observer, n.maximum, at::kFloat);
  state.pending_minimum = number_of<float>(observer, n.pending_minimum, at::kFloat);
  state.pending_maximum = number_of<float>(observer, n.pending_maximum, at::kFloat);
  state.updates = number_of<int64_t>(observer, n.updates, at::kLong);
  return state.minimum && state.maximum && state.pending_minimum && state.pending_maximum && state.updates;
}

float in_dtype(double v, at::ScalarType dtype) {
  const float f = static_cast<float>(v);
  if (dtype == at::kBFloat16) return static_cast<float>(c10::BFloat16(f));
  if (dtype == at::kHalf) return static_cast<float>(c10::Half(f));
  return f;
}

// fake_quantize(x, other, quantizer, observer, scheme, commits, clip, low, high)
//
// quantizer, observer: dictionaries of their buffers; observer is None where nothing is observed. commits: whether what is
// pending takes effect first. other: None, or what is added to x before the clip.
PyObject* fake_quantize(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 9, "fake_quantize takes 9 arguments, got ", count);
  if (!THPVariable_CheckExact(args[0]) || (args[1] != Py_None && !THPVariable_CheckExact(args[1]))) return not_implemented();
  const at::Tensor& x = THPVariable_Unpack(args[0]);
  const at::Tensor* other = args[1] == Py_None ? nullptr : &THPVariable_Unpack(args[1]);
  if (!is_plain(x) || !is_known(x.scalar_type()) || is_watched()) return not_implemented();
  if (other != nullptr && (!is_plain(*other) || other->scalar_type() != x.scalar_type() || other->sizes() != x.sizes() ||
                           other->strides() != x.strides() || !x.is_non_overlapping_and_dense())) {
    return not_implemented();
  }
  PyObject* observer = args[3];
  State state{};
  if (!read_state(state, args[2], observer)) return not_implemented();
  const Scheme scheme = scheme_of(args[4]);
  const Clip clip = static_cast<Clip>(PyLong_AsLong(args[6]));
  Grid grid{};
  if (clip == kHardtanh || clip == kClamp) {
    grid.low = in_dtype(PyFloat_AsDouble(args[7]), x.scalar_type());
    grid.high = in_dtype(PyFloat_AsDouble(args[8]), x.scalar_type());
  }
  if (PyErr_Occurred() != nullptr) return nullptr;
  if (args[5] == Py_True) {
    commit(state, scheme);
    changed(args[2], names().scale);
    changed(args[2], names().zero_point);
  }
  grid.scale = *state.scale;
  grid.zero_point = *state.zero_point;
  grid.qmin = scheme.qmin;
  grid.qmax = scheme.qmax;
  grid.straight = scheme.identity ? ~0u : 0u;
  at::Tensor y;
  {
    const WithoutGil released;
    const bool differentiable = wants_gradient(x, other);
    const bool masks = differentiable && !(scheme.identity && clip == kNone);
    at::Tensor mask;
    Seen seen{INFINITY, -INFINITY, false};
    {
      const at::AutoDispatchBelowAutograd below;
      y = quantized(other == nullptr ? dense(x) : x, other, grid, clip, masks ? &mask : nullptr, seen);
    }
    if (observer != Py_None) merge(state, seen);
    if (differentiable) record(y, x, other, mask);
  }
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

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

PyMethodDef methods[] = {
    {"fake_quantize", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(fake_quantize)), METH_FASTCALL, nullptr},
    {"levels", level_names, METH_NOARGS, nullptr},
    {"level", level_in_use, METH_NOARGS, nullptr},
    {"choose", choose_level, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_native", "Compiled kernels.", -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace truequant

PyMODINIT_FUNC PyInit__native() { return PyModule_Create(&truequant::module); }
