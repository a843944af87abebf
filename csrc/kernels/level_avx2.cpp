// The kernels for AVX2 with F16C and FMA.
#define TRUEQUANT_NAME "avx2"
#define TRUEQUANT_TARGET "avx2,f16c,fma"
#define TRUEQUANT_VECTOR "vector_avx2.h"
#define TRUEQUANT_KERNELS_OF avx2_kernels

#include "level_x86.inl"
