#include "dispatch.h"

#include <atomic>

namespace truequant {
namespace {

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c") && __builtin_cpu_supports("fma");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("bmi2");
}
#else
bool has_avx2() { return false; }
bool has_avx512() { return false; }
#endif

std::vector<const Kernels*> available() {
  std::vector<const Kernels*> found;
  if (has_avx512() && avx512_kernels() != nullptr) found.push_back(avx512_kernels());
  if (has_avx2() && avx2_kernels() != nullptr) found.push_back(avx2_kernels());
  found.push_back(portable_kernels());
  return found;
}

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

const Kernels& kernels() {
  const Kernels* found = chosen.load(std::memory_order_relaxed);
  if (found == nullptr) {
    found = available().front();
    chosen.store(found, std::memory_order_relaxed);
  }
  return *found;
}

std::vector<std::string> levels() {
  std::vector<std::string> names;
  for (const Kernels* level : available()) names.emplace_back(level->name);
  return names;
}

bool choose(const std::string& name) {
  for (const Kernels* level : available()) {
    if (name == level->name) {
      chosen.store(level, std::memory_order_relaxed);
      return true;
    }
  }
  return false;
}

}  // namespace truequant
