// How kernels walk over memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "kernels.h"
#include "threads.h"

namespace truequant {

constexpr int64_t kBlocksPerThread = 8;  // at least
constexpr int64_t kElementsPerThread = 16384;

// How many runs of so many elements are worth a thread.
inline int64_t grain(int64_t elements_each) {
  return std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(1, elements_each));
}

template <class F>
void each_block(int64_t n, const F& run) {
  parallel_for(0, (n + kBlock - 1) / kBlock, kBlocksPerThread, [&](int64_t first, int64_t last) {
    const int64_t begin = first * kBlock, end = last * kBlock < n ? last * kBlock : n;
    if (begin < end) run(begin, end - begin);
  });
}

// Where element i lies; null where there is no memory.
inline const char* at_element(const void* memory, Dtype dtype, int64_t i) {
  return memory != nullptr ? static_cast<const char*>(memory) + i * size_of(dtype) : nullptr;
}
inline char* at_element(void* memory, Dtype dtype, int64_t i) {
  return memory != nullptr ? static_cast<char*>(memory) + i * size_of(dtype) : nullptr;
}

// What each thread saw.
class Watch {
 public:
  Watch() : count_(threads().count()), many_(count_ > kFew ? new Seen[count_] : nullptr), seen_(many_ ? many_.get() : few_) {
    std::fill(seen_, seen_ + count_, kNothing);
  }
  Seen& mine() { return seen_[threads().number()]; }
  Seen all() const {
    Seen all = kNothing;
    for (int k = 0; k < count_; ++k) {
      const Seen& part = seen_[k];
      all.min = part.min < all.min ? part.min : all.min;
      all.max = part.max > all.max ? part.max : all.max;
      all.nan |= part.nan;
      all.stopped |= part.stopped;
    }
    return all;
  }

 private:
  static constexpr int kFew = 64;  // no allocation for so many threads

  int count_;
  std::unique_ptr<Seen[]> many_;
  Seen few_[kFew];
  Seen* seen_;
};

}  // namespace truequant
