// What lies on a grid, as codes, and the sums of their products, as floats.

inline bool codes_of(const float* x, int8_t* to, int64_t n, float scale, float lowest, int64_t& total) {
  const Vector::F step = Vector::set(scale), reciprocal = Vector::set(1.0f / scale), first = Vector::set(lowest);
  const Vector::F last = Vector::set(lowest + 255.0f), middle = Vector::set(lowest + 128.0f);
  uint32_t on = kEvery;
  const auto code = [&](const float* from, int8_t* at) {
    const Vector::F v = Vector::load(from);
    const Vector::F whole = Vector::rint(Vector::mul(v, reciprocal));  // of what is on the grid: no other integer is near
    on &= Vector::equal(Vector::mul(whole, step), v) & Vector::at_most(first, whole) & Vector::at_most(whole, last);
    Vector::store(at, Vector::sub(whole, middle));
    return whole;
  };
  constexpr int64_t kExact = 4096 * Vector::width;  // whole numbers below 2^8 whose sums by lanes float32 holds
  for (int64_t i = 0; i < n && on == kEvery;) {
    Vector::F sum = Vector::set(0.0f);
    const int64_t end = i + kExact < n ? i + kExact : n;
    for (; i + Vector::width <= end; i += Vector::width) sum = Vector::add(sum, code(x + i, to + i));
    if (i < end) {  // only behind the last whole vector: kExact is a multiple of the width
      float rest[Vector::width] = {};
      int8_t found[Vector::width];
      std::memcpy(rest, x + i, (end - i) * sizeof(float));
      for (int64_t k = end - i; k < Vector::width; ++k) rest[k] = x[i];
      float whole[Vector::width];
      Vector::store(whole, code(rest, found));
      for (int64_t k = 0; k < end - i; ++k) total += static_cast<int64_t>(whole[k]);
      std::memcpy(to + i, found, end - i);
      i = end;
    }
    float lanes[Vector::width];
    Vector::store(lanes, sum);
    if (on == kEvery) {
      for (const float lane : lanes) total += static_cast<int64_t>(lane);
    }
  }
  return on == kEvery;
}

inline void scaled_sums(void* sums, const int32_t* offset, const float* factor, const float* bias, int64_t n) {
  char* at = static_cast<char*>(sums);
  int64_t i = 0;
  for (; i + Vector::width <= n; i += Vector::width) {
    int32_t whole[Vector::width];
    std::memcpy(whole, at + i * 4, sizeof whole);
    Vector::F v = Vector::mul(Vector::difference(whole, offset + i), Vector::load(factor + i));
    if (bias != nullptr) v = Vector::add(v, Vector::load(bias + i));
    float out[Vector::width];
    Vector::store(out, v);
    std::memcpy(at + i * 4, out, sizeof out);
  }
  for (; i < n; ++i) {
    int32_t whole;
    std::memcpy(&whole, at + i * 4, sizeof whole);
    float v = static_cast<float>(whole - offset[i]) * factor[i];
    if (bias != nullptr) v += bias[i];
    std::memcpy(at + i * 4, &v, sizeof v);
  }
}

// Runs `run(values, result)` over whole vectors of memory, the last one filled up.
template <class F>
inline void by_vectors(const float* x, float* y, int64_t n, const F& run) {
  int64_t i = 0;
  for (; i + Vector::width <= n; i += Vector::width) run(x + i, y + i);
  if (i < n) {
    float rest[Vector::width] = {}, found[Vector::width];
    std::memcpy(rest, x + i, (n - i) * sizeof(float));
    run(rest, found);
    std::memcpy(y + i, found, (n - i) * sizeof(float));
  }
}

inline void quantized_values(const float* x, float* y, int64_t n, float scale, float zero, float low, float high) {
  const Vector::F s = Vector::set(scale), z = Vector::set(zero), least = Vector::set(low), most = Vector::set(high);
  by_vectors(x, y, n, [&](const float* from, float* to) {
    Vector::F q = Vector::add(Vector::rint(Vector::div(Vector::load(from), s)), z);
    q = Vector::select(Vector::unordered(q, q), Vector::set(0.0f), q);
    q = Vector::min(Vector::max(q, least), most);
    Vector::store(to, Vector::mul(Vector::sub(q, z), s));
  });
}

inline void summed_codes(const float* a, const float* b, float* y, int64_t n, const SumGrids& g) {
  const Vector::F scale_a = Vector::set(g.scale_a), zero_a = Vector::set(g.zero_a), scale_b = Vector::set(g.scale_b);
  const Vector::F zero_b = Vector::set(g.zero_b), zero = Vector::set(g.zero), least = Vector::set(g.low);
  const Vector::F most = Vector::set(g.high), result = Vector::set(g.result);
  const double ratio_a = g.ratio_a, ratio_b = g.ratio_b, constant = g.constant;
  float left[Vector::width], right[Vector::width];
  for (int64_t i = 0; i < n; i += Vector::width) {
    const int64_t count = n - i < Vector::width ? n - i : Vector::width;
    if (count < Vector::width) {
      for (int k = 0; k < Vector::width; ++k) left[k] = right[k] = 0.0f;
    }
    std::memcpy(left, a + i, count * sizeof(float));
    std::memcpy(right, b + i, count * sizeof(float));
    Vector::store(left, Vector::add(Vector::rint(Vector::div(Vector::load(left), scale_a)), zero_a));
    Vector::store(right, Vector::add(Vector::rint(Vector::div(Vector::load(right), scale_b)), zero_b));
    for (int k = 0; k < Vector::width; ++k) {
      const float inner = static_cast<float>(ratio_b * static_cast<double>(right[k]) + constant);
      left[k] = static_cast<float>(ratio_a * static_cast<double>(left[k]) + static_cast<double>(inner));
    }
    Vector::F q = Vector::min(Vector::max(Vector::rint(Vector::load(left)), least), most);
    if (g.result != 0.0f) q = Vector::mul(Vector::sub(q, zero), result);
    Vector::store(left, q);
    std::memcpy(y + i, left, count * sizeof(float));
  }
}

#define TRUEQUANT_CODES {codes_of, scaled_sums, quantized_values, summed_codes}
