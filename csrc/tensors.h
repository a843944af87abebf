// Kernels on tensors: layout, threads, allocation. No autograd.
#pragma once

#include <ATen/core/Tensor.h>

#include "grid.h"
#include "histogram.h"
#include "kernels.h"

namespace truequant {

// Whether a tensor is memory of this CPU that a kernel may read as it is: no subclass, no transform, no fake tensor.
bool is_plain(const at::Tensor& x);

// Whether kernels know the dtype.
bool is_known(at::ScalarType dtype);

// Whether an interpreter (dispatch modes, functional transforms, tracing) wants to see every op of torch's.
bool is_watched();

// Tells autograd that a kernel has written into `x`, as it knows of every op in place.
void written(const at::Tensor& x);

// The elements of `x` without gaps, in the order of its strides: `x` itself where it has none.
at::Tensor dense(const at::Tensor& x);

// Memory for n numbers.
at::Tensor new_numbers(int64_t n, at::ScalarType dtype);

// Memory in the geometry of `x`, which is dense.
at::Tensor new_like(const at::Tensor& x);

// A bit for each of n elements.
at::Tensor new_mask(int64_t n);

// Whether nobody but the caller could ever read what lies in the memory of `x`: no other tensor, no graph, no Python object.
bool is_owned(const at::Tensor& x);

// Fake quantization of clip(a), or of clip(a + b); `mask` may be null; `seen` is what was quantized, which `counting` counts
// unless it is null. Tensors are dense. The result takes the memory of `a` where that is `spent`.
at::Tensor quantized(const at::Tensor& a, const at::Tensor* b, const Grid& grid, Clip clip, bool spent, at::Tensor* mask,
                     Seen& seen, Counting* counting = nullptr);

// What `quantized` sees, and nothing else. Tensors are dense.
Seen watched(const at::Tensor& a, const at::Tensor* b, const Grid& grid, Clip clip);

// The gradient where the mask of a tensor of these sizes and strides says so, in its own memory where that is `spent`.
at::Tensor masked(const at::Tensor& gradient, const at::Tensor& mask, at::IntArrayRef sizes, at::IntArrayRef strides, bool spent);

}  // namespace truequant
