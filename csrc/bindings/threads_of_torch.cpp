#include "threads_of_torch.h"

#include <ATen/Parallel.h>

#include "../kernels/threads.h"

namespace truequant {
namespace {

void loop(int64_t begin, int64_t end, int64_t grain, Part part, const void* context) {
  at::parallel_for(begin, end, grain, [&](int64_t first, int64_t last) { part(context, first, last); });
}

}  // namespace

void use_threads_of_torch() { set_threads({loop, at::get_num_threads, at::get_thread_num}); }

}  // namespace truequant
