#include "weights.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "blocks.h"
#include "dispatch.h"
#include "tensors.h"

namespace truequant {
namespace {

constexpr int64_t kElementsPerThread = 16384;

// The scale of what was seen. An end that is not finite counts as 0.
float scale_of(const Seen& seen, const Scheme& scheme) {
  const float low = !seen.nan && std::isfinite(seen.min) ? seen.min : 0.0f;
  const float high = !seen.nan && std::isfinite(seen.max) ? seen.max : 0.0f;
  return scale_and_zero_point(low, high, scheme).scale;
}

// The bits of each row, one behind the other. Rows begin inside bytes, so that one thread does it; few weights need it.
at::Tensor mask_of(const at::Tensor& weight, const float* scale, const Rows& rows, Grid grid) {
  at::Tensor mask = new_mask(weight.numel());
  uint8_t* bits = mask.mutable_data_ptr<uint8_t>();
  std::fill(bits, bits + mask.numel(), uint8_t{0});
  const auto forward = kernels().forward[dtype_of(weight.scalar_type())][kNone];
  const int64_t longest = std::min(rows.group, rows.channel_length);
  std::vector<uint8_t> own((longest + 7) / 8);
  at::Tensor ignored = at::empty({longest}, weight.options());
  for (int64_t row = 0; row < rows.count; ++row) {
    const int64_t begin = rows.begin(row), length = rows.length(row);
    Seen seen = kNothing;
    grid.scale = scale[row];
    forward(at_element(weight, begin), nullptr, at_element(ignored, 0), own.data(), length, grid, seen);
    for (int64_t i = 0; i < length; ++i) {
      bits[(begin + i) >> 3] |= static_cast<uint8_t>((own[i >> 3] >> (i & 7) & 1) << ((begin + i) & 7));
    }
  }
  return mask;
}

}  // namespace

bool rows_of(Rows& rows, const at::Tensor& weight, int64_t scales, int64_t group) {
  const int64_t n = weight.numel(), channels = weight.dim() > 0 ? weight.size(0) : 1;
  if (n == 0 || !weight.is_non_overlapping_and_dense()) return false;
  if (scales == 1 && group == 0) {
    rows = {1, 1, n, n, false};
    return true;
  }
  const int64_t length = n / channels;
  if (channels > 1 && weight.stride(0) != length) return false;
  if (group == 0) {
    rows = {channels, 1, length, length, false};
  } else {
    if (!weight.is_contiguous()) return false;
    const int64_t groups = (length + group - 1) / group;
    rows = {channels * groups, groups, length, group, true};
  }
  return rows.count == scales;
}

at::Tensor quantized_weight(const at::Tensor& weight, float* scale, const Rows& rows, const Scheme& scheme, bool ranges,
                            bool differentiable, at::Tensor& mask) {
  at::Tensor y = new_like(weight);
  const Dtype dtype = dtype_of(weight.scalar_type());
  const auto forward = kernels().forward[dtype][kNone];
  const auto range = kernels().range[dtype];
  Grid grid{};
  grid.qmin = scheme.qmin;
  grid.qmax = scheme.qmax;
  grid.straight = scheme.identity ? ~0u : 0u;
  std::atomic<bool> stopped{false};
  if (rows.count == 1) {
    if (ranges) {
      Watch watch;
      each_block(weight.numel(), [&](int64_t i, int64_t count) { range(at_element(weight, i), count, watch.mine()); });
      *scale = scale_of(watch.all(), scheme);
    }
    grid.scale = *scale;
    Watch watch;
    each_block(weight.numel(), [&](int64_t i, int64_t count) {
      forward(at_element(weight, i), nullptr, at_element(y, i), nullptr, count, grid, watch.mine());
    });
    stopped = watch.all().stopped;
  } else {
    const int64_t length = std::max<int64_t>(1, weight.numel() / rows.count);
    at::parallel_for(0, rows.count, std::max<int64_t>(1, kElementsPerThread / length), [&](int64_t first, int64_t last) {
      Grid own = grid;
      bool any = false;
      for (int64_t row = first; row < last; ++row) {
        const int64_t begin = rows.begin(row), n = rows.length(row);
        if (ranges) {
          Seen seen = kNothing;
          range(at_element(weight, begin), n, seen);
          if (rows.grouped && seen.nan) {  // of a group, only a NaN at its head spoils the range
            Seen head = kNothing;
            range(at_element(weight, begin), 1, head);
            seen.nan = head.nan;
          }
          scale[row] = scale_of(seen, scheme);
        }
        own.scale = scale[row];
        Seen seen = kNothing;
        forward(at_element(weight, begin), nullptr, at_element(y, begin), nullptr, n, own, seen);
        any |= seen.stopped;
      }
      if (any) stopped = true;
    });
  }
  if (stopped && differentiable) mask = mask_of(weight, scale, rows, grid);
  return y;
}

}  // namespace truequant
