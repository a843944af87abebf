// Evaluation and programs: layers of codes, with bias and requantization, sums of codes, and what is quantized, in one call.
#include <ATen/ops/empty.h>

#include <atomic>

#include "../kernels/blocks.h"
#include "../kernels/dispatch.h"
#include "../kernels/products.h"
#include "python_calls.h"
#include "tensors.h"

namespace truequant {
namespace {

bool read_plain(at::Tensor& tensor, PyObject* argument) {
  if (!THPVariable_CheckExact(argument)) return false;
  tensor = THPVariable_Unpack(argument);
  return is_plain(tensor) && tensor.is_contiguous();
}

bool read_plain(at::Tensor& tensor, PyObject* argument, at::ScalarType dtype) {
  return read_plain(tensor, argument) && tensor.scalar_type() == dtype;
}

bool read_sizes(int64_t* sizes, PyObject* argument, int64_t count) {
  if (!PyTuple_CheckExact(argument) || PyTuple_GET_SIZE(argument) != count) return false;
  for (int64_t k = 0; k < count; ++k) sizes[k] = PyLong_AsLongLong(PyTuple_GET_ITEM(argument, k));
  return PyErr_Occurred() == nullptr;
}

// What both calls begin with: x, its scale or zero point, weight, offset, factor, zero, low, high, scale of the result.
struct Layer {
  at::Tensor x, weight, offset, factor;
  Codes codes{};
  Requantization how{};

  bool read(PyObject* const* args) {
    if (is_watched() || !read_plain(x, args[0]) || !read_plain(weight, args[2], at::kChar) || !read_plain(offset, args[3], at::kInt) ||
        !read_plain(factor, args[4], at::kFloat)) {
      return false;
    }
    double numbers[5];
    const int places[5] = {1, 5, 6, 7, 8};
    for (int k = 0; k < 5; ++k) numbers[k] = PyFloat_AsDouble(args[places[k]]);
    if (PyErr_Occurred() != nullptr || weight.dim() < 2 || weight.numel() == 0 || x.numel() == 0) return false;
    const int64_t outputs = weight.size(0);
    if (weight.numel() / outputs > kLongestSum || offset.numel() != outputs) return false;
    if (factor.numel() != 1 && factor.numel() != outputs) return false;
    if (x.scalar_type() == at::kFloat) {
      codes = {x.const_data_ptr<float>(), nullptr, nullptr, static_cast<float>(numbers[0]), 0};
    } else if (x.scalar_type() == at::kChar) {
      codes = {nullptr, x.const_data_ptr<int8_t>(), nullptr, 1.0f, static_cast<int32_t>(numbers[0])};
    } else if (x.scalar_type() == at::kByte) {
      codes = {nullptr, nullptr, x.const_data_ptr<uint8_t>(), 1.0f, static_cast<int32_t>(numbers[0])};
    } else {
      return false;
    }
    how = {offset.const_data_ptr<int32_t>(), factor.const_data_ptr<float>(), factor.numel(),
           static_cast<float>(numbers[1]), static_cast<float>(numbers[2]), static_cast<float>(numbers[3]),
           static_cast<float>(numbers[4])};
    return true;
  }

