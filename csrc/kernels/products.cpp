#include "products.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <memory>

#include "blocks.h"
#include "dispatch.h"

namespace truequant {
namespace {

// Inputs of a panel, so that it stays in the first cache while the rows pass by, and rows that stay in the second.
constexpr int64_t kDepth = 512, kRowsAtOnce = 96, kMostColumns = 32, kMostRows = 12;

// Memory for panels, a line of the cache after the other.
class Panels {
 public:
  explicit Panels(int64_t numbers)
      : memory_(new std::byte[static_cast<size_t>(numbers) * 2 + 64]),
        first_(memory_.get() + (64 - reinterpret_cast<uintptr_t>(memory_.get()) % 64)) {}
  int16_t* data() const { return reinterpret_cast<int16_t*>(first_); }

 private:
  std::unique_ptr<std::byte[]> memory_;
  std::byte* first_;
};

// One tile of rows `first … first + rows - 1`; what lies beyond the last row or column is computed and thrown away.
void tile(const WholeRows& a, int64_t first, int64_t rows, int64_t depth, const int16_t* panel, int64_t pairs, int32_t* sums,
          int64_t stride, int64_t columns, bool add) {
  const ProductKernels& kernel = kernels().products;
  const int16_t* at[kMostRows];
  for (int64_t r = 0; r < kernel.rows; ++r) at[r] = a.row(first + std::min(r, rows - 1)) + depth;
  if (rows == kernel.rows && columns == kernel.columns) {
    kernel.tile(at, panel, pairs, sums, stride, add);
    return;
  }
  int32_t whole[kMostRows * kMostColumns] = {};
  if (add) {
    for (int64_t r = 0; r < rows; ++r) std::memcpy(whole + r * kernel.columns, sums + r * stride, columns * 4);
  }
  kernel.tile(at, panel, pairs, whole, kernel.columns, add);
  for (int64_t r = 0; r < rows; ++r) std::memcpy(sums + r * stride, whole + r * kernel.columns, columns * 4);
}

}  // namespace

WholeRows::WholeRows(int64_t rows, int64_t inputs)
    : rows_(rows), inputs_(inputs), pitch_((inputs + 1) / 2 * 2), numbers_(static_cast<size_t>(rows * pitch_)) {}

bool Codes::read(int64_t i, int64_t n, int16_t* to) const {
  if (values != nullptr) return kernels().products.whole(values + i, to, n, scale);
  if (bytes != nullptr) {
    for (int64_t k = 0; k < n; ++k) to[k] = static_cast<int16_t>(bytes[i + k] - zero_point);
  } else {
    for (int64_t k = 0; k < n; ++k) to[k] = static_cast<int16_t>(unsigned_bytes[i + k] - zero_point);
  }
  return true;
}

bool whole_rows(const Codes& from, WholeRows& to) {
  std::atomic<bool> on{true};
  parallel_for(0, to.rows(), grain(to.inputs()), [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last && on.load(std::memory_order_relaxed); ++r) {
      if (!from.read(r * to.inputs(), to.inputs(), to.row(r))) on = false;
    }
  });
  return on;
}

void products_of_rows(const WholeRows& a, const WholeRows& b, int32_t* sums) {
  const ProductKernels& kernel = kernels().products;
  const int64_t outputs = b.rows(), pitch = a.pitch(), columns = kernel.columns;
  const int64_t panels = (outputs + columns - 1) / columns;
  const Panels packed(panels * columns * pitch);  // panel after panel
  parallel_for(0, panels, grain(columns * pitch), [&](int64_t first, int64_t last) {
    for (int64_t panel = first; panel < last; ++panel) {
      const int16_t* from[kMostColumns];
      for (int64_t c = 0; c < columns; ++c) from[c] = b.row(std::min(panel * columns + c, outputs - 1));
      int16_t* to = packed.data() + panel * columns * pitch;
      for (int64_t i = 0; i < pitch; i += 2) {
        for (int64_t c = 0; c < columns; ++c, to += 2) std::memcpy(to, from[c] + i, 4);
      }
    }
  });
  const int64_t blocks = (a.rows() + kRowsAtOnce - 1) / kRowsAtOnce;
  const int64_t parts = std::min(panels, std::max<int64_t>(1, 4 * threads().count() / blocks));  // of all panels
  parallel_for(0, blocks * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t top = task / parts * kRowsAtOnce, bottom = std::min(a.rows(), top + kRowsAtOnce);
      const int64_t left = task % parts * panels / parts, right = (task % parts + 1) * panels / parts;
      for (int64_t depth = 0; depth < pitch; depth += kDepth) {
        const int64_t pairs = std::min(kDepth, pitch - depth) / 2;
        for (int64_t panel = left; panel < right; ++panel) {
          const int16_t* from = packed.data() + panel * columns * pitch + depth * columns;
          const int64_t wide = std::min(columns, outputs - panel * columns);
          for (int64_t row = top; row < bottom; row += kernel.rows) {
            int32_t* to = sums + row * outputs + panel * columns;
            tile(a, row, std::min(kernel.rows, bottom - row), depth, from, pairs, to, outputs, wide, depth > 0);
          }
        }
      }
    }
  });
}

