/* Products of rows with packed weights, and what follows them: pairs of bf16, or four bytes, at a time.
 *
 * A result is a sum in one order whatever the other rows are, so a row's bits do not depend on them. Weights are packed
 * in panels of 64 outputs, [panels][words of inputs][64 outputs], zeros where a panel is not full; a word is 4 bytes.
 */
#if defined(__AVX512BF16__) || defined(__AVX512VNNI__)
#include <immintrin.h>
#include <omp.h>
#include <string.h>

#include "epilogue.h"

/* Six rows by four vectors are 24 sums; with four vectors of weights and one of inputs they fill the 32 registers. */
enum { LANES = 16, VECTORS = 4, PANEL = LANES * VECTORS, MAX_ROWS = 6 };

/* Rows that share a panel while it is in the cache, and words of inputs that are in it at a time. */
enum { ROW_BLOCK = 96, WORD_BLOCK = 512 };

enum { WORD = 4, LINE = 64 }; /* bytes */

/* Sums of 4 bytes each, floats of bf16 products or whole numbers of int8 products. */
INLINE __m512i add_products(__m512i sums, __m512i weights, __m512i inputs, int is_int8) {
#ifdef __AVX512VNNI__
    if (is_int8) return _mm512_dpbusd_epi32(sums, inputs, weights);
#endif
#ifdef __AVX512BF16__
    if (!is_int8) return (__m512i)_mm512_dpbf16_ps((__m512)sums, (__m512bh)weights, (__m512bh)inputs);
#endif
    return sums;
}

/* Adds to sums [num_rows, PANEL] the products of rows, `stride` bytes apart, with a part of a panel; meanwhile `lines`
 * cache lines for each word are fetched from `next` on. */
INLINE void multiply_tile(int32_t *sums, const char *rows, int64_t stride, const char *weights, int64_t num_words,
                          int num_rows, int is_first, const char *next, int lines, int is_int8) {
    __m512i mine[MAX_ROWS][VECTORS];
#pragma GCC unroll 6
    for (int row = 0; row < num_rows; row++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++)
            mine[row][v] = is_first ? _mm512_setzero_si512() : _mm512_load_si512(sums + row * PANEL + v * LANES);
    for (int64_t word = 0; word < num_words; word++) {
        __m512i panel[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) {
            panel[v] = _mm512_loadu_si512(weights + (word * PANEL + v * LANES) * WORD);
            if (v < lines) _mm_prefetch(next + (word * lines + v) * LINE, _MM_HINT_T1);
        }
#pragma GCC unroll 6
        for (int row = 0; row < num_rows; row++) {
            int32_t bits;
            memcpy(&bits, rows + row * stride + word * WORD, WORD);
            __m512i inputs = _mm512_set1_epi32(bits);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) mine[row][v] = add_products(mine[row][v], panel[v], inputs, is_int8);
        }
    }
#pragma GCC unroll 6
    for (int row = 0; row < num_rows; row++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) _mm512_store_si512(sums + row * PANEL + v * LANES, mine[row][v]);
}

/* A known number of rows keeps their sums in registers. */
typedef void (*Tile)(int32_t *, const char *, int64_t, const char *, int64_t, int, const char *, int);
#define TILE_OF(n, kind, is_int8)                                                                                      \
    static __attribute__((noinline)) void multiply_##n##_##kind(int32_t *sums, const char *rows, int64_t stride,       \
                                                                const char *weights, int64_t num_words, int is_first,  \
                                                                const char *next, int lines) {                         \
        multiply_tile(sums, rows, stride, weights, num_words, n, is_first, next, lines, is_int8);                      \
    }
#define TILES_OF(kind, is_int8)                                                                                        \
    TILE_OF(1, kind, is_int8) TILE_OF(2, kind, is_int8) TILE_OF(3, kind, is_int8)                                      \
    TILE_OF(4, kind, is_int8) TILE_OF(5, kind, is_int8) TILE_OF(6, kind, is_int8)                                      \
    static const Tile TILES_##kind[] = {NULL,              multiply_1_##kind, multiply_2_##kind, multiply_3_##kind,    \
                                        multiply_4_##kind, multiply_5_##kind, multiply_6_##kind};

