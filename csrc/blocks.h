// How kernels walk over tensors.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include "kernels.h"

namespace truequant {

constexpr int64_t kBlocksPerThread = 8;  // at least

inline Dtype dtype_of(at::ScalarType dtype) {
  return dtype == at::kFloat ? kFloat : dtype == at::kBFloat16 ? kBFloat16 : kHalf;
}

template <class F>
void each_block(int64_t n, const F& run) {
  at::parallel_for(0, (n + kBlock - 1) / kBlock, kBlocksPerThread, [&](int64_t first, int64_t last) {
    const int64_t begin = first * kBlock, end = last * kBlock < n ? last * kBlock : n;
    if (begin < end) run(begin, end - begin);
  });
}

inline const char* at_element(const at::Tensor& x, int64_t i) {
  return static_cast<const char*>(x.const_data_ptr()) + i * x.element_size();
}
inline char* at_element(at::Tensor& x, int64_t i) { return static_cast<char*>(x.mutable_data_ptr()) + i * x.element_size(); }

// What each thread saw.
class Watch {
 public:
  Watch() : seen_(at::get_num_threads(), kNothing) {}
  Seen& mine() { return seen_[at::get_thread_num()]; }
  Seen all() const {
    Seen all = kNothing;
    for (const Seen& part : seen_) {
      all.min = part.min < all.min ? part.min : all.min;
      all.max = part.max > all.max ? part.max : all.max;
      all.nan |= part.nan;
      all.stopped |= part.stopped;
    }
    return all;
  }

 private:
  c10::SmallVector<Seen, 64> seen_;
};

}  // namespace truequant
