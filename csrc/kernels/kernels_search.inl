// Candidate scales of a weight, and values on the grid that was chosen.

inline Vector::F code_at(Vector::F v, Vector::F step, Vector::F low, Vector::F high) {
  return Vector::max(Vector::min(Vector::rint(Vector::div(v, step)), high), low);
}

// A code, +0 for -0, as adding a zero point makes it; of NaN 0. KNOWN: none is NaN.
template <bool KNOWN>
Vector::F known_code(Vector::F v, Vector::F step, Vector::F low, Vector::F high) {
  const Vector::F zero = Vector::set(0.0f), code = Vector::add(code_at(v, step, low, high), zero);
  if constexpr (KNOWN) return code;
  else return Vector::select(Vector::unordered(v, v), zero, code);
}

// KNOWN: no element is NaN.
template <bool KNOWN>
void errors_of(const float* x, int64_t n, const Candidates& grids, double* errors) {
  constexpr int64_t lanes = 16, parts = lanes / Vector::width;
  const Vector::F zero = Vector::set(0.0f);
  for (int64_t k = 0; k < grids.count; ++k) {
    const Vector::F step = Vector::set(grids.scale[k]), low = Vector::set(grids.low[k]), high = Vector::set(grids.high[k]);
    Doubles sum = Doubles::set(0.0);
    const auto add = [&](const float* from) {
      Vector::F error[parts];
      for (int64_t part = 0; part < parts; ++part) {
        const Vector::F v = Vector::load(from + part * Vector::width);
        error[part] = Vector::sub(Vector::mul(code_at(v, step, low, high), step), v);
        if constexpr (!KNOWN) error[part] = Vector::select(Vector::unordered(error[part], error[part]), zero, error[part]);
      }
      const Doubles wide = Doubles::of(error);
      sum = Doubles::add(sum, Doubles::mul(wide, wide));
    };
    int64_t i = 0;
    for (; i + lanes <= n; i += lanes) add(x + i);
    if (i < n) {
      float rest[lanes] = {};  // 0 is on every grid
      std::memcpy(rest, x + i, (n - i) * sizeof(float));
      add(rest);
    }
    double all[lanes];
    sum.store(all);
    for (int64_t lane = 0; lane < 8; ++lane) all[lane] += all[lane + 8];
    for (int64_t lane = 0; lane < 4; ++lane) all[lane] += all[lane + 4];
    errors[k] = (all[0] + all[2]) + (all[1] + all[3]);
  }
}

inline bool largest_of(const float* x, int64_t n, float& reach);

inline void errors_of_grids(const float* x, int64_t n, const Candidates& grids, double* errors) {
  float reach;
  if (largest_of(x, n, reach)) errors_of<true>(x, n, grids, errors);
  else errors_of<false>(x, n, grids, errors);
}

// Whether no element is NaN; if KNOWN and one is, what was written is of no use.
template <bool KNOWN, class Store>
bool each_code(const float* x, int64_t n, float scale, float qmin, float qmax, const Store& store) {
  const Vector::F step = Vector::set(scale), low = Vector::set(qmin), high = Vector::set(qmax);
  uint32_t none = 0;
  const auto one = [&](const float* from) {
    const Vector::F v = Vector::load(from);
    if constexpr (KNOWN) none |= Vector::unordered(v, v);
    return known_code<KNOWN>(v, step, low, high);
  };
  int64_t i = 0;
  for (; i + Vector::width <= n; i += Vector::width) store(i, Vector::width, one(x + i), step);
  if (i < n) {
    float rest[Vector::width] = {};
    std::memcpy(rest, x + i, (n - i) * sizeof(float));
    store(i, n - i, one(rest), step);
  }
  return none == 0;
}

inline void values_on_grid(const float* x, float* y, int64_t n, float scale, float qmin, float qmax) {
  const auto store = [y](int64_t i, int64_t count, Vector::F code, Vector::F step) {
    const Vector::F value = Vector::mul(code, step);
    if (count == Vector::width) return Vector::store(y + i, value);
    float few[Vector::width];
    Vector::store(few, value);
    std::memcpy(y + i, few, count * sizeof(float));
  };
  if (!each_code<true>(x, n, scale, qmin, qmax, store)) each_code<false>(x, n, scale, qmin, qmax, store);
}

inline void bytes_of_values(const float* x, int8_t* codes, int64_t n, float scale, float qmin, float qmax) {
  const auto store = [codes](int64_t i, int64_t count, Vector::F code, Vector::F) {
    if (count == Vector::width) return Vector::store(codes + i, code);
    int8_t few[Vector::width];
    Vector::store(few, code);
    std::memcpy(codes + i, few, count);
  };
  if (!each_code<true>(x, n, scale, qmin, qmax, store)) each_code<false>(x, n, scale, qmin, qmax, store);
}

inline bool largest_of(const float* x, int64_t n, float& reach) {
  Vector::F largest = Vector::set(0.0f);
  uint32_t none = 0;
  const auto one = [&](const float* from) {
    const Vector::F v = Vector::load(from);
    none |= Vector::unordered(v, v);
    largest = Vector::farther(v, largest);
  };
  int64_t i = 0;
  for (; i + Vector::width <= n; i += Vector::width) one(x + i);
  if (i < n) {
    float rest[Vector::width] = {};
    std::memcpy(rest, x + i, (n - i) * sizeof(float));
    one(rest);
  }
  reach = Vector::greatest(largest);
  return none == 0;
}

#ifdef TRUEQUANT_GROUP_SUMS
#include "kernels_groups.inl"
#define TRUEQUANT_GROUPS group_sums
#else
#define TRUEQUANT_GROUPS nullptr
#endif

#define TRUEQUANT_SEARCH {errors_of_grids, values_on_grid, bytes_of_values, largest_of, TRUEQUANT_GROUPS}
