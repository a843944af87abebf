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

#define TRUEQUANT_CODES {codes_of, scaled_sums}
