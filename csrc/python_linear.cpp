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

}  // namespace

// linear(x, weight, bias)
//
// As torch's. What an operand was made from by a kernel is kept for the backward instead of the operand, which is made again.
// NotImplemented also where neither is such an operand.
PyObject* linear(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 3, "linear takes 3 arguments, got ", count);
  if (!THPVariable_CheckExact(args[0]) || is_watched() || at::autocast::is_autocast_enabled(at::kCPU)) return not_implemented();
  const at::ScalarType dtype = THPVariable_Unpack(args[0]).scalar_type();
  at::Tensor x, weight, bias;
  if (!is_known(dtype) || !read_operand(x, args[0], dtype) || !read_operand(weight, args[1], dtype) ||
      !(args[2] == Py_None || read_operand(bias, args[2], dtype))) {
    return not_implemented();
  }
  const bool rows = x.dim() == 2 && x.stride(1) == 1 && x.stride(0) >= x.size(1);
  if (x.dim() < 2 || weight.dim() != 2 || x.size(-1) != weight.size(1) || !(rows || x.is_contiguous()) ||
      (bias.defined() && (bias.dim() != 1 || bias.size(0) != weight.size(0))) || !gains(x, weight, bias)) {
    return not_implemented();
  }
  at::Tensor y;
  {
    const WithoutGil released;
    y = linear(x, weight, bias);
  }
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

}  // namespace truequant
