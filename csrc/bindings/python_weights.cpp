// Weights and biases of layers.
#include "../kernels/folding.h"
#include "autograd.h"
#include "passes.h"
#include "python_calls.h"
#include "tensors.h"

namespace truequant {
namespace {

// Whether an argument is None or the float32 numbers of `count` channels; `numbers` is their memory.
bool read_channels(const float*& numbers, PyObject* argument, int64_t count) {
  numbers = nullptr;
  if (argument == Py_None) return true;
  if (!THPVariable_CheckExact(argument)) return false;
  const at::Tensor& tensor = THPVariable_Unpack(argument);
  if (!is_plain(tensor) || tensor.scalar_type() != at::kFloat || tensor.numel() != count || !tensor.is_contiguous()) return false;
  numbers = static_cast<const float*>(tensor.const_data_ptr());
  return true;
}

}  // namespace

// fake_quantize_weight(weight, scale, scheme, ranges, group)
//
// scale: the scales, one for each row, float32; where `ranges`, they are computed from the weight first and written there.
PyObject* fake_quantize_weight(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 5, "fake_quantize_weight takes 5 arguments, got ", count);
  if (!THPVariable_CheckExact(args[0]) || !THPVariable_CheckExact(args[1])) return not_implemented();
  const at::Tensor& weight = THPVariable_Unpack(args[0]);
  const at::Tensor& scale = THPVariable_Unpack(args[1]);
  const bool ranges = args[3] == Py_True;
  const long group = PyLong_AsLong(args[4]);
  const Scheme scheme = scheme_of(args[2]);
  if (PyErr_Occurred() != nullptr) return nullptr;
  Rows rows{};
  if (!is_plain(weight) || !is_known(weight.scalar_type()) || !is_plain(scale) || scale.scalar_type() != at::kFloat ||
      !scale.is_contiguous() || is_watched() || !rows_of(rows, weight, scale.numel(), group)) {
    return not_implemented();
  }
  at::Tensor y;
  {
    const WithoutGil released;
    const bool differentiable = wants_gradient(weight, nullptr);
    at::Tensor mask;
    {
      const at::AutoDispatchBelowAutograd below;
      y = quantized_weight(weight, static_cast<float*>(scale.mutable_data_ptr()), rows, scheme, ranges, differentiable, mask);
    }
    if (ranges) written(scale);
    const float* scales = static_cast<const float*>(scale.const_data_ptr());
    if (differentiable) record(y, weight, nullptr, mask, origin(scheme, rows, scales, weight, y));
  }
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

// rounded_bias(bias, mean, var, gamma, beta, eps, input scale, weight scale, free)
//
// mean is None: bias on the grid of its layer, straight through. Else beta of the norm, moved by what rounding the folded bias
// adds, straight through; the shift alone where beta is None.
PyObject* rounded_bias(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 9, "rounded_bias takes 9 arguments, got ", count);
  const bool normalized = args[1] != Py_None;
  PyObject* sized = normalized ? args[1] : args[0];
  if (!THPVariable_CheckExact(sized) || is_watched()) return not_implemented();
  const int64_t channels = THPVariable_Unpack(sized).numel();
  const float *bias, *input_scale, *scale;
  Norm norm{};
  norm.eps = PyFloat_AsDouble(args[5]);
  if (PyErr_Occurred() != nullptr) return nullptr;
  if (!THPVariable_CheckExact(args[7])) return not_implemented();
  const int64_t scales = THPVariable_Unpack(args[7]).numel();
  if (scales != 1 && scales != channels) return not_implemented();
  if (!read_channels(bias, args[0], channels) || !read_channels(norm.mean, args[1], channels) ||
      !read_channels(norm.var, args[2], channels) || !read_channels(norm.gamma, args[3], channels) ||
      !read_channels(norm.beta, args[4], channels) || !read_channels(input_scale, args[6], 1) ||
      !read_channels(scale, args[7], scales) || input_scale == nullptr) {
    return not_implemented();
  }
  PyObject* moved = normalized ? args[4] : args[0];
  at::Tensor y = new_numbers(channels, at::kFloat);
  float* out = static_cast<float*>(y.mutable_data_ptr());
  bias_errors(out, channels, bias, normalized ? &norm : nullptr, *input_scale, scale, scales, args[8] == Py_True);
  if (moved != Py_None) {
    const at::Tensor& before = THPVariable_Unpack(moved);
    const float* numbers = static_cast<const float*>(before.const_data_ptr());
    for (int64_t c = 0; c < channels; ++c) out[c] = numbers[c] + out[c];
    if (wants_gradient(before, nullptr)) record(y, before, nullptr, at::Tensor());
  }
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

}  // namespace truequant
