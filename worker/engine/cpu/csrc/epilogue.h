/* What follows a product, before its one rounding. */
#ifndef NOCTURNE_EPILOGUE_H
#define NOCTURNE_EPILOGUE_H

#include "vecmath.h"

/* y, y + other, or swish(gate) * y, where panels of gates and of y alternate in the weights. */
enum { NOTHING, PLUS, GATED };

/* Stores up to PANEL columns; with `streams` past the caches, whole lines to the beginning of one. */
INLINE void store_columns(void *output, const float *x, int64_t count, int is_bf16, int streams) {
#ifdef __AVX512F__
    int64_t in_line = is_bf16 ? 32 : 16;
    if (streams || count == PANEL) {
        for (int64_t i = 0; i < count; i += in_line) {
            __m512 first = _mm512_loadu_ps(x + i);
            __m512i line = is_bf16 ? as_bf16(first, _mm512_loadu_ps(x + i + 16)) : (__m512i)first;
            void *place = (void *)at(output, i, is_bf16);
            if (streams) _mm512_stream_si512(place, line);
            else _mm512_storeu_si512(place, line);
        }
        return;
    }
#endif
    (void)streams;
    store(output, x, count, is_bf16);
}

/* Stores y, plus bias and other where they are, of up to PANEL columns. */
INLINE void finish_columns(void *output, const float *y, const float *bias, const void *other, int64_t count,
                           int is_bf16, int streams) {
    float x[PANEL], z[PANEL];
    for (int64_t i = 0; i < count; i++) x[i] = bias ? y[i] + bias[i] : y[i];
    if (other) {
        load(z, other, count, is_bf16);
        for (int64_t i = 0; i < count; i++) x[i] += z[i];
    }
    store_columns(output, x, count, is_bf16, streams);
}

/* Stores gate * sigmoid(gate), rounded as if it had been stored, times y, of up to PANEL columns. Gate, y and the biases of
 * both, one after the other, have PANEL numbers each. */
INLINE void finish_gated(void *output, const float *gate, const float *y, const float *biases, int64_t count, int is_bf16,
                         int streams) {
    float x[PANEL];
#ifdef __AVX512F__
    for (int64_t i = 0; i < PANEL; i += 16) {
        __m512 g = _mm512_loadu_ps(gate + i), z = _mm512_loadu_ps(y + i);
        if (biases) {
            g = _mm512_add_ps(g, _mm512_loadu_ps(biases + i));
            z = _mm512_add_ps(z, _mm512_loadu_ps(biases + PANEL + i));
        }
        g = swish_of(g);
        _mm512_storeu_ps(x + i, _mm512_mul_ps(is_bf16 ? rounded_to_bf16(g) : g, z));
    }
#else
    for (int64_t i = 0; i < count; i++) {
        float g = biases ? gate[i] + biases[i] : gate[i], z = exp_of_negative(-fabsf(g));
        g *= (g < 0 ? z : 1.0f) / (1.0f + z);
        x[i] = (is_bf16 ? from_bf16(to_bf16(g)) : g) * (biases ? y[i] + biases[PANEL + i] : y[i]);
    }
#endif
    store_columns(output, x, count, is_bf16, streams);
}

#endif
