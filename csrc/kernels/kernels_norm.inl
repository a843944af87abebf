// BatchNorm in training with a quantizer behind it. Sums run over sixteen lanes in double precision, element i of a run in lane
// i % 16, so that every level adds in the same order.

inline uint32_t load_lane_bits(const uint8_t* mask, int64_t at) {
  return static_cast<uint32_t>(mask[at >> 3]) | static_cast<uint32_t>(mask[(at >> 3) + 1]) << 8;
}

// Sixteen gradients, 0 where the mask stops them; `n` of them are there.
inline void kept_lanes(const float* g, const uint8_t* mask, int64_t at, int64_t n, float* kept) {
  const uint32_t bits = mask == nullptr ? ~0u : load_lane_bits(mask, at);
  if (n >= kLanes) {
    for (int p = 0; p < kParts; ++p) Vector::keep(bits >> p * Vector::width, g + at + p * Vector::width, kept + p * Vector::width);
    return;
  }
  for (int k = 0; k < kLanes; ++k) kept[k] = k < n && (bits >> k & 1) ? g[at + k] : 0.0f;
}

inline void moments(const float* x, int64_t n, float pivot, Lanes& lanes) {
  Doubles sum = Doubles::of(lanes.sum), product = Doubles::of(lanes.product);
  const Doubles origin = Doubles::set(pivot);
  for (int64_t i = 0; i < n; i += kLanes) {
    Doubles d;
    if (i + kLanes <= n) {
      d = Doubles::sub(Doubles::of(x + i), origin);
    } else {
      float rest[kLanes];
      for (int k = 0; k < kLanes; ++k) rest[k] = i + k < n ? x[i + k] : pivot;
      d = Doubles::sub(Doubles::of(rest), origin);
    }
    sum = Doubles::add(sum, d);
    product = Doubles::add(product, Doubles::mul(d, d));
  }
  sum.store(lanes.sum);
  product.store(lanes.product);
}

inline void gradient_sums(const float* g, const uint8_t* mask, const float* x, int64_t n, float mean, Lanes& lanes) {
  Doubles sum = Doubles::of(lanes.sum), product = Doubles::of(lanes.product);
  const Doubles origin = Doubles::set(mean);
  float kept[kLanes], rest[kLanes];
  for (int64_t i = 0; i < n; i += kLanes) {
    kept_lanes(g, mask, i, n - i, kept);
    const float* from = x + i;
    if (i + kLanes > n) {
      for (int k = 0; k < kLanes; ++k) rest[k] = i + k < n ? x[i + k] : mean;
      from = rest;
    }
    const Doubles dy = Doubles::of(kept);
    sum = Doubles::add(sum, dy);
    product = Doubles::add(product, Doubles::mul(dy, Doubles::sub(Doubles::of(from), origin)));
  }
  sum.store(lanes.sum);
  product.store(lanes.product);
}

// The same for a run in which every element is another channel.
inline void column_moments(const float* x, int64_t n, const float* pivot, double* sum, double* product) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Doubles d = Doubles::sub(Doubles::of(x + i), Doubles::of(pivot + i));
    Doubles::add(Doubles::of(sum + i), d).store(sum + i);
    Doubles::add(Doubles::of(product + i), Doubles::mul(d, d)).store(product + i);
  }
  for (; i < n; ++i) {
    const double d = static_cast<double>(x[i]) - static_cast<double>(pivot[i]);
    sum[i] += d;
    product[i] += d * d;
  }
}

inline void column_gradient_sums(const float* g, const uint8_t* mask, const float* x, int64_t n, const float* mean, double* sum,
                                 double* product) {
  float kept[kLanes];
  for (int64_t i = 0; i < n; i += kLanes) {
    kept_lanes(g, mask, i, n - i, kept);
    if (i + kLanes <= n) {
      const Doubles dy = Doubles::of(kept);
      const Doubles d = Doubles::sub(Doubles::of(x + i), Doubles::of(mean + i));
      Doubles::add(Doubles::of(sum + i), dy).store(sum + i);
      Doubles::add(Doubles::of(product + i), Doubles::mul(dy, d)).store(product + i);
    } else {
      for (int64_t k = i; k < n; ++k) {
        const double dy = kept[k - i];
        sum[k] += dy;
        product[k] += dy * (static_cast<double>(x[k]) - static_cast<double>(mean[k]));
      }
    }
  }
}

template <bool VARYING>
Vector::F channels(const float* values, int64_t i) {
  if constexpr (VARYING) return Vector::load(values + i);
  return Vector::set(*values);
}

template <bool VARYING>
void scaled_run(const float* x, float* y, int64_t n, const float* factor, const float* shift) {
  int64_t i = 0;
  for (; i + Vector::width <= n; i += Vector::width) {
    const Vector::F v = Vector::mul(Vector::load(x + i), channels<VARYING>(factor, i));
    Vector::store(y + i, Vector::add(v, channels<VARYING>(shift, i)));
  }
  for (; i < n; ++i) y[i] = x[i] * factor[VARYING ? i : 0] + shift[VARYING ? i : 0];
}

