// Searched scales of weights, and values on grids in evaluation.
#include "../kernels/search.h"
#include "passes.h"
#include "python_calls.h"
#include "tensors.h"

namespace truequant {
namespace {

// A tensor of a dtype without gaps that a kernel may read, or null.
const at::Tensor* readable(PyObject* argument, at::ScalarType dtype) {
  if (!THPVariable_CheckExact(argument)) return nullptr;
  const at::Tensor& x = THPVariable_Unpack(argument);
  return is_plain(x) && x.scalar_type() == dtype && x.is_contiguous() && x.numel() > 0 ? &x : nullptr;
}

const float* floats(const at::Tensor& x) { return static_cast<const float*>(x.const_data_ptr()); }
float* floats(at::Tensor& x) { return static_cast<float*>(x.mutable_data_ptr()); }

at::Tensor sized(at::IntArrayRef sizes, at::ScalarType dtype) {
  int64_t count = 1;
  for (const int64_t n : sizes) count *= n;
  return new_numbers(count, dtype).view(sizes);
}

}  // namespace

// least_error(rows, scales, zero points, qmin, qmax): for each row (R, N) the index of its first grid, of (R, K), with the least error.
PyObject* least_error(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 5, "least_error takes 5 arguments, got ", count);
  const at::Tensor *rows = readable(args[0], at::kFloat), *scales = readable(args[1], at::kFloat);
  const at::Tensor* zero_points = readable(args[2], at::kFloat);
  const float qmin = static_cast<float>(PyFloat_AsDouble(args[3])), qmax = static_cast<float>(PyFloat_AsDouble(args[4]));
  if (PyErr_Occurred() != nullptr) return nullptr;
  if (rows == nullptr || scales == nullptr || zero_points == nullptr || is_watched() || rows->dim() != 2 || scales->dim() != 2 ||
      scales->size(0) != rows->size(0) || !scales->sizes().equals(zero_points->sizes())) {
    return not_implemented();
  }
  at::Tensor chosen;
  {
    const WithoutGil released;
    const at::AutoDispatchBelowAutograd below;
    chosen = sized({rows->size(0)}, at::kLong);
    least_error({floats(*rows), floats(*scales), floats(*zero_points), rows->size(0), rows->size(1), scales->size(1), qmin, qmax},
                static_cast<int64_t*>(chosen.mutable_data_ptr()));
  }
  return THPVariable_Wrap(std::move(chosen));
  END_HANDLE_TH_ERRORS
}

// fingerprint(x): an integer that tells the bits of x from others.
PyObject* fingerprint(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 1, "fingerprint takes 1 argument, got ", count);
  const at::Tensor* x = readable(args[0], at::kFloat);
  if (x == nullptr || is_watched()) return not_implemented();
  uint64_t found;
  {
    const WithoutGil released;
    found = fingerprint(x->const_data_ptr(), x->numel() * sizeof(float));
  }
  return PyLong_FromUnsignedLongLong(found);
  END_HANDLE_TH_ERRORS
}

// weight_on_grid(weight, scale, qmin, qmax, group, codes): the weight on its grid, or its codes as int8. NaN has code 0.
PyObject* weight_on_grid(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 6, "weight_on_grid takes 6 arguments, got ", count);
  const at::Tensor *weight = readable(args[0], at::kFloat), *scale = readable(args[1], at::kFloat);
  Scheme scheme{};
  scheme.qmin = static_cast<float>(PyFloat_AsDouble(args[2]));
  scheme.qmax = static_cast<float>(PyFloat_AsDouble(args[3]));
  const long group = PyLong_AsLong(args[4]);
  const bool codes = args[5] == Py_True;
  if (PyErr_Occurred() != nullptr) return nullptr;
  Rows rows{};
  if (weight == nullptr || scale == nullptr || is_watched() || scheme.qmin < -128.0f || scheme.qmax > 127.0f ||
      !rows_of(rows, *weight, scale->numel(), group)) {
    return not_implemented();
  }
  at::Tensor y;
  {
    const WithoutGil released;
    const at::AutoDispatchBelowAutograd below;
    y = sized(weight->sizes(), codes ? at::kChar : at::kFloat);
    if (codes) codes_of_grid(floats(*weight), static_cast<int8_t*>(y.mutable_data_ptr()), floats(*scale), rows, scheme);
    else rows_on_grid(floats(*weight), floats(y), floats(*scale), rows, scheme);
  }
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

// tokens_on_grid(x, qmax): the rows of the last axis, each on its own grid. NotImplemented where one has NaN.
PyObject* tokens_on_grid(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 2, "tokens_on_grid takes 2 arguments, got ", count);
  const at::Tensor* x = readable(args[0], at::kFloat);
  const float qmax = static_cast<float>(PyFloat_AsDouble(args[1]));
  if (PyErr_Occurred() != nullptr) return nullptr;
  if (x == nullptr || is_watched() || x->dim() == 0) return not_implemented();
  at::Tensor y;
  bool known;
  {
    const WithoutGil released;
    const at::AutoDispatchBelowAutograd below;
    y = sized(x->sizes(), at::kFloat);
    known = tokens_on_grid(floats(*x), floats(y), x->numel() / x->size(-1), x->size(-1), qmax);
  }
  return known ? THPVariable_Wrap(std::move(y)) : not_implemented();
  END_HANDLE_TH_ERRORS
}

// group_linear(x, codes, scale, bias, qmax): see `GroupLinear`; codes int8 (out, in), scale (out, groups), bias None or (out,).
PyObject* group_linear(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 5, "group_linear takes 5 arguments, got ", count);
  const at::Tensor *x = readable(args[0], at::kFloat), *codes = readable(args[1], at::kChar), *scale = readable(args[2], at::kFloat);
  const at::Tensor* bias = args[3] == Py_None ? nullptr : readable(args[3], at::kFloat);
  const float qmax = static_cast<float>(PyFloat_AsDouble(args[4]));
  if (PyErr_Occurred() != nullptr) return nullptr;
  if (x == nullptr || codes == nullptr || scale == nullptr || (args[3] != Py_None && bias == nullptr) || is_watched() || x->dim() == 0 ||
      codes->dim() != 2 || scale->dim() != 2 || x->size(-1) != codes->size(1) || scale->size(0) != codes->size(0) ||
      codes->size(1) % scale->size(1) != 0 || (bias != nullptr && bias->numel() != codes->size(0))) {
    return not_implemented();
  }
  const GroupLinear layer{codes->const_data_ptr<int8_t>(), floats(*scale), bias != nullptr ? floats(*bias) : nullptr,
                          codes->size(0), scale->size(1), codes->size(1) / scale->size(1), qmax};
  at::Tensor y;
  bool computed;
  {
    const WithoutGil released;
    const at::AutoDispatchBelowAutograd below;
    std::vector<int64_t> sizes = x->sizes().vec();
    sizes.back() = codes->size(0);
    y = sized(sizes, at::kFloat);
    computed = group_linear(floats(*x), x->numel() / x->size(-1), layer, floats(y));
  }
  return computed ? THPVariable_Wrap(std::move(y)) : not_implemented();
  END_HANDLE_TH_ERRORS
}

}  // namespace truequant
