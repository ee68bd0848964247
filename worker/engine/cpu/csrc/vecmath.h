/* Numbers in memory, bf16 or fp32, and numbers to compute with, always fp32. */
#ifndef NOCTURNE_NUMBERS_H
#define NOCTURNE_NUMBERS_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#define INLINE static inline __attribute__((always_inline))

/* Outputs of a product whose weights stand together, and numbers of a vector. */
enum { PANEL = 64, LANES = 16 };

INLINE float from_bf16(uint16_t bits) {
    union { uint32_t bits; float value; } both = {(uint32_t)bits << 16};
    return both.value;
}

INLINE uint16_t to_bf16(float value) { /* to nearest, ties to even */
    union { float value; uint32_t bits; } both = {value};
    return (uint16_t)((both.bits + 0x7fff + ((both.bits >> 16) & 1)) >> 16);
}

INLINE void load(float *to, const void *from, int64_t count, int is_bf16) {
    if (is_bf16)
        for (int64_t i = 0; i < count; i++) to[i] = from_bf16(((const uint16_t *)from)[i]);
    else
        for (int64_t i = 0; i < count; i++) to[i] = ((const float *)from)[i];
}

INLINE void store(void *to, const float *from, int64_t count, int is_bf16) {
    if (is_bf16)
        for (int64_t i = 0; i < count; i++) ((uint16_t *)to)[i] = to_bf16(from[i]);
    else
        for (int64_t i = 0; i < count; i++) ((float *)to)[i] = from[i];
}

INLINE const void *at(const void *base, int64_t index, int is_bf16) {
    return (const char *)base + index * (is_bf16 ? 2 : 4);
}

INLINE int32_t bits_of(float value) {
    union { float value; int32_t bits; } both = {value};
    return both.bits;
}

INLINE float with_bits(int32_t bits) {
    union { int32_t bits; float value; } both = {bits};
    return both.value;
}

/* Compared as whole numbers, because compilers do not look for the largest of floats side by side. */
INLINE float largest_of(const float *x, int64_t count) {
    int32_t largest = INT32_MIN;
    for (int64_t i = 0; i < count; i++) {
        int32_t bits = bits_of(x[i]), ordered = bits ^ ((bits >> 31) & INT32_MAX);
        largest = ordered > largest ? ordered : largest;
    }
    return with_bits(largest ^ ((largest >> 31) & INT32_MAX));
}

/* Of exp (Cephes): log2(e), ln(2) in two parts, and the polynomial's factors, that of the highest power first. */
#define SMALLEST_EXPONENT -87.0f
#define LOG2_E 1.44269504f
#define LN2_HIGH 0.693359375f
#define LN2_LOW -2.12194440e-4f
enum { EXP_DEGREE = 6 };
static const float EXP_FACTORS[EXP_DEGREE] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                              4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};

/* exp(x) for x <= 0 with a relative error of about 2e-7: 2^n times a polynomial of the rest. Not below exp(-87), the
 * smallest that is no denormal number. */
INLINE float exp_of_negative(float x) {
    x = x < SMALLEST_EXPONENT ? SMALLEST_EXPONENT : x;
    float n = rintf(x * LOG2_E);
    float r = x - n * LN2_HIGH - n * LN2_LOW;
    float p = EXP_FACTORS[0];
#pragma GCC unroll 6
    for (int i = 1; i < EXP_DEGREE; i++) p = p * r + EXP_FACTORS[i];
    p = p * r * r + r + 1.0f;
    return p * with_bits(((int32_t)n + 127) << 23);
}

#ifdef __AVX512F__
#include <immintrin.h>

/* The same of 16 numbers, with one rounding where products are added. */
INLINE __m512 exp_of_negatives(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(SMALLEST_EXPONENT), x); /* the second, if one is no number */
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(LOG2_E)), _MM_FROUND_TO_NEAREST_INT);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2_HIGH), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2_LOW), r);
    __m512 p = _mm512_set1_ps(EXP_FACTORS[0]);
#pragma GCC unroll 6
    for (int i = 1; i < EXP_DEGREE; i++) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_FACTORS[i]));
    p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

/* 2^x of 16 numbers with a relative error of 1e-7: the whole part goes into the exponent, the rest into a polynomial. */
INLINE __m512 power_of_two(__m512 x) {
    enum { DEGREE = 5 };
    static const float factors[DEGREE + 1] = {1.32764697e-3f, 9.67553937e-3f, 5.55071272e-2f,
                                              2.40221197e-1f, 6.93146972e-1f, 1.00000007f};
    __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT), r = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(factors[0]);
#pragma GCC unroll 5
    for (int i = 1; i <= DEGREE; i++) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(factors[i]));
    return _mm512_scalef_ps(p, n);
}

/* x * sigmoid(x) of 16 numbers; the reciprocal's error of 2^-14 is squared by a step of Newton's. */
INLINE __m512 swish_of(__m512 x) {
    __m512 one = _mm512_set1_ps(1.0f), z = exp_of_negatives(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(x)));
    __m512 divisor = _mm512_add_ps(one, z), inverse = _mm512_rcp14_ps(divisor);
    inverse = _mm512_mul_ps(inverse, _mm512_fnmadd_ps(divisor, inverse, _mm512_set1_ps(2.0f)));
    __mmask16 is_negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    return _mm512_mul_ps(_mm512_mask_mul_ps(x, is_negative, x, z), inverse);
}

/* Rounded as `to_bf16` does; a bf16 is the upper half of each word. */
INLINE __m512i with_bf16_above(__m512 x) {
    __m512i bits = (__m512i)x, is_odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(bits, _mm512_add_epi32(is_odd, _mm512_set1_epi32(0x7fff)));
}

INLINE __m512 rounded_to_bf16(__m512 x) {
    return (__m512)_mm512_and_si512(with_bf16_above(x), _mm512_set1_epi32((int32_t)0xffff0000));
}

/* 32 numbers as bf16. */
INLINE __m512i as_bf16(__m512 first, __m512 second) {
#ifdef __AVX512BF16__
    return (__m512i)_mm512_cvtne2ps_pbh(second, first);
#else
    __m256i low = _mm512_cvtepi32_epi16(_mm512_srli_epi32(with_bf16_above(first), 16));
    __m256i high = _mm512_cvtepi32_epi16(_mm512_srli_epi32(with_bf16_above(second), 16));
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
#endif
}
#endif

#endif