inline void scaled(const float* x, float* y, int64_t n, const float* factor, const float* shift, bool varying) {
  if (varying) scaled_run<true>(x, y, n, factor, shift);
  else scaled_run<false>(x, y, n, factor, shift);
}

template <int CLIP, bool VARYING>
void normalize_run(const float* x, float* y, uint8_t* mask, int64_t n, const float* factor, const float* shift, const Grid& grid,
                   Seen& seen) {
  const auto normal = [&](int64_t at) {
    const Vector::F v = Vector::mul(Vector::load(x + at), channels<VARYING>(factor, at));
    return Vector::add(v, channels<VARYING>(shift, at));
  };
  const auto strides = [&](int64_t i) {
    Quantizer<CLIP> quantize(grid);
    for (; i + kStride <= n; i += kStride) {
      Vector::F v[kSeveral];
      uint64_t bits;
      for (int k = 0; k < kSeveral; ++k) v[k] = normal(i + k * Vector::width);
      if (__builtin_expect(!quantize.template several<float, false>(v, bits), 0)) break;
      if (y != nullptr) Order<float>::store<false>(y + i, v);
      if (mask != nullptr) Order<float>::store_bits(mask, i, bits);
    }
    quantize.merge_into(seen);
    return i;
  };
  const bool few = n >= kStride && folds(grid);
  Quantizer<CLIP> quantize(grid);
  uint32_t bits;
  int64_t i = 0;
  while (i + Vector::width <= n) {
    if (few) i = strides(i);
    for (const int64_t end = few ? std::min(n, i + kStride) : n; i + Vector::width <= end; i += Vector::width) {
      const Vector::F q = quantize(normal(i), bits);
      if (y != nullptr) Vector::store(y + i, q);
      if (mask != nullptr) store_bits(mask, i, bits);
    }
  }
  if (i < n) {
    Tail<float> tail(x + i, n - i);
    if constexpr (VARYING) {
      const Tail<float> f(factor + i, n - i), s(shift + i, n - i);
      const Vector::F v = Vector::mul(Vector::load(tail.values), Vector::load(f.values));
      Vector::store(tail.values, quantize(Vector::add(v, Vector::load(s.values)), bits));
    } else {
      const Vector::F v = Vector::mul(Vector::load(tail.values), Vector::set(*factor));
      Vector::store(tail.values, quantize(Vector::add(v, Vector::set(*shift)), bits));
    }
    if (y != nullptr) copy_back(y + i, tail.values, n - i);
    if (mask != nullptr) store_tail_bits(mask, i, bits, n - i);
  }
  quantize.merge_into(seen);
}

template <int CLIP>
void normalize(const float* x, float* y, uint8_t* mask, int64_t n, const float* factor, const float* shift, bool varying,
               const Grid& grid, Seen& seen) {
  if (varying) normalize_run<CLIP, true>(x, y, mask, n, factor, shift, grid, seen);
  else normalize_run<CLIP, false>(x, y, mask, n, factor, shift, grid, seen);
}

// d = ((g' - offset) - (x - mean) * slope) * factor
template <bool VARYING>
void norm_gradient_run(const float* g, const uint8_t* mask, const float* x, float* d, int64_t n, const NormGradient& of) {
  const auto one = [&](Vector::F dy, Vector::F v, int64_t i) {
    const Vector::F centred = Vector::mul(Vector::sub(v, channels<VARYING>(of.mean, i)), channels<VARYING>(of.slope, i));
    return Vector::mul(Vector::sub(Vector::sub(dy, channels<VARYING>(of.offset, i)), centred), channels<VARYING>(of.factor, i));
  };
  int64_t i = 0;
  float kept[Vector::width];
  for (; i + Vector::width <= n; i += Vector::width) {
    Vector::keep(mask == nullptr ? ~0u : load_bits(mask, i), g + i, kept);
    Vector::store(d + i, one(Vector::load(kept), Vector::load(x + i), i));
  }
  for (; i < n; ++i) {
    const int64_t c = VARYING ? i : 0;
    const float dy = mask == nullptr || (mask[i >> 3] >> (i & 7) & 1) ? g[i] : 0.0f;
    const float centred = (x[i] - of.mean[c]) * of.slope[c];
    d[i] = ((dy - of.offset[c]) - centred) * of.factor[c];
  }
}

inline void norm_gradient(const float* g, const uint8_t* mask, const float* x, float* d, int64_t n, const NormGradient& of,
                          bool varying) {
  if (varying) norm_gradient_run<true>(g, mask, x, d, n, of);
  else norm_gradient_run<false>(g, mask, x, d, n, of);
}

#define TRUEQUANT_NORMS                                                                                   \
  {moments, gradient_sums, column_moments, column_gradient_sums,                                          \
   {normalize<kNone>, normalize<kRelu>, normalize<kHardtanh>, normalize<kClamp>}, norm_gradient, scaled}
