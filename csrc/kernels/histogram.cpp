#include "histogram.h"

#include <algorithm>
#include <cmath>

#include "blocks.h"
#include "dispatch.h"

namespace truequant {
namespace {

constexpr int64_t kLowestExponent = -149;
constexpr int64_t kCopies = 4;                 // of a table, so that equal neighbours do not wait for each other
constexpr int64_t kManyBins = 4096;            // with more, copies would not stay in a cache
constexpr int64_t kMany = 32768;               // elements that are worth copies
constexpr int64_t kMostHeld = int64_t{1} << 31;  // elements that a table of 32 bits may hold

int64_t exponent_for(float reach, int64_t bins) {
  if (!(reach > 0)) return kLowestExponent;
  int exponent;
  std::frexp(static_cast<double>(reach) / static_cast<double>(bins), &exponent);
  return std::max<int64_t>(exponent, kLowestExponent);
}

// Counts of bins `2^by` times as wide, in their own place: counts move towards the middle only.
template <class N>
void widen(N* counts, int64_t bins, int64_t by) {
  by = std::min<int64_t>(by, 62);
  if (by <= 0) return;
  const auto move = [&](int64_t i) {
    const N held = counts[i];
    counts[i] = 0;
    counts[((i - bins) >> by) + bins] += held;
  };
  for (int64_t i = bins; i < 2 * bins; ++i) move(i);
  for (int64_t i = bins - 1; i >= 0; --i) move(i);
}

}  // namespace

struct Counting::Local {
  int64_t exponent, held = 0;
  Seen seen = kNothing;
  std::vector<int64_t> counts;    // what no longer fits into the tables
  std::vector<uint32_t> tables;   // each with a place behind its bins for what is not finite
  float values[kBlock];
  int32_t bin[kBlock];

  Local(int64_t exponent_, int64_t bins, int64_t copies) : exponent(exponent_), tables(copies * (2 * bins + 1)) {}

  void spill(int64_t bins) {
    counts.resize(2 * bins);
    for (size_t at = 0; at < tables.size(); at += 2 * bins + 1) {
      for (int64_t i = 0; i < 2 * bins; ++i) counts[i] += tables[at + i];
    }
    std::fill(tables.begin(), tables.end(), 0u);
    held = 0;
  }
};

Counting::Counting(const Histogram& histogram, int64_t n)
    : histogram_(histogram), copies_(histogram.bins <= kManyBins && n >= kMany ? kCopies : 1), locals_(threads().count()) {}
Counting::~Counting() = default;

Counting::Local& Counting::mine() {
  std::unique_ptr<Local>& own = locals_[threads().number()];
  if (own == nullptr) own = std::make_unique<Local>(*histogram_.exponent, histogram_.bins, copies_);
  return *own;
}

void Counting::add(const void* a, const void* b, Dtype dtype, Clip clip, int64_t n, const Grid& grid) {
  Local& own = mine();
  const HistogramKernels& chosen = kernels().histogram;
  const int64_t bins = histogram_.bins, length = 2 * bins + 1;
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t count = std::min(kBlock, n - i);
    chosen.values[dtype][clip](at_element(a, dtype, i), at_element(b, dtype, i), own.values, count, grid, own.seen);
    const int64_t wide = std::max(own.exponent, exponent_for(std::max(-own.seen.min, own.seen.max), bins));
    if (wide > own.exponent) {
      for (int64_t c = 0; c < copies_; ++c) widen(own.tables.data() + c * length, bins, wide - own.exponent);
      if (!own.counts.empty()) widen(own.counts.data(), bins, wide - own.exponent);
      own.exponent = wide;
    }
    if (own.held + count > kMostHeld) own.spill(bins);
    own.held += count;
    const int half = static_cast<int>(-own.exponent) / 2;
    const float first = std::ldexp(1.0f, half), second = std::ldexp(1.0f, static_cast<int>(-own.exponent) - half);
    chosen.bins(own.values, count, first, second, static_cast<int32_t>(bins), own.bin);
    uint32_t* table = own.tables.data();
    if (copies_ == kCopies) {
      uint32_t *second_table = table + length, *third = second_table + length, *fourth = third + length;
      int64_t k = 0;
      for (; k + kCopies <= count; k += kCopies) {
        ++table[own.bin[k]];
        ++second_table[own.bin[k + 1]];
        ++third[own.bin[k + 2]];
        ++fourth[own.bin[k + 3]];
      }
      for (; k < count; ++k) ++table[own.bin[k]];
    } else {
      for (int64_t k = 0; k < count; ++k) ++table[own.bin[k]];
    }
  }
}

void Counting::add_side_by_side(const void* a, const void* b, Dtype dtype, Clip clip, int64_t n, const Grid& grid) {
  each_block(n, [&](int64_t i, int64_t count) { add(at_element(a, dtype, i), at_element(b, dtype, i), dtype, clip, count, grid); });
}

Seen Counting::finish() {
  Seen seen = kNothing;
  int64_t exponent = *histogram_.exponent;
  for (const auto& own : locals_) {
    if (own != nullptr) exponent = std::max(exponent, own->exponent);
  }
  widen(histogram_.counts, histogram_.bins, exponent - *histogram_.exponent);
  *histogram_.exponent = exponent;
  for (const auto& own : locals_) {
    if (own == nullptr) continue;
    own->spill(histogram_.bins);
    widen(own->counts.data(), histogram_.bins, exponent - own->exponent);
    for (int64_t i = 0; i < 2 * histogram_.bins; ++i) histogram_.counts[i] += own->counts[i];
    seen.min = std::min(seen.min, own->seen.min);
    seen.max = std::max(seen.max, own->seen.max);
  }
  return seen;
}

Range percentile(const Histogram& histogram, float low, float high, double percent) {
  const int64_t length = 2 * histogram.bins;
  int64_t all = 0;
  for (int64_t i = 0; i < length; ++i) all += histogram.counts[i];
  const double total = static_cast<double>(all), outside = total * (1.0 - percent / 100.0);
  const double tail = low < 0 && high > 0 ? outside / 2 : outside;
  // Counts up to and with a bin never fall, so that those that are small enough come first.
  const auto bins_while = [&](const auto& holds) {
    int64_t cumulated = 0, i = 0;
    for (; i < length; ++i) {
      cumulated += histogram.counts[i];
      if (!holds(static_cast<double>(cumulated))) break;
    }
    return std::min(i, length - 1);
  };
  const double width = std::ldexp(1.0, static_cast<int>(*histogram.exponent));
  const auto centre = [&](int64_t i) { return (static_cast<double>(i - histogram.bins) + 0.5) * width; };
  const double half = (centre(1) - centre(0)) / 2;
  const int64_t first = bins_while([&](double n) { return n <= tail; });
  const int64_t last = bins_while([&](double n) { return n < total - tail; });
  const float bottom = low < 0 ? static_cast<float>(centre(first) - half) : 0.0f;
  const float top = high > 0 ? static_cast<float>(centre(last) + half) : 0.0f;
  return {std::max(bottom, std::min(low, 0.0f)), std::min(top, std::max(high, 0.0f))};
}

}  // namespace truequant
