// What kernels ask of a tensor, and memory for their results. No autograd.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "../kernels/values.h"

namespace truequant {

// Whether a tensor is memory of this CPU that a kernel may read as it is: no subclass, no transform, no fake tensor.
bool is_plain(const at::Tensor& x);

// Whether kernels know the dtype.
bool is_known(at::ScalarType dtype);

inline Dtype dtype_of(at::ScalarType dtype) {
  return dtype == at::kFloat ? kFloat : dtype == at::kBFloat16 ? kBFloat16 : kHalf;
}

// Whether an interpreter (dispatch modes, functional transforms, tracing) wants to see every op of torch's.
bool is_watched();

// Tells autograd that a kernel has written into `x`, as it knows of every op in place.
void written(const at::Tensor& x);

// The elements of `x` without gaps, in the order of its strides: `x` itself where it has none.
at::Tensor dense(const at::Tensor& x);

// Memory for n numbers.
at::Tensor new_numbers(int64_t n, at::ScalarType dtype);

// A copy of float32 numbers, in these sizes.
at::Tensor new_floats(const std::vector<float>& values, at::IntArrayRef sizes);

// Memory in the geometry of `x`, which is dense.
at::Tensor new_like(const at::Tensor& x);

// A bit for each of n elements.
at::Tensor new_mask(int64_t n);

// Whether nobody but the caller could ever read what lies in the memory of `x`: no other tensor, no graph, no Python object.
bool is_owned(const at::Tensor& x);

}  // namespace truequant
