#include "folding.h"

#include <algorithm>
#include <cmath>

#include "grid.h"

namespace truequant {

void bias_errors(float* errors, int64_t channels, const float* bias, const Norm* norm, float input_scale, const float* scale,
                 int64_t scales, bool free) {
  for (int64_t c = 0; c < channels; ++c) {
    const float own = scale[scales == 1 ? 0 : c];
    double b = bias != nullptr ? static_cast<double>(bias[c]) : 0.0;
    double unit;
    if (norm == nullptr) {
      unit = static_cast<double>(input_scale * own);
    } else {
      double factor = 1.0 / std::sqrt(static_cast<double>(norm->var[c]) + norm->eps);
      if (norm->gamma != nullptr) factor = factor * static_cast<double>(norm->gamma[c]);
      b = (b - static_cast<double>(norm->mean[c])) * factor;
      if (norm->beta != nullptr) b = b + static_cast<double>(norm->beta[c]);
      double wide = static_cast<double>(own);
      if (free) wide = wide * std::abs(factor);
      unit = static_cast<double>(input_scale) * std::max(wide, static_cast<double>(kMinScale));
    }
    errors[c] = static_cast<float>(std::nearbyint(b / unit) * unit - b);
  }
}

}  // namespace truequant
