#include "channels.h"

#include <algorithm>
#include <cmath>

#include "blocks.h"
#include "dispatch.h"

namespace truequant {
namespace {

constexpr int64_t kRowsPerPart = 64;  // of columns, a power of two: a subtree of their sums

// Sums of `count` vectors of `width` numbers, neighbours first; in their own place.
void add_neighbours(double* values, int64_t count, int64_t width) {
  for (; count > 1; count = (count + 1) / 2) {
    for (int64_t i = 0; i < count / 2; ++i) {
      for (int64_t k = 0; k < width; ++k) values[i * width + k] = values[2 * i * width + k] + values[(2 * i + 1) * width + k];
    }
    if (count % 2) std::copy(values + (count - 1) * width, values + count * width, values + count / 2 * width);
  }
}

// The sum of `count` numbers that lie `stride` apart.
double total(const double* values, int64_t count, int64_t stride) {
  std::vector<double> own(count);
  for (int64_t i = 0; i < count; ++i) own[i] = values[i * stride];
  add_neighbours(own.data(), count, 1);
  return own[0] + 0.0;
}

// Bits of `source` behind the first `at` bits of a mask that is 0 from there on.
void append(uint8_t* mask, int64_t at, const uint8_t* source, int64_t bits) {
  const int shift = static_cast<int>(at & 7);
  uint8_t* to = mask + (at >> 3);
  for (int64_t i = 0; i < (bits + 7) / 8; ++i) {
    to[i] |= static_cast<uint8_t>(source[i] << shift);
    if (shift != 0 && (source[i] >> (8 - shift)) != 0) to[i + 1] |= static_cast<uint8_t>(source[i] >> (8 - shift));
  }
}

bool varies(const Layout& layout) { return layout.inner == 1 && layout.channels > 1; }

void widen(Seen& all, const Seen& part) {
  all.min = std::min(all.min, part.min);
  all.max = std::max(all.max, part.max);
  all.nan |= part.nan;
}

// `run(which run, its bits)` side by side, in parts whose masks begin with a byte.
template <class F>
void each_part(int64_t runs, int64_t length, uint8_t* bits, const F& run) {
  parallel_for(0, (runs + 7) / 8, grain(8 * length), [&](int64_t first, int64_t last) {
    std::vector<uint8_t> own(bits != nullptr && length % 8 != 0 ? length / 8 + 1 : 0);
    for (int64_t r = 8 * first; r < std::min(8 * last, runs); ++r) {
      if (own.empty()) {
        run(r, bits != nullptr ? bits + r * length / 8 : nullptr);
        continue;
      }
      run(r, own.data());
      const int64_t at = r * length;
      if ((at & 7) == 0) std::fill(bits + at / 8, bits + std::min((at + 8 * length + 7) / 8, (runs * length + 7) / 8), uint8_t{0});
      append(bits, at, own.data(), length);
    }
  });
}

}  // namespace

void quantize_by_channel(const Channels& channels, const void* x, Dtype dtype, void* y, uint8_t* mask, std::vector<Seen>* seen) {
  const Layout& layout = channels.layout;
  const Kernels& chosen = kernels();
  const int64_t c = layout.channels, runs = layout.outer * c;
  const int64_t most = threads().count();
  std::vector<Seen> watched(seen != nullptr ? most * c : 0, kNothing);
  if (varies(layout)) {
    std::vector<float> low(seen != nullptr ? most * c : 0, INFINITY), high(low.size(), -INFINITY);
    each_part(layout.outer, c, mask, [&](int64_t r, uint8_t* bits) {
      const int64_t own = threads().number() * c;
      chosen.learned.columns[dtype](at_element(x, dtype, r * c), at_element(y, dtype, r * c), bits, c, channels.grid,
                                    channels.scale.data(), channels.zero_point.data(), seen != nullptr ? low.data() + own : nullptr,
                                    seen != nullptr ? high.data() + own : nullptr);
    });
    for (size_t k = 0; k < low.size(); ++k) watched[k] = {low[k], high[k], std::isnan(low[k]), false};
  } else if (runs == 1) {
    Watch watch;
    Grid grid = channels.grid;
    grid.scale = channels.scale[0];
    grid.zero_point = channels.zero_point[0];
    each_block(layout.elements(), [&](int64_t i, int64_t count) {
      if (channels.rule == kBinary) {
        chosen.learned.binary[dtype](at_element(x, dtype, i), at_element(y, dtype, i), count, grid.scale);
      } else {
        chosen.forward[dtype][channels.clip](at_element(x, dtype, i), nullptr, at_element(y, dtype, i),
                                             mask != nullptr ? mask + i / 8 : nullptr, count, grid, watch.mine());
      }
    });
    if (seen != nullptr) watched[0] = watch.all();
  } else {
    each_part(runs, layout.inner, mask, [&](int64_t r, uint8_t* bits) {
      Grid grid = channels.grid;
      grid.scale = channels.scale[r % c];
      grid.zero_point = channels.zero_point[r % c];
      const char* from = at_element(x, dtype, r * layout.inner);
      char* to = at_element(y, dtype, r * layout.inner);
      if (channels.rule == kBinary) {
        chosen.learned.binary[dtype](from, to, layout.inner, grid.scale);
        return;
      }
      Seen part = kNothing;
      chosen.forward[dtype][channels.clip](from, nullptr, to, bits, layout.inner, grid, part);
      if (seen != nullptr) widen(watched[threads().number() * c + r % c], part);
    });
  }
  if (seen != nullptr) {
    seen->assign(c, kNothing);
    for (size_t k = 0; k < watched.size(); ++k) widen((*seen)[k % c], watched[k]);
  }
}

void gradients_by_channel(const Channels& channels, const void* g, const void* x, Dtype dtype, void* d,
                          std::vector<double>& scale, std::vector<double>& offset) {
  const Layout& layout = channels.layout;
  const LearnedKernels& chosen = kernels().learned;
  const bool offsets_too = channels.rule == kOffset;
  const int64_t c = layout.channels, inner = layout.inner, runs = layout.outer * c;
  scale.assign(c, 0.0);
  offset.assign(offsets_too ? c : 0, 0.0);
  if (varies(layout)) {
    const int64_t parts = (layout.outer + kRowsPerPart - 1) / kRowsPerPart, sums = offsets_too ? 2 : 1;
    std::vector<double> partial(parts * sums * c);
    parallel_for(0, parts, grain(kRowsPerPart * c), [&](int64_t first, int64_t last) {
      std::vector<float> terms(2 * c);
      std::vector<double> rows(kRowsPerPart * sums * c);
      for (int64_t p = first; p < last; ++p) {
        const int64_t begin = p * kRowsPerPart, count = std::min(kRowsPerPart, layout.outer - begin);
        for (int64_t r = 0; r < count; ++r) {
          const int64_t at = (begin + r) * c;
          chosen.column_gradients[dtype][channels.rule](at_element(g, dtype, at), at_element(x, dtype, at),
                                                        at_element(d, dtype, at), c, channels.grid, channels.scale.data(),
                                                        channels.zero_point.data(), terms.data(), terms.data() + c);
          std::copy(terms.begin(), terms.begin() + sums * c, rows.begin() + r * sums * c);
        }
        add_neighbours(rows.data(), count, sums * c);
        std::copy(rows.begin(), rows.begin() + sums * c, partial.begin() + p * sums * c);
      }
    });
    add_neighbours(partial.data(), parts, sums * c);
    for (int64_t k = 0; k < c; ++k) {
      scale[k] = partial[k] + 0.0;
      if (offsets_too) offset[k] = partial[c + k] + 0.0;
    }
    return;
  }
  const int64_t blocks = (inner + kBlock - 1) / kBlock;
  const auto block = [&](int64_t r, int64_t b, double* scale_lanes, double* offset_lanes) {
    Grid grid = channels.grid;
    grid.scale = channels.scale[r % c];
    grid.zero_point = channels.zero_point[r % c];
    const int64_t at = r * inner + b * kBlock, count = std::min(kBlock, inner - b * kBlock);
    chosen.gradients[dtype][channels.rule][channels.clip](at_element(g, dtype, at), at_element(x, dtype, at),
                                                          at_element(d, dtype, at), count, grid, scale_lanes, offset_lanes);
  };
  const auto finish = [&](double* lanes) {
    add_neighbours(lanes, blocks, kLanes);
    add_neighbours(lanes, kLanes, 1);
    return lanes[0];
  };
  std::vector<double> sums(2 * runs);
  if (runs == 1) {
    std::vector<double> lanes(2 * blocks * kLanes);
    double *scales = lanes.data(), *offsets = scales + blocks * kLanes;
    parallel_for(0, blocks, kBlocksPerThread, [&](int64_t first, int64_t last) {
      for (int64_t b = first; b < last; ++b) block(0, b, scales + b * kLanes, offsets + b * kLanes);
    });
    sums[0] = finish(scales);
    if (offsets_too) sums[1] = finish(offsets);
  } else {
    parallel_for(0, runs, grain(inner), [&](int64_t first, int64_t last) {
      std::vector<double> lanes(2 * blocks * kLanes);
      double *scales = lanes.data(), *offsets = scales + blocks * kLanes;
      for (int64_t r = first; r < last; ++r) {
        for (int64_t b = 0; b < blocks; ++b) block(r, b, scales + b * kLanes, offsets + b * kLanes);
        sums[r] = finish(scales);
        if (offsets_too) sums[runs + r] = finish(offsets);
      }
    });
  }
  for (int64_t k = 0; k < c; ++k) {
    scale[k] = total(sums.data() + k, layout.outer, c);
    if (offsets_too) offset[k] = total(sums.data() + runs + k, layout.outer, c);
  }
}

}  // namespace truequant
