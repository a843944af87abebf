// What the functions of `truequant.kernels._native` share.
#pragma once

#include <torch/csrc/autograd/python_variable.h>

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "../kernels/grid.h"
#include "tensors.h"

namespace truequant {

inline PyObject* not_implemented() { return Py_NewRef(Py_NotImplemented); }

struct WithoutGil {
  PyThreadState* state = PyEval_SaveThread();
  ~WithoutGil() { PyEval_RestoreThread(state); }
};

// A bound of a clip as an op of this dtype compares with it.
inline float in_dtype(double v, at::ScalarType dtype) {
  const float f = static_cast<float>(v);
  if (dtype == at::kBFloat16) return static_cast<float>(c10::BFloat16(f));
  if (dtype == at::kHalf) return static_cast<float>(c10::Half(f));
  return f;
}

// What the buffers of quantizers and observers are called, and the scheme beside them.
struct BufferNames {
  PyObject* scale = PyUnicode_InternFromString("scale");
  PyObject* zero_point = PyUnicode_InternFromString("zero_point");
  PyObject* minimum = PyUnicode_InternFromString("minimum");
  PyObject* maximum = PyUnicode_InternFromString("maximum");
  PyObject* pending_minimum = PyUnicode_InternFromString("pending_minimum");
  PyObject* pending_maximum = PyUnicode_InternFromString("pending_maximum");
  PyObject* updates = PyUnicode_InternFromString("updates");
  PyObject* counts = PyUnicode_InternFromString("counts");
  PyObject* exponent = PyUnicode_InternFromString("exponent");
  PyObject* compiled_scheme = PyUnicode_InternFromString("compiled_scheme");
};

inline const BufferNames& buffer_names() {
  static const BufferNames all;
  return all;
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

// The buffers of a quantizer with a range that learns none, by its dictionary; null for another.
PyObject* buffers_in_force(PyObject* quantizer);

// The scheme of a quantizer as Python has it: (qmin, qmax, symmetric, signed, power of two, identity, momentum or -1,
// percent or -1).
inline Scheme scheme_of(PyObject* tuple) {
  const auto number = [&](Py_ssize_t k) { return PyFloat_AsDouble(PyTuple_GET_ITEM(tuple, k)); };
  const auto flag = [&](Py_ssize_t k) { return PyTuple_GET_ITEM(tuple, k) == Py_True; };
  return {static_cast<float>(number(0)), static_cast<float>(number(1)), flag(2), flag(3), flag(4), flag(5), number(6), number(7)};
}

PyObject* fake_quantize_channels(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* quantize_channels(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* learned_scale(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* fake_quantize_learned(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* fake_binarize(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* linear(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* linear_of_codes(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* convolution_of_codes(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* products_of_codes(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* quantized_values(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* sum_of_codes(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* fake_quantize(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* fake_quantize_weight(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* fake_quantize_norm(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* rounded_bias(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* quantize(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* quantize_norm(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* shifted_bias(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* layer_operands(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* least_error(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* fingerprint(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* weight_on_grid(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* tokens_on_grid(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* group_linear(PyObject*, PyObject* const* args, Py_ssize_t count);

}  // namespace truequant
