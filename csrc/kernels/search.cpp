#include "search.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <vector>

#include "blocks.h"
#include "dispatch.h"

namespace truequant {
namespace {

constexpr int64_t kPrinted = 1 << 16;  // bytes
constexpr uint64_t kOdd = 0x9e3779b97f4a7c15;

// Every step is a bijection of `state`, and of `word`.
inline uint64_t mixed(uint64_t state, uint64_t word) {
  state = (state ^ word) * kOdd;
  return state ^ state >> 32;
}

uint64_t fingerprint_of_block(const char* memory, int64_t bytes) {
  constexpr int streams = 8;
  uint64_t state[streams], word[streams];
  for (int k = 0; k < streams; ++k) state[k] = kOdd * (k + 1);
  int64_t i = 0;
  for (; i + static_cast<int64_t>(sizeof word) <= bytes; i += sizeof word) {
    std::memcpy(word, memory + i, sizeof word);
    for (int k = 0; k < streams; ++k) state[k] = mixed(state[k], word[k]);
  }
  std::memset(word, 0, sizeof word);
  std::memcpy(word, memory + i, bytes - i);
  uint64_t all = static_cast<uint64_t>(bytes);
  for (int k = 0; k < streams; ++k) all = mixed(all, mixed(state[k], word[k]));
  return all;
}

// The scale of a token; false where it has NaN.
bool token_scale(const float* x, int64_t inputs, float qmax, float& scale) {
  float reach;
  if (!kernels().search.reach(x, inputs, reach)) return false;
  scale = std::min(std::max(reach / qmax, kMinScale), kMaxScale);
  return true;
}

// Panels of eight outputs: see `GroupPanel`. False where a code is too large.
bool pack(const GroupLinear& layer, std::vector<uint8_t>& codes, std::vector<float>& scale) {
  const int64_t panels = (layer.outputs + 7) / 8, inputs = layer.groups * layer.length;
  codes.resize(panels * 8 * inputs);
  scale.assign(panels * 8 * layer.groups, 0.0f);
  std::atomic<bool> small{true};
  parallel_for(0, panels, grain(8 * inputs), [&](int64_t first, int64_t last) {
    for (int64_t panel = first; panel < last; ++panel) {
      uint8_t* to = codes.data() + panel * 8 * inputs;
      std::memset(to, 8, 8 * inputs);
      uint32_t large = 0;  // the highest bit of each byte: a code plus 8 is not from 0 to 16
      for (int64_t k = 0; k < 8 && panel * 8 + k < layer.outputs; ++k) {
        const int64_t row = panel * 8 + k;
        const int8_t* from = layer.codes + row * inputs;
        for (int64_t run = 0; run < inputs / 4; ++run) {
          uint32_t four;
          std::memcpy(&four, from + 4 * run, sizeof four);
          four = ((four & 0x7f7f7f7f) + 0x08080808) ^ (four & 0x80808080);  // four sums of bytes, without carries
          large |= four | ((four & 0x7f7f7f7f) + 0x6f6f6f6f);
          std::memcpy(to + 32 * run + 4 * k, &four, sizeof four);
        }
        for (int64_t group = 0; group < layer.groups; ++group) {
          scale[(panel * layer.groups + group) * 8 + k] = layer.scale[row * layer.groups + group];
        }
      }
      if ((large & 0x80808080) != 0) small = false;
    }
  });
  return small;
}

// Codes and scales of tokens, and the sums of their groups times 8; false where a token has NaN.
struct Tokens {
  std::vector<int8_t> codes;
  std::vector<int32_t> sums;
  std::vector<float> scale;

