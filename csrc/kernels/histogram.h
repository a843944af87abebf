// Histograms whose bins are powers of two wide, counted while values pass: what `observers.histogram` defines.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels.h"

namespace truequant {

// `2 * bins` counts of bins `2^exponent` wide, in the buffers of an observer; bin `bins` starts at 0.
struct Histogram {
  int64_t* counts = nullptr;
  int64_t* exponent = nullptr;
  int64_t bins = 0;
};

constexpr int64_t kMostBins = 1 << 20;  // both sides together: numbers of bins are exact in float32

struct Range {
  float low, high;
};

// The range that holds `percent` of what was counted, inside the smallest and largest value ever seen.
Range percentile(const Histogram& histogram, float low, float high, double percent);

// Counts in one pass, whatever its threads meet first: widths nest, so that each thread widens its own bins when it must, and
// the sum of all is what counting in the widest of them gives.
class Counting {
 public:
  // Of a pass over `n` elements.
  Counting(const Histogram& histogram, int64_t n);
  ~Counting();

  // Counts clip(a), or clip(a + b) where b is not null, of any number of elements.
  void add(const void* a, const void* b, Dtype dtype, Clip clip, int64_t n, const Grid& grid);
  // The same on all threads.
  void add_side_by_side(const void* a, const void* b, Dtype dtype, Clip clip, int64_t n, const Grid& grid);

  // Adds all to the histogram. The smallest and largest value; one that is not finite counts as 0.
  Seen finish();

 private:
  struct Local;
  Local& mine();

  Histogram histogram_;
  int64_t copies_;
  std::vector<std::unique_ptr<Local>> locals_;
};

}  // namespace truequant
