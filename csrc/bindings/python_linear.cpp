// Linear layers.
#include <ATen/autocast_mode.h>

#include "linear.h"
#include "python_calls.h"
#include "tensors.h"

namespace truequant {
namespace {

// A tensor that the product may read below autograd; no tangent of forward mode is lost.
bool read_operand(at::Tensor& tensor, PyObject* argument, at::ScalarType dtype) {
  if (!THPVariable_CheckExact(argument)) return false;
  tensor = THPVariable_Unpack(argument);
  return is_plain(tensor) && tensor.scalar_type() == dtype && !tensor.is_inference() && !tensor._fw_grad(0).defined();
}

// The grids of quantizers with one scale and at most 256 codes, and with a scale for each row or one for all.
bool read_grids(ProductGrids& grids, PyObject* reads, PyObject* quantizer) {
  const BufferNames& n = buffer_names();
  PyObject *of_x = buffers_in_force(reads), *of_weight = buffers_in_force(quantizer);
  if (of_x == nullptr || of_weight == nullptr) return false;
  const float* scale = number_of<float>(of_x, n.scale, at::kFloat);
  const float* zero_point = number_of<float>(of_x, n.zero_point, at::kFloat);
  PyObject *scheme = PyDict_GetItem(reads, n.compiled_scheme), *scales = PyDict_GetItem(of_weight, n.scale);
  if (scale == nullptr || zero_point == nullptr || scheme == nullptr || !PyTuple_CheckExact(scheme) || scales == nullptr ||
      !THPVariable_CheckExact(scales)) {
    return false;
  }
  const Scheme codes = scheme_of(scheme);
  const at::Tensor& weight_scale = THPVariable_Unpack(scales);
  if (!(codes.qmax - codes.qmin <= 255.0f) || !is_plain(weight_scale) || weight_scale.scalar_type() != at::kFloat ||
      !weight_scale.is_contiguous()) {
    return false;
  }
  grids = {*scale, codes.qmin - *zero_point, weight_scale.const_data_ptr<float>(), weight_scale.numel()};
  return true;
}

}  // namespace

// linear(x, weight, bias, reads, quantizer)
//
// As torch's. What an operand was made from by a kernel is kept for the backward instead of the operand, which is made again.
// reads, quantizer: the dictionaries of the quantizers of `x` and of `weight`, or None: with both, codes are summed in integers.
// NotImplemented also where nothing of this is gained.
PyObject* linear(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 5, "linear takes 5 arguments, got ", count);
  if (!THPVariable_CheckExact(args[0]) || is_watched() || at::autocast::is_autocast_enabled(at::kCPU)) return not_implemented();
  const at::ScalarType dtype = THPVariable_Unpack(args[0]).scalar_type();
  at::Tensor x, weight, bias;
  if (!is_known(dtype) || !read_operand(x, args[0], dtype) || !read_operand(weight, args[1], dtype) ||
      !(args[2] == Py_None || read_operand(bias, args[2], dtype))) {
    return not_implemented();
  }
  const bool rows = x.dim() == 2 && x.stride(1) == 1 && x.stride(0) >= x.size(1);
  if (x.dim() < 2 || weight.dim() != 2 || x.size(-1) != weight.size(1) || !(rows || x.is_contiguous()) ||
      (bias.defined() && (bias.dim() != 1 || bias.size(0) != weight.size(0)))) {
    return not_implemented();
  }
  ProductGrids grids{};
  const bool on_grids = args[3] != Py_None && args[4] != Py_None && read_grids(grids, args[3], args[4]);
  at::Tensor y;
  {
    const WithoutGil released;
    y = linear_output(x, weight, bias, on_grids ? &grids : nullptr);
  }
  return y.defined() ? THPVariable_Wrap(std::move(y)) : not_implemented();
  END_HANDLE_TH_ERRORS
}

}  // namespace truequant