/* Sums [num_rows, PANEL] of rows of `num_words` words with one panel. */
INLINE void multiply_panel(int32_t *sums, const char *rows, const char *panel, int64_t num_rows, int64_t num_words,
                           const Tile *tiles) {
    int64_t num_tiles = (num_rows + MAX_ROWS - 1) / MAX_ROWS;
    /* The next weights are fetched by the tiles that work on these, evenly, so that memory is never idle and never
     * waited for. What lies behind the last weights is not read. */
    int lines = num_tiles >= 4 ? 1 : num_tiles >= 2 ? 2 : VECTORS;
    for (int64_t word = 0; word < num_words; word += WORD_BLOCK) {
        int64_t count = num_words - word < WORD_BLOCK ? num_words - word : WORD_BLOCK;
        const char *weights = panel + word * PANEL * WORD;
        for (int64_t tile = 0; tile < num_tiles; tile++) {
            int64_t first = num_rows * tile / num_tiles, size = num_rows * (tile + 1) / num_tiles - first;
            const char *next = weights + count * PANEL * WORD + tile * lines * count * LINE;
            tiles[size](sums + first * PANEL, rows + (first * num_words + word) * WORD, num_words * WORD, weights, count,
                        word == 0, next, tile * lines < VECTORS ? lines : 0);
        }
    }
}

/* What int8 rows and weights are worth; zeros are bytes of 128. */
typedef struct {
    const float *row_scales, *weight_scales; /* [num_rows], [outputs] */
    const int32_t *zeros;                    /* [outputs] the products of zeros with the weights */
} Worth;

/* Rows [num_rows, num_words] times packed weights, plus bias [outputs], and what follows, into [num_rows, outputs]. */
INLINE void multiply(void *output, const char *rows, const char *packed, const float *bias, const void *other,
                     const Worth *worth, int64_t num_rows, int64_t num_words, int64_t outputs, int64_t what,
                     const Tile *tiles, int is_bf16) {
    int64_t num_panels = (outputs + PANEL - 1) / PANEL, num_blocks = (num_rows + ROW_BLOCK - 1) / ROW_BLOCK;
    /* Where there are more threads than panels, several share one. */
    int64_t num_sharing = (omp_get_max_threads() + num_panels - 1) / num_panels;
    int64_t most_blocks = (num_rows + MAX_ROWS - 1) / MAX_ROWS;
    if (num_sharing > num_blocks) num_blocks = num_sharing < most_blocks ? num_sharing : most_blocks;
#pragma omp parallel for schedule(static) collapse(2)
    for (int64_t panel = 0; panel < num_panels; panel++)
        for (int64_t block = 0; block < num_blocks; block++) {
            int32_t sums[ROW_BLOCK * PANEL] __attribute__((aligned(LINE)));
            int64_t first = num_rows * block / num_blocks, count = num_rows * (block + 1) / num_blocks - first;
            int64_t column = panel * PANEL, width = outputs - column < PANEL ? outputs - column : PANEL;
            multiply_panel(sums, rows + first * num_words * WORD, packed + column * num_words * WORD, count, num_words,
                           tiles);
            for (int64_t row = 0; row < count; row++) {
                int64_t place = (first + row) * outputs + column;
                const int32_t *mine = sums + row * PANEL;
                float y[PANEL];
                if (worth)
                    for (int64_t i = 0; i < width; i++)
                        y[i] = (float)(mine[i] - worth->zeros[column + i]) * worth->row_scales[first + row] *
                               worth->weight_scales[column + i];
                else
                    memcpy(y, mine, sizeof y);
                finish_columns((void *)at(output, place, is_bf16), y, bias ? bias + column : NULL,
                               other ? at(other, place, is_bf16) : NULL, width, what, is_bf16);
            }
        }
}

#ifdef __AVX512BF16__
TILES_OF(bf16, 0)

/* `num_words` pairs of inputs. */
void multiply_bf16(void *output, const char *rows, const char *packed, const float *bias, const void *other,
                   int64_t num_rows, int64_t num_words, int64_t outputs, int64_t what) {
    multiply(output, rows, packed, bias, other, NULL, num_rows, num_words, outputs, what, TILES_bf16, 1);
}
#endif

#ifdef __AVX512VNNI__
TILES_OF(int8, 1)

/* `num_words` fours of inputs; output and other in bf16 or fp32. */
void multiply_int8_bf16(void *output, const char *rows, const char *packed, const float *bias, const void *other,
                        const Worth *worth, int64_t num_rows, int64_t num_words, int64_t outputs, int64_t what) {
    multiply(output, rows, packed, bias, other, worth, num_rows, num_words, outputs, what, TILES_int8, 1);
}

void multiply_int8_f32(void *output, const char *rows, const char *packed, const float *bias, const void *other,
                       const Worth *worth, int64_t num_rows, int64_t num_words, int64_t outputs, int64_t what) {
    multiply(output, rows, packed, bias, other, worth, num_rows, num_words, outputs, what, TILES_int8, 0);
}
#endif
#endif
