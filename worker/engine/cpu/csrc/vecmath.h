/* Elementary functions on fp32, one number or an AVX-512 vector at a time, and conversions between fp32 and bf16.
 *
 * Memory holds bf16 or fp32, arithmetic is always fp32; functions take `is_bf16` as a constant and are inlined.
 */
#ifndef NOCTURNE_VECMATH_H
#define NOCTURNE_VECMATH_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#define INLINE static inline __attribute__((always_inline))

/* fp32 numbers of an AVX-512 vector, and bytes of a cache line. */
enum { LANES = 16, LINE = 64 };

INLINE int64_t ceil_div(int64_t count, int64_t size) { return (count + size - 1) / size; }

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

/* The maximum, compared as integers (the bits of floats, with those of negative ones flipped, are in the same order):
 * compilers vectorize that, and do not vectorize the maximum of floats. */
INLINE float max_of(const float *x, int64_t count) {
    int32_t max = INT32_MIN;
    for (int64_t i = 0; i < count; i++) {
        int32_t bits = bits_of(x[i]), ordered = bits ^ ((bits >> 31) & INT32_MAX);
        max = ordered > max ? ordered : max;
    }
    return with_bits(max ^ ((max >> 31) & INT32_MAX));
}

/* expf of Cephes (Moshier): log2(e), ln(2) in two parts (Cody & Waite 1980), and the polynomial's coefficients, highest
 * power first. */
#define MIN_EXPONENT -87.0f
#define LOG2_E 1.44269504f
#define LN2_HIGH 0.693359375f
#define LN2_LOW -2.12194440e-4f
enum { EXP_DEGREE = 6 };
static const float EXP_COEFFICIENTS[EXP_DEGREE] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                                   4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};

/* exp(x) for x <= 0 with a relative error of about 2e-7: 2^n times a polynomial of the rest. Never below exp(-87),
 * which is still a normal number. */
INLINE float exp_of_negative(float x) {
    x = x < MIN_EXPONENT ? MIN_EXPONENT : x;
    float n = rintf(x * LOG2_E);
    float r = x - n * LN2_HIGH - n * LN2_LOW;
    float p = EXP_COEFFICIENTS[0];
#pragma GCC unroll 6
    for (int i = 1; i < EXP_DEGREE; i++) p = p * r + EXP_COEFFICIENTS[i];
    p = p * r * r + r + 1.0f;
    return p * with_bits(((int32_t)n + 127) << 23);
}

#ifdef __AVX512F__
#include <immintrin.h>

/* `exp_of_negative` of 16 numbers; multiply-adds round once. */
INLINE __m512 exp16_of_negative(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(MIN_EXPONENT), x); /* in this order: the second operand, x, if x is NaN */
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(LOG2_E)), _MM_FROUND_TO_NEAREST_INT);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2_HIGH), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2_LOW), r);
    __m512 p = _mm512_set1_ps(EXP_COEFFICIENTS[0]);
#pragma GCC unroll 6
    for (int i = 1; i < EXP_DEGREE; i++) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_COEFFICIENTS[i]));
    p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

/* 2^x of 16 numbers with a relative error of 1e-7: the integer part goes into the exponent, the rest into a
 * polynomial. */
INLINE __m512 exp2_16(__m512 x) {
    enum { DEGREE = 5 };
    static const float coefficients[DEGREE + 1] = {1.32764697e-3f, 9.67553937e-3f, 5.55071272e-2f,
                                                   2.40221197e-1f, 6.93146972e-1f, 1.00000007f};
    __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT), r = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(coefficients[0]);
#pragma GCC unroll 5
    for (int i = 1; i <= DEGREE; i++) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(coefficients[i]));
    return _mm512_scalef_ps(p, n);
}

/* swish(x) = x * sigmoid(x) of 16 numbers; one Newton step squares the reciprocal's error of 2^-14. */
INLINE __m512 swish16(__m512 x) {
    __m512 one = _mm512_set1_ps(1.0f), z = exp16_of_negative(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(x)));
    __m512 divisor = _mm512_add_ps(one, z), inverse = _mm512_rcp14_ps(divisor);
    inverse = _mm512_mul_ps(inverse, _mm512_fnmadd_ps(divisor, inverse, _mm512_set1_ps(2.0f)));
    __mmask16 is_negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    return _mm512_mul_ps(_mm512_mask_mul_ps(x, is_negative, x, z), inverse);
}

/* Rounds as `to_bf16` does; the upper half of each lane is the bf16. */
INLINE __m512i round_upper_half(__m512 x) {
    __m512i bits = (__m512i)x, is_odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(bits, _mm512_add_epi32(is_odd, _mm512_set1_epi32(0x7fff)));
}

INLINE __m512 round_to_bf16(__m512 x) {
    return (__m512)_mm512_and_si512(round_upper_half(x), _mm512_set1_epi32((int32_t)0xffff0000));
}

/* 32 numbers as bf16. */
INLINE __m512i pack_bf16(__m512 first, __m512 second) {
#ifdef __AVX512BF16__
    return (__m512i)_mm512_cvtne2ps_pbh(second, first);
#else
    __m256i low = _mm512_cvtepi32_epi16(_mm512_srli_epi32(round_upper_half(first), 16));
    __m256i high = _mm512_cvtepi32_epi16(_mm512_srli_epi32(round_upper_half(second), 16));
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
#endif
}

/* Transposes 16 rows of 16 elements: pairs, fours, eights, then halves change places. */
INLINE void transpose_16x16(__m512i x[LANES]) {
    __m512i y[LANES];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        y[2 * i] = _mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
        y[2 * i + 1] = _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        x[4 * i] = _mm512_unpacklo_epi64(y[4 * i], y[4 * i + 2]);
        x[4 * i + 1] = _mm512_unpackhi_epi64(y[4 * i], y[4 * i + 2]);
        x[4 * i + 2] = _mm512_unpacklo_epi64(y[4 * i + 1], y[4 * i + 3]);
        x[4 * i + 3] = _mm512_unpackhi_epi64(y[4 * i + 1], y[4 * i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        y[i] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88);
        y[i + 4] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd);
        y[i + 8] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
        y[i + 12] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        x[i] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0x88);
        x[i + 8] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0xdd);
    }
}
#endif

#endif
