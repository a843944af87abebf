// Tiles of sums of products, what is multiplied as whole numbers, and sums on the grid of what comes next.

inline void product_tile(const int16_t* const* a, const int16_t* panel, int64_t pairs, int32_t* sums, int64_t stride, bool add) {
  constexpr int kRows = Whole::rows, kLanes = Whole::lanes;
  Whole::I left[kRows], right[kRows];
  const int16_t* at[kRows];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    at[r] = a[r];
    left[r] = add ? Whole::load(sums + r * stride) : Whole::zero();
    right[r] = add ? Whole::load(sums + r * stride + kLanes) : Whole::zero();
  }
  for (int64_t p = 0; p < pairs; ++p) {
    const Whole::I b = Whole::load(panel + p * 4 * kLanes), c = Whole::load(panel + p * 4 * kLanes + 2 * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Whole::I both = Whole::pair(at[r] + 2 * p);
      left[r] = Whole::add(left[r], Whole::products(both, b));
      right[r] = Whole::add(right[r], Whole::products(both, c));
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    Whole::store(sums + r * stride, left[r]);
    Whole::store(sums + r * stride + kLanes, right[r]);
  }
}

inline void tap_sums(const int16_t* x, int64_t stride, int32_t weight, int32_t* sums, int64_t n) {
  if (stride == 1) {
    for (int64_t i = 0; i < n; ++i) sums[i] += weight * x[i];
  } else if (stride == 2) {
    for (int64_t i = 0; i < n; ++i) sums[i] += weight * x[2 * i];
  } else {
    for (int64_t i = 0; i < n; ++i) sums[i] += weight * x[i * stride];
  }
}

inline bool whole_numbers(const float* x, int16_t* to, int64_t n, float scale) {
  const Vector::F step = Vector::set(scale), reciprocal = Vector::set(1.0f / scale);
  const Vector::F lowest = Vector::set(-32768.0f), highest = Vector::set(32767.0f);
  uint32_t on = kEvery;
  int32_t found[Vector::width];
  const auto code = [&](const float* from) {
    const Vector::F v = Vector::load(from);
    const Vector::F whole = Vector::rint(Vector::mul(v, reciprocal));  // of what is on the grid: no other integer is near
    on &= Vector::equal(Vector::mul(whole, step), v) & Vector::at_most(lowest, whole) & Vector::at_most(whole, highest);
    Vector::store(found, whole);
  };
  int64_t i = 0;
  for (; i + Vector::width <= n; i += Vector::width) {
    code(x + i);
    for (int64_t k = 0; k < Vector::width; ++k) to[i + k] = static_cast<int16_t>(found[k]);
  }
  if (i < n) {
    float rest[Vector::width] = {};
    std::memcpy(rest, x + i, (n - i) * sizeof(float));
    code(rest);
    for (int64_t k = 0; k < n - i; ++k) to[i + k] = static_cast<int16_t>(found[k]);
  }
  return on == kEvery;
}

inline void requantized_sums(const int32_t* sums, float* y, int64_t n, const int32_t* offset, const float* factor, int64_t step,
                             float zero, float low, float high, float scale) {
  const Vector::F z = Vector::set(zero), least = Vector::set(low), most = Vector::set(high), s = Vector::set(scale);
  int32_t one_offset[Vector::width];
  float one_factor[Vector::width];
  for (int k = 0; k < Vector::width; ++k) one_offset[k] = offset[0], one_factor[k] = factor[0];
  const auto run = [&](const int32_t* from, const int32_t* less, const float* by) {
    Vector::F q = Vector::add(Vector::rint(Vector::mul(Vector::difference(from, less), Vector::load(by))), z);
    q = Vector::min(Vector::max(q, least), most);
    return scale == 0.0f ? q : Vector::mul(Vector::sub(q, z), s);
  };
  int64_t i = 0;
  for (; i + Vector::width <= n; i += Vector::width) {
    Vector::store(y + i, run(sums + i, step != 0 ? offset + i : one_offset, step != 0 ? factor + i : one_factor));
  }
  if (i < n) {
    int32_t rest[Vector::width] = {}, less[Vector::width] = {};
    float by[Vector::width] = {}, out[Vector::width];
    for (int64_t k = 0; k < n - i; ++k) {
      rest[k] = sums[i + k];
      less[k] = offset[step * (i + k)];
      by[k] = factor[step * (i + k)];
    }
    Vector::store(out, run(rest, less, by));
    std::memcpy(y + i, out, (n - i) * sizeof(float));
  }
}

#define TRUEQUANT_PRODUCTS {Whole::rows, 2 * Whole::lanes, product_tile, tap_sums, whole_numbers, requantized_sums}
