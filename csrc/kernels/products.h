// Products of matrices of whole numbers, whose sums are exact.
#pragma once

#include <cstdint>
#include <vector>

namespace truequant {

constexpr int64_t kLongestSum = 1 << 14;  // so many products of 8 bits by 9 stay far below 2^31

// A matrix of `rows` by `inputs` numbers of 16 bits, with a zero behind each row where `inputs` is odd.
class WholeRows {
 public:
  WholeRows(int64_t rows, int64_t inputs);
  int16_t* row(int64_t r) { return numbers_.data() + r * pitch_; }
  const int16_t* row(int64_t r) const { return numbers_.data() + r * pitch_; }
  int64_t rows() const { return rows_; }
  int64_t inputs() const { return inputs_; }
  int64_t pitch() const { return pitch_; }

 private:
  int64_t rows_, inputs_, pitch_;
  std::vector<int16_t> numbers_;
};

// What is read as whole numbers: floats that are `scale` times one each, or codes of a byte less their zero point.
struct Codes {
  const float* values;
  const int8_t* bytes;
  const uint8_t* unsigned_bytes;
  float scale;
  int32_t zero_point;

  // n of them from element i on; false where a float is no such number.
  bool read(int64_t i, int64_t n, int16_t* to) const;
};

// Rows without gaps; false as above.
bool whole_rows(const Codes& from, WholeRows& to);

// sums[r * outputs + k] of the rows of `a` with those of `b`, `(outputs, inputs)`.
void products_of_rows(const WholeRows& a, const WholeRows& b, int32_t* sums);

// How sums become codes or values (`ProductKernels::requantized`): of each output, or of all where `factors` is 1.
struct Requantization {
  const int32_t* offset;  // of each output
  const float* factor;
  int64_t factors;
  float zero, low, high, scale;
};

// y[r * outputs + k] of sums[r * outputs + k].
void requantize_rows(const int32_t* sums, float* y, int64_t rows, int64_t outputs, const Requantization& how);

// What a convolution of images does: `axes` sizes of each.
struct Windows {
  int64_t axes, groups;
  int64_t kernel[3], stride[3], begin[3], end[3], dilation[3];
};

// y `(n, out, *places)` of images x `(n, in, *space)` and weights `(out, in / groups * taps)`: false where an element of x is no
// whole number; what is in y is of no use then.
bool convolve(const Codes& x, int64_t n, int64_t channels, const int64_t* space, const WholeRows& weight, const Windows& windows,
              const int64_t* places, const Requantization& how, float* y);

}  // namespace truequant
