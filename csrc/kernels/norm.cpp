#include "norm.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "blocks.h"
#include "dispatch.h"

namespace truequant {
namespace {

constexpr int64_t kPartitions = 32;  // of rows whose sums are added up afterwards, whatever the number of threads

// `run(channel)` for all channels, side by side; each holds `rows / channels * length` elements.
template <class F>
void each_channel(const Runs& runs, const F& run) {
  const int64_t each = runs.rows / std::max<int64_t>(1, runs.channels) * runs.length;
  parallel_for(0, runs.channels, grain(each), [&](int64_t first, int64_t last) {
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
  parallel_for(0, parts, grain(runs.rows * c / parts), [&](int64_t first, int64_t last) {
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

// The BatchNorm of a channel as a product and a sum.
float factor_of(const Normal& normal, int64_t c) {
  return normal.gamma != nullptr ? normal.invstd[c] * normal.gamma[c] : normal.invstd[c];
}

}  // namespace

void batch_moments(const float* x, const Runs& runs, double eps, float* mean, float* invstd, float* running_mean,
                   float* running_var, double momentum) {
  const NormKernels& norm = kernels().norm;
  const double count = static_cast<double>(runs.elements_each());
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
      norm.column_moments(x + r * runs.length, runs.length, x, s, p);
    });
    for (int64_t c = 0; c < runs.channels; ++c) finish(c, x[c], sum[c], product[c]);
  } else {
    each_channel(runs, [&](int64_t c) {
      Lanes lanes{};
      const float pivot = x[c * runs.length];
      for (int64_t r = c; r < runs.rows; r += runs.channels) norm.moments(x + r * runs.length, runs.length, pivot, lanes);
      finish(c, pivot, total(lanes.sum), total(lanes.product));
    });
  }
}

Seen quantize_normal(const float* x, const Runs& runs, const Normal& normal, const Grid& grid, Clip clip, float* y, uint8_t* mask,
                     Counting* counting) {
  const auto normalize = kernels().norm.normalize[clip];
  const auto unclipped = kernels().norm.scaled;
  const auto quantize = kernels().forward[kFloat][clip];
  std::vector<float> factor(runs.channels), shift(runs.channels);
  for (int64_t c = 0; c < runs.channels; ++c) {
    factor[c] = factor_of(normal, c);
    shift[c] = (normal.beta != nullptr ? normal.beta[c] : 0.0f) - normal.mean[c] * factor[c];
  }
  Watch watch;
  const auto counted = [&](int64_t r, int64_t c) {
    float values[kBlock];
    for (int64_t i = 0; i < runs.length; i += kBlock) {
      const int64_t at = r * runs.length + i, count = std::min(kBlock, runs.length - i), k = runs.varying ? i : c;
      unclipped(x + at, values, count, factor.data() + k, shift.data() + k, runs.varying);
      counting->add(values, nullptr, kFloat, clip, count, grid);
      if (y == nullptr) continue;
      uint8_t* bits = mask != nullptr ? mask + r * runs.mask_stride() + i / 8 : nullptr;
      quantize(values, nullptr, y + at, bits, count, grid, watch.mine());
    }
  };
  const auto run = [&](int64_t r, int64_t c) {
    if (counting != nullptr) return counted(r, c);
    normalize(x + r * runs.length, y != nullptr ? y + r * runs.length : nullptr,
              mask != nullptr ? mask + r * runs.mask_stride() : nullptr, runs.length, factor.data() + c, shift.data() + c,
              runs.varying, grid, watch.mine());
  };
  parallel_for(0, runs.rows, grain(runs.length), [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) run(r, runs.varying ? 0 : r % runs.channels);
  });
  return watch.all();
}

void normal_gradients(const float* g, const uint8_t* mask, const float* x, const Runs& runs, const Normal& normal, float* d,
                      float* d_gamma, float* d_beta) {
  const auto mask_of = [&](int64_t r) { return mask != nullptr ? mask + r * runs.mask_stride() : nullptr; };
  const NormKernels& norm = kernels().norm;
  const double count = static_cast<double>(runs.elements_each());
  std::vector<float> slope(runs.channels), offset(runs.channels), factor(runs.channels);
  const auto finish = [&](int64_t c, double sum, double product) {
    const double inverse = normal.invstd[c];
    d_beta[c] = static_cast<float>(sum);
    d_gamma[c] = static_cast<float>(product * inverse);
    offset[c] = static_cast<float>(sum / count);
    slope[c] = static_cast<float>(product * inverse * inverse / count);
    factor[c] = factor_of(normal, c);
  };
  const auto run = [&](int64_t r, int64_t c) {
    const NormGradient of{normal.mean + c, slope.data() + c, offset.data() + c, factor.data() + c};
    norm.gradient(g + r * runs.length, mask_of(r), x + r * runs.length, d + r * runs.length, runs.length, of, runs.varying);
  };
  if (runs.varying) {
    std::vector<double> sum, product;
    column_sums(runs, sum, product, [&](int64_t r, double* s, double* p) {
      norm.column_gradient_sums(g + r * runs.length, mask_of(r), x + r * runs.length, runs.length, normal.mean, s, p);
    });
    for (int64_t c = 0; c < runs.channels; ++c) finish(c, sum[c], product[c]);
    if (d == nullptr) return;
    parallel_for(0, runs.rows, grain(runs.length), [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) run(r, 0);
    });
  } else {
    each_channel(runs, [&](int64_t c) {
      Lanes lanes{};
      for (int64_t r = c; r < runs.rows; r += runs.channels) {
        norm.gradient_sums(g + r * runs.length, mask_of(r), x + r * runs.length, runs.length, normal.mean[c], lanes);
      }
      finish(c, total(lanes.sum), total(lanes.product));
      if (d == nullptr) return;
      for (int64_t r = c; r < runs.rows; r += runs.channels) run(r, c);
    });
  }
}

}  // namespace truequant
