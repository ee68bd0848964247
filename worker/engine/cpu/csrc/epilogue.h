/* The epilogue of a matmul, fused with the store of its result: bias, then a residual or SwiGLU (Shazeer 2020).
 *
 * It works in fp32 on at most NR columns of one row, and rounds once.
 */
#ifndef NOCTURNE_EPILOGUE_H
#define NOCTURNE_EPILOGUE_H

#include "vecmath.h"

/* Columns of a matmul's result that are computed together; the weights have blocks of as many output features. */
enum { NR = 64 };

/* y; y + residual; or swish(gate) * up, where blocks of NR gates and of NR ups alternate in the weights. */
enum { EPILOGUE_NONE, EPILOGUE_ADD, EPILOGUE_SWIGLU };

/* Stores up to NR columns. Non-temporal stores bypass the caches; they take whole, aligned cache lines. */
INLINE void store_columns(void *output, const float *x, int64_t count, int is_bf16, int is_non_temporal) {
#ifdef __AVX512F__
    int64_t per_line = LINE / (is_bf16 ? 2 : 4);
    if (is_non_temporal || count == NR) {
        for (int64_t i = 0; i < count; i += per_line) {
            __m512 first = _mm512_loadu_ps(x + i);
            __m512i line = is_bf16 ? pack_bf16(first, _mm512_loadu_ps(x + i + LANES)) : (__m512i)first;
            void *to = (void *)at(output, i, is_bf16);
            if (is_non_temporal) _mm512_stream_si512(to, line);
            else _mm512_storeu_si512(to, line);
        }
        return;
    }
#endif
    (void)is_non_temporal;
    store(output, x, count, is_bf16);
}

/* Stores y + bias + residual of up to NR columns; bias and residual may be NULL. */
INLINE void epilogue_add(void *output, const float *y, const float *bias, const void *residual, int64_t count,
                         int is_bf16, int is_non_temporal) {
    float x[NR], z[NR];
    for (int64_t i = 0; i < count; i++) x[i] = bias ? y[i] + bias[i] : y[i];
    if (residual) {
        load(z, residual, count, is_bf16);
        for (int64_t i = 0; i < count; i++) x[i] += z[i];
    }
    store_columns(output, x, count, is_bf16, is_non_temporal);
}

/* Stores swish(gate) * up of up to NR columns; swish(gate) is rounded as if it had been stored in between. gate and up
 * have NR numbers each, and so do their biases, one after the other. */
INLINE void epilogue_swiglu(void *output, const float *gate, const float *up, const float *biases, int64_t count,
                            int is_bf16, int is_non_temporal) {
    float x[NR];
#ifdef __AVX512F__
    for (int64_t i = 0; i < NR; i += LANES) {
        __m512 g = _mm512_loadu_ps(gate + i), u = _mm512_loadu_ps(up + i);
        if (biases) {
            g = _mm512_add_ps(g, _mm512_loadu_ps(biases + i));
            u = _mm512_add_ps(u, _mm512_loadu_ps(biases + NR + i));
        }
        g = swish16(g);
        _mm512_storeu_ps(x + i, _mm512_mul_ps(is_bf16 ? round_to_bf16(g) : g, u));
    }
#else
    for (int64_t i = 0; i < count; i++) {
        float g = biases ? gate[i] + biases[i] : gate[i], z = exp_of_negative(-fabsf(g));
        g *= (g < 0 ? z : 1.0f) / (1.0f + z);
        x[i] = (is_bf16 ? from_bf16(to_bf16(g)) : g) * (biases ? up[i] + biases[NR + i] : up[i]);
    }
#endif
    store_columns(output, x, count, is_bf16, is_non_temporal);
}

#endif
