#include "norm.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "blocks.h"
#include "dispatch.h"

namespace truequant {
namespace {

constexpr int64_t kElementsPerThread = 16384;
constexpr int64_t kPartitions = 32;  // of rows whose sums are added up afterwards, whatever the number of threads

int64_t grain(int64_t elements_each) { return std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(1, elements_each)); }

// `run(channel)` for all channels, side by side; each holds `rows / channels * length` elements.
template <class F>
void each_channel(const Runs& runs, const F& run) {
  const int64_t each = runs.rows / std::max<int64_t>(1, runs.channels) * runs.length;
  at::parallel_for(0, runs.channels, grain(each), [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) run(c);
  });
}

double total(const double (&lanes)[16]) {
  double sum[16];
  std::copy(lanes, lanes + 16, sum);
  for (int width = 8; width > 0; width /= 2) {
    for (int k = 0; k < width; ++k) sum[k] += sum[k + width];
  }
  return sum[0];
}

// Sums of each channel of a varying layout: partitions of rows side by side, then added in order.
template <class F>
void column_sums(const Runs& runs, std::vector<double>& sum, std::vector<double>& product, const F& add_row) {
  const int64_t c = runs.channels, parts = std::min(kPartitions, std::max<int64_t>(1, runs.rows));
  std::vector<double> partial(2 * parts * c, 0.0);
  at::parallel_for(0, parts, grain(runs.rows * c / parts), [&](int64_t first, int64_t last) {
    for (int64_t p = first; p < last; ++p) {
      double* own = partial.data() + 2 * p * c;
      for (int64_t r = runs.rows * p / parts; r < runs.rows * (p + 1) / parts; ++r) add_row(r, own, own + c);
    }
  });
  sum.assign(c, 0.0);
  product.assign(c, 0.0);
  for (int64_t p = 0; p < parts; ++p) {
    for (int64_t k = 0; k < c; ++k) {
      sum[k] += partial[2 * p * c + k];
      product[k] += partial[(2 * p + 1) * c + k];
    }
  }
}

at::Tensor channels_like(const Runs& runs) {
  return at::empty({runs.channels}, at::TensorOptions().dtype(at::kFloat));
}

}  // namespace

bool runs_of(Runs& runs, const at::Tensor& x) {
  if (x.dim() < 2 || x.numel() == 0) return false;
  const int64_t n = x.size(0), c = x.size(1), space = x.numel() / (n * c);
  if (x.dim() > 2 && x.is_contiguous()) {
    runs = {n * c, space, c, false};
    return true;
  }
  const bool last = x.dim() == 2   ? x.is_contiguous()
                    : x.dim() == 4 ? x.is_contiguous(at::MemoryFormat::ChannelsLast)
                    : x.dim() == 5 ? x.is_contiguous(at::MemoryFormat::ChannelsLast3d)
                                   : false;
  runs = {n * space, c, c, true};
  return last;
}

Moments batch_moments(const at::Tensor& x, const Runs& runs, double eps, float* running_mean, float* running_var,
                      double momentum) {
  Moments found{channels_like(runs), channels_like(runs)};
  const float* from = x.const_data_ptr<float>();
  float* mean = found.mean.mutable_data_ptr<float>();
  float* invstd = found.invstd.mutable_data_ptr<float>();
  const NormKernels& norm = kernels().norm;
  const double count = static_cast<double>(x.numel() / runs.channels);
  const auto finish = [&](int64_t c, double pivot, double sum, double product) {
    const double offset = sum / count;
    const double variance = std::max(product / count - offset * offset, 0.0) + (product - product);  // NaN stays
    mean[c] = static_cast<float>(pivot + offset);
    invstd[c] = static_cast<float>(1.0 / std::sqrt(variance + eps));
    if (running_mean != nullptr) {
      const double unbiased = variance * count / (count - 1.0);
      running_mean[c] = static_cast<float>(momentum * (pivot + offset) + (1.0 - momentum) * running_mean[c]);
      running_var[c] = static_cast<float>(momentum * unbiased + (1.0 - momentum) * running_var[c]);
    }
  };
  if (runs.varying) {
    std::vector<double> sum, product;
    column_sums(runs, sum, product, [&](int64_t r, double* s, double* p) {
      norm.column_moments(from + r * runs.length, runs.length, from, s, p);
    });
    for (int64_t c = 0; c < runs.channels; ++c) finish(c, from[c], sum[c], product[c]);
  } else {
    each_channel(runs, [&](int64_t c) {
      Lanes lanes{};
      const float pivot = from[c * runs.length];
      for (int64_t r = c; r < runs.rows; r += runs.channels) norm.moments(from + r * runs.length, runs.length, pivot, lanes);
      finish(c, pivot, total(lanes.sum), total(lanes.product));
    });
  }
  return found;
}

