// The threads that kernels run on: those of whoever calls them, so that no second pool waits beside torch's.
#pragma once

#include <cstdint>

namespace truequant {

// A part of a loop, from `first` to before `last`.
using Part = void (*)(const void* context, int64_t first, int64_t last);

struct Threads {
  // Runs the parts of a loop from `begin` to before `end`, side by side where it has more than `grain` rounds, and returns when
  // all are done. What a part throws is thrown again.
  void (*loop)(int64_t begin, int64_t end, int64_t grain, Part part, const void* context);
  int (*count)();   // the most that run at once
  int (*number)();  // of the one that asks, below `count`
};

// One thread, before others were handed over.
const Threads& threads();
void set_threads(const Threads& threads);

template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& part) {
  const Part call = [](const void* context, int64_t first, int64_t last) { (*static_cast<const F*>(context))(first, last); };
  threads().loop(begin, end, grain, call, &part);
}

}  // namespace truequant