  WholeRows rows_of_weight() const {
    WholeRows rows(weight.size(0), weight.numel() / weight.size(0));
    whole_rows({nullptr, weight.const_data_ptr<int8_t>(), nullptr, 1.0f, 0}, rows);
    return rows;
  }
};

}  // namespace

// linear_of_codes(x, grid, weight, offset, factor, zero, low, high, result)
//
// x: float32 `(…, in)`, multiples of `grid`, or codes, int8 or uint8, whose zero point `grid` is. weight: int8 `(out, in)`. offset: int32 `(out,)`. factor: float32 `(out,)` or `(1,)`.
// q = clamp(rint(float(sum - offset) * factor) + zero, low, high); what comes back is (q - zero) * result, or q where it is 0.
// float32. NotImplemented where an element of x is on no such grid.
PyObject* linear_of_codes(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 9, "linear_of_codes takes 9 arguments, got ", count);
  Layer layer;
  if (!layer.read(args) || layer.weight.dim() != 2 || layer.x.size(-1) != layer.weight.size(1)) {
    return PyErr_Occurred() != nullptr ? nullptr : not_implemented();
  }
  const int64_t inputs = layer.weight.size(1), outputs = layer.weight.size(0), rows = layer.x.numel() / inputs;
  std::vector<int64_t> sizes = layer.x.sizes().vec();
  sizes.back() = outputs;
  at::Tensor y;
  {
    const WithoutGil released;
    const at::AutoDispatchBelowAutograd below;
    WholeRows left(rows, inputs);
    if (whole_rows(layer.codes, left)) {
      const at::Tensor sums = at::empty({rows, outputs}, layer.factor.options().dtype(at::kInt));
      products_of_rows(left, layer.rows_of_weight(), sums.mutable_data_ptr<int32_t>());
      y = at::empty(sizes, layer.factor.options());
      requantize_rows(sums.const_data_ptr<int32_t>(), y.mutable_data_ptr<float>(), rows, outputs, layer.how);
    }
  }
  return y.defined() ? THPVariable_Wrap(std::move(y)) : not_implemented();
  END_HANDLE_TH_ERRORS
}

// convolution_of_codes(x, grid, weight, offset, factor, zero, low, high, result, stride, begin, end, dilation, groups)
//
// As above, of images x `(N, in, *space)` and a weight `(out, in / groups, *kernel)`; begin, end: zeros around the space.
PyObject* convolution_of_codes(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 14, "convolution_of_codes takes 14 arguments, got ", count);
  Layer layer;
  Windows windows{};
  if (!layer.read(args)) return PyErr_Occurred() != nullptr ? nullptr : not_implemented();
  const int64_t axes = layer.weight.dim() - 2;
  windows.groups = PyLong_AsLongLong(args[13]);
  if (axes < 1 || axes > 3 || layer.x.dim() != axes + 2 || !read_sizes(windows.stride, args[9], axes) ||
      !read_sizes(windows.begin, args[10], axes) || !read_sizes(windows.end, args[11], axes) ||
      !read_sizes(windows.dilation, args[12], axes) || windows.groups < 1 || layer.weight.size(0) % windows.groups != 0 ||
      layer.x.size(1) != layer.weight.size(1) * windows.groups) {
    return PyErr_Occurred() != nullptr ? nullptr : not_implemented();
  }
  windows.axes = axes;
  std::vector<int64_t> sizes{layer.x.size(0), layer.weight.size(0)};
  for (int64_t k = 0; k < axes; ++k) {
    windows.kernel[k] = layer.weight.size(2 + k);
    if (windows.stride[k] < 1 || windows.dilation[k] < 1 || windows.begin[k] < 0 || windows.end[k] < 0) return not_implemented();
    const int64_t reach = windows.dilation[k] * (windows.kernel[k] - 1) + 1;
    const int64_t room = layer.x.size(2 + k) + windows.begin[k] + windows.end[k] - reach;
    if (room < 0) return not_implemented();
    sizes.push_back(room / windows.stride[k] + 1);
  }
  at::Tensor y;
  bool on = false;
  {
    const WithoutGil released;
    const at::AutoDispatchBelowAutograd below;
    y = at::empty(sizes, layer.factor.options());
    on = convolve(layer.codes, sizes[0], layer.x.size(1), layer.x.sizes().data() + 2, layer.rows_of_weight(), windows,
                  sizes.data() + 2, layer.how, y.mutable_data_ptr<float>());
  }
  return on ? THPVariable_Wrap(std::move(y)) : not_implemented();
  END_HANDLE_TH_ERRORS
}

