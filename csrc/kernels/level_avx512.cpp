// The kernels for AVX-512 (F, BW, DQ, VL) with BMI2.
#define TRUEQUANT_NAME "avx512"
#define TRUEQUANT_TARGET "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,bmi2"
#define TRUEQUANT_VECTOR "vector_avx512.h"
#define TRUEQUANT_WORDS
#define TRUEQUANT_KERNELS_OF avx512_kernels

#include "level_x86.inl"