void requantize_rows(const int32_t* sums, float* y, int64_t rows, int64_t outputs, const Requantization& how) {
  std::vector<float> factor;
  if (how.factors == 1) factor.assign(static_cast<size_t>(outputs), how.factor[0]);
  const float* by = how.factors == 1 ? factor.data() : how.factor;
  parallel_for(0, rows, grain(outputs), [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      kernels().products.requantized(sums + r * outputs, y + r * outputs, outputs, how.offset, by, 1, how.zero, how.low, how.high,
                                     how.scale);
    }
  });
}

namespace {

// Images as whole numbers, with a border of zeros around their space; of fewer than three axes the first have size 1.
struct Images {
  int64_t channels, size[3], begin[3], place;  // place: numbers of one channel
  std::vector<int16_t> numbers;

  bool fill(const Codes& x, int64_t n, const int64_t* space, const Windows& w) {
    int64_t given[3] = {1, 1, 1};
    for (int k = 0; k < 3; ++k) size[k] = 1, begin[k] = 0;
    for (int64_t k = 0; k < w.axes; ++k) {
      given[3 - w.axes + k] = space[k];
      begin[3 - w.axes + k] = w.begin[k];
      size[3 - w.axes + k] = space[k] + w.begin[k] + w.end[k];
    }
    place = size[0] * size[1] * size[2];
    numbers.assign(static_cast<size_t>(n * channels * place), 0);
    std::atomic<bool> on{true};
    const bool plain = place == given[0] * given[1] * given[2];
    parallel_for(0, n * channels, grain(place), [&](int64_t first, int64_t last) {
      for (int64_t c = first; c < last && on.load(std::memory_order_relaxed); ++c) {
        const int64_t from = c * given[0] * given[1] * given[2];
        int16_t* to = numbers.data() + c * place;
        if (plain) {
          if (!x.read(from, place, to)) on = false;
          continue;
        }
        for (int64_t i = 0; i < given[0]; ++i) {
          for (int64_t j = 0; j < given[1]; ++j) {
            int16_t* row = to + ((i + begin[0]) * size[1] + j + begin[1]) * size[2] + begin[2];
            if (!x.read(from + (i * given[1] + j) * given[2], given[2], row)) on = false;
          }
        }
      }
    });
    return on;
  }
};

}  // namespace