  bool read(const float* x, int64_t tokens, const GroupLinear& layer) {
    const int64_t inputs = layer.groups * layer.length;
    codes.resize(tokens * inputs);
    sums.resize(tokens * layer.groups);
    scale.resize(tokens);
    std::atomic<bool> known{true};
    parallel_for(0, tokens, grain(inputs), [&](int64_t first, int64_t last) {
      for (int64_t t = first; t < last; ++t) {
        if (!token_scale(x + t * inputs, inputs, layer.qmax, scale[t])) {
          known = false;
          return;
        }
        int8_t* to = codes.data() + t * inputs;
        kernels().search.bytes(x + t * inputs, to, inputs, scale[t], -layer.qmax, layer.qmax);
        for (int64_t group = 0; group < layer.groups; ++group) {
          int32_t sum = 0;
          for (int64_t i = 0; i < layer.length; ++i) sum += to[group * layer.length + i];
          sums[t * layer.groups + group] = 8 * sum;
        }
      }
    });
    return known;
  }
};

}  // namespace

void least_error(const Searched& of, int64_t* chosen) {
  const auto errors = kernels().search.errors;
  const auto measure = [&](int64_t row, int64_t first, int64_t last, float* ends, double* error) {
    const float* zero_points = of.zero_points + row * of.grids;
    for (int64_t k = first; k < last; ++k) {  // a code less its zero point lies between them
      ends[k] = of.qmin - zero_points[k];
      ends[of.grids + k] = of.qmax - zero_points[k];
    }
    const Candidates some{of.scales + row * of.grids + first, ends + first, ends + of.grids + first, last - first};
    errors(of.rows + row * of.length, of.length, some, error + first);
  };
  const auto choose = [&](const double* error) {
    int64_t first = 0;
    double least = error[0];
    for (int64_t k = 1; k < of.grids; ++k) {
      if (!(error[k] < least)) continue;
      least = error[k];
      first = k;
    }
    return first;
  };
  if (of.count == 1) {
    std::vector<float> ends(2 * of.grids);
    std::vector<double> error(of.grids);
    parallel_for(0, of.grids, grain(of.length),
                 [&](int64_t first, int64_t last) { measure(0, first, last, ends.data(), error.data()); });
    *chosen = choose(error.data());
    return;
  }
  parallel_for(0, of.count, std::max<int64_t>(1, kElementsPerThread / (of.grids * of.length)), [&](int64_t first, int64_t last) {
    std::vector<float> ends(2 * of.grids);
    std::vector<double> error(of.grids);
    for (int64_t row = first; row < last; ++row) {
      measure(row, 0, of.grids, ends.data(), error.data());
      chosen[row] = choose(error.data());
    }
  });
}

uint64_t fingerprint(const void* memory, int64_t bytes) {
  const int64_t blocks = (bytes + kPrinted - 1) / kPrinted;
  std::vector<uint64_t> found(blocks);
  parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block * kPrinted;
      found[block] = fingerprint_of_block(static_cast<const char*>(memory) + begin, std::min(kPrinted, bytes - begin));
    }
  });
  uint64_t all = static_cast<uint64_t>(bytes);
  for (const uint64_t one : found) all = mixed(all, one);
  return all;
}

void rows_on_grid(const float* weight, float* y, const float* scale, const Rows& rows, const Scheme& scheme) {
  const auto run = kernels().search.on_grid;
  if (rows.count == 1) {
    each_block(rows.elements(), [&](int64_t i, int64_t n) { run(weight + i, y + i, n, *scale, scheme.qmin, scheme.qmax); });
    return;
  }
  parallel_for(0, rows.count, grain(rows.elements() / rows.count), [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      const int64_t begin = rows.begin(row);
      run(weight + begin, y + begin, rows.length(row), scale[row], scheme.qmin, scheme.qmax);
    }
  });
}

void codes_of_grid(const float* weight, int8_t* codes, const float* scale, const Rows& rows, const Scheme& scheme) {
  const auto run = kernels().search.bytes;
  if (rows.count == 1) {
    each_block(rows.elements(), [&](int64_t i, int64_t n) { run(weight + i, codes + i, n, *scale, scheme.qmin, scheme.qmax); });
    return;
  }
  parallel_for(0, rows.count, grain(rows.elements() / rows.count), [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      const int64_t begin = rows.begin(row);
      run(weight + begin, codes + begin, rows.length(row), scale[row], scheme.qmin, scheme.qmax);
    }
  });
}

bool tokens_on_grid(const float* x, float* y, int64_t tokens, int64_t inputs, float qmax) {
  std::atomic<bool> known{true};
  parallel_for(0, tokens, grain(inputs), [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) {
      float scale;
      if (!token_scale(x + t * inputs, inputs, qmax, scale)) {
        known = false;
        return;
      }
      kernels().search.on_grid(x + t * inputs, y + t * inputs, inputs, scale, -qmax, qmax);
    }
  });
  return known;
}

bool group_linear(const float* x, int64_t tokens, const GroupLinear& layer, float* y) {
  const auto sums = kernels().search.group_sums;
  std::vector<uint8_t> codes;
  std::vector<float> scale;
  Tokens from;
  if (sums == nullptr || layer.length % 4 != 0 || layer.qmax > 127.0f || !pack(layer, codes, scale) || !from.read(x, tokens, layer)) {
    return false;
  }
  const int64_t panels = (layer.outputs + 7) / 8, inputs = layer.groups * layer.length;
  parallel_for(0, panels, grain(8 * tokens), [&](int64_t first, int64_t last) {
    for (int64_t panel = first; panel < last; ++panel) {
      const GroupPanel right{codes.data() + panel * 8 * inputs, scale.data() + panel * 8 * layer.groups, layer.groups, layer.length};
      const int64_t outputs = std::min<int64_t>(8, layer.outputs - panel * 8);
      for (int64_t t = 0; t < tokens; t += 4) {
        const int64_t few = std::min<int64_t>(4, tokens - t);
        double found[32];
        sums(right, {from.codes.data() + t * inputs, from.sums.data() + t * layer.groups}, few, found);
        for (int64_t i = 0; i < few; ++i) {
          for (int64_t k = 0; k < outputs; ++k) {
            float v = static_cast<float>(found[8 * i + k]) * from.scale[t + i];
            if (layer.bias != nullptr) v += layer.bias[panel * 8 + k];
            y[(t + i) * layer.outputs + panel * 8 + k] = v;
          }
        }
      }
    }
  });
  return true;
}

}  // namespace truequant