void normalized(const at::Tensor& x, const Runs& runs, const Moments& moments, const float* gamma, const float* beta,
                const Grid& grid, Clip clip, at::Tensor* y, at::Tensor* mask, Seen& seen, Counting* counting) {
  if (y != nullptr) *y = at::empty_like(x);
  if (mask != nullptr) *mask = at::empty({runs.rows * runs.mask_stride()}, at::TensorOptions().dtype(at::kByte));
  const float* from = x.const_data_ptr<float>();
  float* to = y != nullptr ? y->mutable_data_ptr<float>() : nullptr;
  uint8_t* bits = mask != nullptr ? mask->mutable_data_ptr<uint8_t>() : nullptr;
  const float* mean = moments.mean.const_data_ptr<float>();
  const float* invstd = moments.invstd.const_data_ptr<float>();
  const auto normalize = kernels().norm.normalize[clip];
  const auto unclipped = kernels().norm.scaled;
  const auto quantize = kernels().forward[kFloat][clip];
  std::vector<float> factor(runs.channels), shift(runs.channels);
  for (int64_t c = 0; c < runs.channels; ++c) {
    factor[c] = gamma != nullptr ? invstd[c] * gamma[c] : invstd[c];
    shift[c] = (beta != nullptr ? beta[c] : 0.0f) - mean[c] * factor[c];
  }
  Watch watch;
  const auto counted = [&](int64_t r, int64_t c) {
    float values[kBlock];
    for (int64_t i = 0; i < runs.length; i += kBlock) {
      const int64_t at = r * runs.length + i, count = std::min(kBlock, runs.length - i), k = runs.varying ? i : c;
      unclipped(from + at, values, count, factor.data() + k, shift.data() + k, runs.varying);
      counting->add(values, nullptr, kFloat, clip, count, grid);
      if (to == nullptr) continue;
      quantize(values, nullptr, to + at, bits != nullptr ? bits + r * runs.mask_stride() + i / 8 : nullptr, count, grid, watch.mine());
    }
  };
  const auto run = [&](int64_t r, int64_t c) {
    if (counting != nullptr) return counted(r, c);
    normalize(from + r * runs.length, to != nullptr ? to + r * runs.length : nullptr,
              bits != nullptr ? bits + r * runs.mask_stride() : nullptr, runs.length, factor.data() + c, shift.data() + c,
              runs.varying, grid, watch.mine());
  };
  at::parallel_for(0, runs.rows, grain(runs.length), [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) run(r, runs.varying ? 0 : r % runs.channels);
  });
  seen = watch.all();
}

NormGradients norm_gradients(const at::Tensor& gradient, const at::Tensor& mask, const at::Tensor& x, const Runs& runs,
                             const Moments& moments, const at::Tensor& gamma, bool wants_x, bool spent) {
  NormGradients found{at::Tensor(), channels_like(runs), channels_like(runs)};
  const float* g = gradient.const_data_ptr<float>();
  const float* from = x.const_data_ptr<float>();
  const uint8_t* bits = mask.defined() ? mask.const_data_ptr<uint8_t>() : nullptr;
  const auto bits_of = [&](int64_t r) { return bits != nullptr ? bits + r * runs.mask_stride() : nullptr; };
  const float* mean = moments.mean.const_data_ptr<float>();
  const float* invstd = moments.invstd.const_data_ptr<float>();
  const float* weight = gamma.defined() ? gamma.const_data_ptr<float>() : nullptr;
  float* d_gamma = found.gamma.mutable_data_ptr<float>();
  float* d_beta = found.beta.mutable_data_ptr<float>();
  const NormKernels& norm = kernels().norm;
  const double count = static_cast<double>(x.numel() / runs.channels);
  std::vector<float> slope(runs.channels), offset(runs.channels), factor(runs.channels);
  const auto finish = [&](int64_t c, double sum, double product) {
    const double inverse = invstd[c];
    d_beta[c] = static_cast<float>(sum);
    d_gamma[c] = static_cast<float>(product * inverse);
    offset[c] = static_cast<float>(sum / count);
    slope[c] = static_cast<float>(product * inverse * inverse / count);
    factor[c] = weight != nullptr ? invstd[c] * weight[c] : invstd[c];
  };
  float* d = nullptr;
  if (wants_x) {
    found.x = spent ? gradient : at::empty_like(x);
    d = found.x.mutable_data_ptr<float>();
  }
  const auto run = [&](int64_t r, int64_t c) {
    const NormGradient of{mean + c, slope.data() + c, offset.data() + c, factor.data() + c};
    norm.gradient(g + r * runs.length, bits_of(r), from + r * runs.length, d + r * runs.length, runs.length, of, runs.varying);
  };
  if (runs.varying) {
    std::vector<double> sum, product;
    column_sums(runs, sum, product, [&](int64_t r, double* s, double* p) {
      norm.column_gradient_sums(g + r * runs.length, bits_of(r), from + r * runs.length, runs.length, mean, s, p);
    });
    for (int64_t c = 0; c < runs.channels; ++c) finish(c, sum[c], product[c]);
    if (!wants_x) return found;
    at::parallel_for(0, runs.rows, grain(runs.length), [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) run(r, 0);
    });
  } else {
    each_channel(runs, [&](int64_t c) {
      Lanes lanes{};
      for (int64_t r = c; r < runs.rows; r += runs.channels) {
        norm.gradient_sums(g + r * runs.length, bits_of(r), from + r * runs.length, runs.length, mean[c], lanes);
      }
      finish(c, total(lanes.sum), total(lanes.product));
      if (!wants_x) return;
      for (int64_t r = c; r < runs.rows; r += runs.channels) run(r, c);
    });
  }
  return found;
}

}  // namespace truequant