bool convolve(const Codes& x, int64_t n, int64_t channels, const int64_t* space, const WholeRows& weight, const Windows& w,
              const int64_t* places, const Requantization& how, float* y) {
  Images images;
  images.channels = channels;
  if (!images.fill(x, n, space, w)) return false;
  const ProductKernels& kernel = kernels().products;
  int64_t kernel_size[3] = {1, 1, 1}, stride[3] = {1, 1, 1}, gap[3] = {1, 1, 1}, wide[3] = {1, 1, 1};
  for (int64_t k = 0; k < w.axes; ++k) {
    const int64_t at = 3 - w.axes + k;
    kernel_size[at] = w.kernel[k], stride[at] = w.stride[k], gap[at] = w.dilation[k], wide[at] = places[k];
  }
  const int64_t per_group = channels / w.groups, outputs = weight.rows() / w.groups, pixels = wide[0] * wide[1] * wide[2];
  const int64_t inputs = weight.inputs(), pitch = weight.pitch(), columns = kernel.columns;
  std::vector<int64_t> reach(static_cast<size_t>(inputs));  // where the element of each input lies, from the first of its window
  for (int64_t c = 0, i = 0; c < per_group; ++c) {
    for (int64_t a = 0; a < kernel_size[0]; ++a) {
      for (int64_t b = 0; b < kernel_size[1]; ++b) {
        for (int64_t d = 0; d < kernel_size[2]; ++d, ++i) {
          reach[i] = c * images.place + (a * gap[0] * images.size[1] + b * gap[1]) * images.size[2] + d * gap[2];
        }
      }
    }
  }
  if (per_group == 1) {  // too few products for tiles
    parallel_for(0, n * weight.rows(), grain(pixels * inputs), [&](int64_t begin, int64_t end) {
      std::vector<int32_t> sums(static_cast<size_t>(pixels));
      for (int64_t task = begin; task < end; ++task) {
        const int64_t image = task / weight.rows(), k = task % weight.rows();
        const int16_t* from = images.numbers.data() + (image * channels + k / outputs) * images.place;
        std::fill(sums.begin(), sums.end(), 0);
        for (int64_t row = 0; row < wide[0] * wide[1]; ++row) {
          const int64_t at = (row / wide[1] * stride[0] * images.size[1] + row % wide[1] * stride[1]) * images.size[2];
          for (int64_t i = 0; i < inputs; ++i) {
            if (const int32_t tap = weight.row(k)[i]; tap != 0) {
              kernel.tap(from + at + reach[i], stride[2], tap, sums.data() + row * wide[2], wide[2]);
            }
          }
        }
        kernel.requantized(sums.data(), y + (image * weight.rows() + k) * pixels, pixels, how.offset + k,
                           how.factor + (how.factors == 1 ? 0 : k), 0, how.zero, how.low, how.high, how.scale);
      }
    });
    return true;
  }
  const int64_t panels = (pixels + columns - 1) / columns;
  parallel_for(0, n * w.groups * panels, std::max<int64_t>(1, grain(columns * inputs)), [&](int64_t begin, int64_t end) {
    const Panels panel(columns * pitch);
    std::vector<int32_t> sums(static_cast<size_t>(outputs * columns));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / panels / w.groups, group = task / panels % w.groups, first = task % panels * columns;
      const int64_t count = std::min(columns, pixels - first);
      const int16_t* from = images.numbers.data() + (image * channels + group * per_group) * images.place;
      int64_t at[kMostColumns];
      bool beside = true;  // one beside the other in memory
      for (int64_t c = 0; c < columns; ++c) {
        const int64_t p = std::min(first + c, pixels - 1);
        const int64_t i = p / (wide[1] * wide[2]), j = p / wide[2] % wide[1], k = p % wide[2];
        at[c] = (i * stride[0] * images.size[1] + j * stride[1]) * images.size[2] + k * stride[2];
        beside = beside && at[c] == at[0] + c;
      }
      for (int64_t i = 0; i < inputs; i += 2) {
        int16_t* to = panel.data() + i * columns;
        const int16_t* one = from + reach[i];
        const int16_t* two = i + 1 < inputs ? from + reach[i + 1] : nullptr;
        if (beside && two != nullptr) {
          one += at[0], two += at[0];
          for (int64_t c = 0; c < columns; ++c) to[2 * c] = one[c], to[2 * c + 1] = two[c];
        } else {
          for (int64_t c = 0; c < columns; ++c) to[2 * c] = one[at[c]], to[2 * c + 1] = two != nullptr ? two[at[c]] : int16_t{0};
        }
      }
      for (int64_t depth = 0; depth < pitch; depth += kDepth) {
        const int64_t pairs = std::min(kDepth, pitch - depth) / 2;
        for (int64_t row = 0; row < outputs; row += kernel.rows) {
          const int64_t rows = std::min(kernel.rows, outputs - row);
          tile(weight, group * outputs + row, rows, depth, panel.data() + depth * columns, pairs, sums.data() + row * columns,
               columns, columns, depth > 0);
        }
      }
      for (int64_t row = 0; row < outputs; ++row) {
        const int64_t k = group * outputs + row;
        kernel.requantized(sums.data() + row * columns, y + (image * w.groups * outputs + k) * pixels + first, count,
                           how.offset + k, how.factor + (how.factors == 1 ? 0 : k), 0, how.zero, how.low, how.high, how.scale);
      }
    }
  });
  return true;
}

}  // namespace truequant
