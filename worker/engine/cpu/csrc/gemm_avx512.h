/* Up to six rows times 64 outputs, summed in registers: what all products are made of. */
#ifndef NOCTURNE_TILES_H
#define NOCTURNE_TILES_H

#include <immintrin.h>
#include <string.h>

#include "vecmath.h"

/* Six rows by four vectors are 24 sums; with four vectors of weights and one of inputs they fill the 32 registers. */
enum { VECTORS = PANEL / LANES, MAX_ROWS = 6 };

enum { WORD = 4, LINE = 64 }; /* bytes */

/* Words of inputs whose weights, 128 KiB of a panel, stay in the second cache for all rows. */
enum { WORD_BLOCK = 512 };

/* What a word is: an fp32, two bf16, four bytes. Where the processor is slow with pairs of bf16 they are widened to fp32
 * one by one, and the inputs with them are fp32 already. */
enum { F32, BF16_PAIRS, WIDENED_BF16, INT8 };

/* Sums of 4 bytes each: whole numbers of int8 products, floats of the others. */
INLINE __m512i add_products(__m512i sums, __m512i weights, __m512i inputs, int kind) {
#ifdef __AVX512VNNI__
    if (kind == INT8) return _mm512_dpbusd_epi32(sums, inputs, weights);
#endif
#ifdef __AVX512BF16__
    if (kind == BF16_PAIRS) return (__m512i)_mm512_dpbf16_ps((__m512)sums, (__m512bh)weights, (__m512bh)inputs);
#endif
    return (__m512i)_mm512_fmadd_ps((__m512)weights, (__m512)inputs, (__m512)sums);
}

/* The first or the second bf16 of each pair as fp32. */
INLINE __m512i widened(__m512i pairs, int is_second) {
    return is_second ? _mm512_and_si512(pairs, _mm512_set1_epi32((int32_t)0xffff0000)) : _mm512_slli_epi32(pairs, 16);
}

/* Adds to sums [num_rows, PANEL] the products of rows, `stride` bytes apart, with a part of a panel; meanwhile `lines`
 * cache lines for each word are fetched from `next` on. */
INLINE void multiply_tile(int32_t *sums, const char *rows, int64_t stride, const char *weights, int64_t num_words,
                          int num_rows, int is_first, const char *next, int lines, int kind) {
    __m512i mine[MAX_ROWS][VECTORS];
#pragma GCC unroll 6
    for (int row = 0; row < num_rows; row++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++)
            mine[row][v] = is_first ? _mm512_setzero_si512() : _mm512_load_si512(sums + row * PANEL + v * LANES);
    const int inputs_of_word = kind == WIDENED_BF16 ? 2 : 1;
    for (int64_t word = 0; word < num_words; word++)
#pragma GCC unroll 2
        for (int part = 0; part < inputs_of_word; part++) {
            __m512i panel[VECTORS];
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) {
                panel[v] = _mm512_loadu_si512(weights + (word * PANEL + v * LANES) * WORD);
                if (kind == WIDENED_BF16) panel[v] = widened(panel[v], part);
                if (part == 0 && v < lines) _mm_prefetch(next + (word * lines + v) * LINE, _MM_HINT_T1);
            }
#pragma GCC unroll 6
            for (int row = 0; row < num_rows; row++) {
                int32_t bits;
                memcpy(&bits, rows + row * stride + (word * inputs_of_word + part) * WORD, WORD);
                __m512i inputs = _mm512_set1_epi32(bits);
#pragma GCC unroll 4
                for (int v = 0; v < VECTORS; v++) mine[row][v] = add_products(mine[row][v], panel[v], inputs, kind);
            }
            /* The pairs are loaded twice: there are no registers to keep them in. */
            if (kind == WIDENED_BF16) __asm__ volatile("" ::: "memory");
        }
#pragma GCC unroll 6
    for (int row = 0; row < num_rows; row++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) _mm512_store_si512(sums + row * PANEL + v * LANES, mine[row][v]);
}

/* A known number of rows keeps their sums in registers. */
typedef void (*Tile)(int32_t *, const char *, int64_t, const char *, int64_t, int, const char *, int);
#define TILE_OF(n, name, kind)                                                                                         \
    static __attribute__((noinline)) void multiply_##n##_##name(int32_t *sums, const char *rows, int64_t stride,       \
                                                                const char *weights, int64_t num_words, int is_first,  \
                                                                const char *next, int lines) {                         \
        multiply_tile(sums, rows, stride, weights, num_words, n, is_first, next, lines, kind);                         \
    }
#define TILES_OF(name, kind)                                                                                           \
    TILE_OF(1, name, kind) TILE_OF(2, name, kind) TILE_OF(3, name, kind)                                               \
    TILE_OF(4, name, kind) TILE_OF(5, name, kind) TILE_OF(6, name, kind)                                               \
    static const Tile TILES_##name[] = {NULL,              multiply_1_##name, multiply_2_##name, multiply_3_##name,    \
                                        multiply_4_##name, multiply_5_##name, multiply_6_##name};

TILES_OF(f32, F32)
TILES_OF(widened, WIDENED_BF16)
#ifdef __AVX512BF16__
TILES_OF(pairs, BF16_PAIRS)
#endif
#ifdef __AVX512VNNI__
TILES_OF(int8, INT8)
#endif

#endif
