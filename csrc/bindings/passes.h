// Kernels on tensors: their geometry, memory for results. No autograd.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "../kernels/channels.h"
#include "../kernels/grid.h"
#include "../kernels/norm.h"
#include "../kernels/sums.h"
#include "../kernels/weights.h"

namespace truequant {

// Fake quantization of clip(a), or of clip(a + b); `mask` may be null; `seen` is what was quantized, which `counting` counts
// unless it is null. Tensors are dense. The result takes the memory of `a` where that is `spent`.
at::Tensor quantized(const at::Tensor& a, const at::Tensor* b, const Grid& grid, Clip clip, bool spent, at::Tensor* mask,
                     Seen& seen, Counting* counting = nullptr);

// What `quantized` sees, and nothing else: it is counted, where there is something that counts, or returned.
Seen watched(const at::Tensor& a, const at::Tensor* b, const Grid& grid, Clip clip, Counting* counting);

// The gradient where the mask of a tensor of these sizes and strides says so, in its own memory where that is `spent`.
at::Tensor masked(const at::Tensor& gradient, const at::Tensor& mask, at::IntArrayRef sizes, at::IntArrayRef strides, bool spent);

// The layout of the dense tensor `x` for `scale`, which broadcasts against it; false where its entries vary along more than one
// axis.
bool layout_of(Layout& layout, const at::Tensor& x, const at::Tensor& scale);

// For a scale for each index of an axis, which counts from the end where it is negative; false where there is none.
bool layout_along(Layout& layout, const at::Tensor& x, int64_t axis);

// `x` on its grid. `mask` and `seen` (an entry a channel) may be null; a mask is not made for binary codes, nor `seen`.
at::Tensor quantized_channels(const at::Tensor& x, const Channels& channels, at::Tensor* mask, std::vector<Seen>* seen);

struct LearnedGradients {
  at::Tensor x;
  std::vector<double> scale, offset;
};

// Gradients of that from the gradient of its result, which lies as `x` does.
LearnedGradients learned_gradients(const at::Tensor& gradient, const at::Tensor& x, const Channels& channels);

// The rows of `weight` for `scales` scales; false where they do not lie one behind the other in memory.
bool rows_of(Rows& rows, const at::Tensor& weight, int64_t scales, int64_t group);

// `weight` on its grid. Where `ranges`, each row's scale is computed first and written to `scale`. `mask` is undefined
// afterwards where every gradient passes, or none is wanted.
at::Tensor quantized_weight(const at::Tensor& weight, float* scale, const Rows& rows, const Scheme& scheme, bool ranges,
                            bool differentiable, at::Tensor& mask);

// False where the layout is neither contiguous nor channels-last.
bool runs_of(Runs& runs, const at::Tensor& x);

struct Moments {
  at::Tensor mean, invstd;  // float32, (C,)
};

// Mean and inverse standard deviation of the batch; `running_mean` and `running_var` (undefined: none) move by `momentum`.
Moments moments_of(const at::Tensor& x, const Runs& runs, double eps, const at::Tensor& running_mean,
                   const at::Tensor& running_var, double momentum);

// What `quantize_normal` makes. gamma and beta may be undefined; without `y` it only observes. `mask` and `counting` may be null.
Seen normalized(const at::Tensor& x, const Runs& runs, const Moments& moments, const at::Tensor& gamma, const at::Tensor& beta,
                const Grid& grid, Clip clip, at::Tensor* y, at::Tensor* mask, Counting* counting);

struct NormGradients {
  at::Tensor x, gamma, beta;
};

// Gradients of all that from the gradient of its result; `mask` may be undefined: everywhere. x and gradient lie alike. That of
// x takes the memory of `gradient` where that is `spent`.
NormGradients norm_gradients(const at::Tensor& gradient, const at::Tensor& mask, const at::Tensor& x, const Runs& runs,
                             const Moments& moments, const at::Tensor& gamma, bool wants_x, bool spent);

// `x @ weight.T + bias` (undefined: none), float32: the exact sum of the products of codes, rounded to float32, times the product
// of the scales, plus the bias. Undefined where an operand does not lie on its grid, where this CPU has no kernel that sums
// exactly, or where there are too few rows for one to be quicker. `x` as `linear` takes it.
at::Tensor product_of_codes(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, const ProductGrids& grids);

}  // namespace truequant