// products_of_codes(a, b)
//
// int32 `(…, rows, columns)` of whole numbers a `(…, rows, inputs)` and b `(…, columns, inputs)`, float32 without gaps, at most 255
// far from 0. NotImplemented where one is none.
PyObject* products_of_codes(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 2, "products_of_codes takes 2 arguments, got ", count);
  at::Tensor a, b, sums;
  if (is_watched() || !read_plain(a, args[0], at::kFloat) || !read_plain(b, args[1], at::kFloat) || a.dim() < 2 ||
      a.dim() != b.dim() || a.numel() == 0 || b.numel() == 0 || a.size(-1) != b.size(-1) || a.size(-1) > kLongestSum ||
      a.sizes().slice(0, a.dim() - 2) != b.sizes().slice(0, b.dim() - 2)) {
    return not_implemented();
  }
  const int64_t inputs = a.size(-1), rows = a.size(-2), columns = b.size(-2), batch = a.numel() / (rows * inputs);
  std::vector<int64_t> sizes = a.sizes().vec();
  sizes.back() = columns;
  std::atomic<bool> on{true};
  {
    const WithoutGil released;
    const at::AutoDispatchBelowAutograd below;
    sums = at::empty(sizes, a.options().dtype(at::kInt));
    const float *left = a.const_data_ptr<float>(), *right = b.const_data_ptr<float>();
    int32_t* to = sums.mutable_data_ptr<int32_t>();
    parallel_for(0, batch, 1, [&](int64_t first, int64_t last) {
      WholeRows x(rows, inputs), y(columns, inputs);
      for (int64_t k = first; k < last; ++k) {
        if (!whole_rows({left + k * rows * inputs, nullptr, nullptr, 1.0f, 0}, x) ||
            !whole_rows({right + k * columns * inputs, nullptr, nullptr, 1.0f, 0}, y)) {
          on = false;
          return;
        }
        products_of_rows(x, y, to + k * rows * columns);
      }
    });
  }
  return on ? THPVariable_Wrap(std::move(sums)) : not_implemented();
  END_HANDLE_TH_ERRORS
}

// quantized_values(x, scale, zero point, low, high)
//
// float32 of any shape, dequantized codes; NaN gives code 0.
PyObject* quantized_values(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 5, "quantized_values takes 5 arguments, got ", count);
  at::Tensor x, y;
  float number[4];
  for (int k = 0; k < 4; ++k) number[k] = static_cast<float>(PyFloat_AsDouble(args[1 + k]));
  if (PyErr_Occurred() != nullptr) return nullptr;
  if (is_watched() || !read_plain(x, args[0], at::kFloat)) return not_implemented();
  {
    const WithoutGil released;
    const at::AutoDispatchBelowAutograd below;
    y = at::empty(x.sizes(), x.options());
    const float* from = x.const_data_ptr<float>();
    float* to = y.mutable_data_ptr<float>();
    each_block(x.numel(), [&](int64_t i, int64_t n) {
      kernels().codes.quantized(from + i, to + i, n, number[0], number[1], number[2], number[3]);
    });
  }
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

// sum_of_codes(a, b, grids)
//
// grids: the eleven numbers of `SumGrids`. a, b: float32 of one shape, on their grids.
PyObject* sum_of_codes(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK(count == 3, "sum_of_codes takes 3 arguments, got ", count);
  at::Tensor a, b, y;
  if (is_watched() || !read_plain(a, args[0], at::kFloat) || !read_plain(b, args[1], at::kFloat) || a.sizes() != b.sizes() ||
      !PyTuple_CheckExact(args[2]) || PyTuple_GET_SIZE(args[2]) != 11) {
    return not_implemented();
  }
  float number[11];
  for (int k = 0; k < 11; ++k) number[k] = static_cast<float>(PyFloat_AsDouble(PyTuple_GET_ITEM(args[2], k)));
  if (PyErr_Occurred() != nullptr) return nullptr;
  const SumGrids grids{number[0], number[1], number[2], number[3], number[4], number[5],
                       number[6], number[7], number[8], number[9], number[10]};
  {
    const WithoutGil released;
    const at::AutoDispatchBelowAutograd below;
    y = at::empty(a.sizes(), a.options());
    const float *left = a.const_data_ptr<float>(), *right = b.const_data_ptr<float>();
    float* to = y.mutable_data_ptr<float>();
    each_block(a.numel(), [&](int64_t i, int64_t n) { kernels().codes.sum(left + i, right + i, to + i, n, grids); });
  }
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

}  // namespace truequant
