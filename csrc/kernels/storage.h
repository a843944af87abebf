// Two-byte floats as they lie in memory.
#pragma once

#include <cstdint>

namespace truequant {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

}  // namespace truequant
