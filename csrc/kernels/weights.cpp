#include "weights.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "blocks.h"
#include "dispatch.h"

namespace truequant {
namespace {

// The scale of what was seen. An end that is not finite counts as 0.
float scale_of(const Seen& seen, const Scheme& scheme) {
  const float low = !seen.nan && std::isfinite(seen.min) ? seen.min : 0.0f;
  const float high = !seen.nan && std::isfinite(seen.max) ? seen.max : 0.0f;
  return scale_and_zero_point(low, high, scheme).scale;
}

Grid grid_of(const Scheme& scheme) {
  Grid grid{};
  grid.qmin = scheme.qmin;
  grid.qmax = scheme.qmax;
  grid.straight = scheme.identity ? ~0u : 0u;
  return grid;
}

}  // namespace

// The bits of each row, one behind the other. Rows begin inside bytes, so that one thread does it; few weights need it.
void mask_rows(const void* weight, Dtype dtype, const float* scale, const Rows& rows, const Scheme& scheme, uint8_t* mask) {
  std::fill(mask, mask + (rows.elements() + 7) / 8, uint8_t{0});
  const auto forward = kernels().forward[dtype][kNone];
  const int64_t longest = std::min(rows.group, rows.channel_length);
  std::vector<uint8_t> own((longest + 7) / 8);
  std::vector<char> ignored(longest * size_of(dtype));
  Grid grid = grid_of(scheme);
  for (int64_t row = 0; row < rows.count; ++row) {
    const int64_t begin = rows.begin(row), length = rows.length(row);
    Seen seen = kNothing;
    grid.scale = scale[row];
    forward(at_element(weight, dtype, begin), nullptr, ignored.data(), own.data(), length, grid, seen);
    for (int64_t i = 0; i < length; ++i) {
      mask[(begin + i) >> 3] |= static_cast<uint8_t>((own[i >> 3] >> (i & 7) & 1) << ((begin + i) & 7));
    }
  }
}

bool quantize_rows(const void* weight, Dtype dtype, void* y, float* scale, const Rows& rows, const Scheme& scheme, bool ranges) {
  const auto forward = kernels().forward[dtype][kNone];
  const auto range = kernels().range[dtype];
  Grid grid = grid_of(scheme);
  std::atomic<bool> stopped{false};
  if (rows.count == 1) {
    if (ranges) {
      Watch watch;
      each_block(rows.elements(), [&](int64_t i, int64_t count) { range(at_element(weight, dtype, i), count, watch.mine()); });
      *scale = scale_of(watch.all(), scheme);
    }
    grid.scale = *scale;
    Watch watch;
    each_block(rows.elements(), [&](int64_t i, int64_t count) {
      forward(at_element(weight, dtype, i), nullptr, at_element(y, dtype, i), nullptr, count, grid, watch.mine());
    });
    stopped = watch.all().stopped;
  } else {
    parallel_for(0, rows.count, grain(rows.elements() / rows.count), [&](int64_t first, int64_t last) {
      Grid own = grid;
      bool any = false;
      for (int64_t row = first; row < last; ++row) {
        const int64_t begin = rows.begin(row), n = rows.length(row);
        if (ranges) {
          Seen seen = kNothing;
          range(at_element(weight, dtype, begin), n, seen);
          if (rows.grouped && seen.nan) {  // of a group, only a NaN at its head spoils the range
            Seen head = kNothing;
            range(at_element(weight, dtype, begin), 1, head);
            seen.nan = head.nan;
          }
          scale[row] = scale_of(seen, scheme);
        }
        own.scale = scale[row];
        Seen seen = kNothing;
        forward(at_element(weight, dtype, begin), nullptr, at_element(y, dtype, begin), nullptr, n, own, seen);
        any |= seen.stopped;
      }
      if (any) stopped = true;
    });
  }
  return stopped;
}

}  // namespace truequant
