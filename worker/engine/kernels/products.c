/* Products of bf16 rows with packed bf16 weights, and what follows them, for processors that multiply pairs of bf16.
 *
 * A result is the sum over pairs in one order whatever the other rows are, so a row's bits do not depend on them.
 * Weights are packed in panels of 64 outputs: [panels][pairs of inputs][64 outputs][2], zeros where a panel is not full.
 */
#ifdef __AVX512BF16__
#include <immintrin.h>
#include <string.h>

#include "epilogue.h"

/* Six rows by four vectors are 24 sums; with four vectors of weights and one of inputs they fill the 32 registers. */
enum { LANES = 16, VECTORS = 4, PANEL = LANES * VECTORS, MAX_ROWS = 6, LINE = 64 };

/* Rows that share a panel while it is in the cache, and pairs of inputs that are in it at a time. */
enum { ROW_BLOCK = 96, PAIR_BLOCK = 512 };

/* Adds to sums [num_rows, PANEL] the products of rows with a part of a panel; meanwhile `lines` cache lines for each pair
 * are fetched from `next` on. */
INLINE void multiply_tile(float *sums, const uint16_t *rows, int64_t stride, const uint16_t *weights, int64_t num_pairs,
                          int num_rows, int is_first, const char *next, int lines) {
    __m512 acc[MAX_ROWS][VECTORS];
#pragma GCC unroll 6
    for (int row = 0; row < num_rows; row++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++)
            acc[row][v] = is_first ? _mm512_setzero_ps() : _mm512_load_ps(sums + row * PANEL + v * LANES);
    for (int64_t pair = 0; pair < num_pairs; pair++) {
        __m512bh panel[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) {
            panel[v] = (__m512bh)_mm512_loadu_si512(weights + (pair * PANEL + v * LANES) * 2);
            if (v < lines) _mm_prefetch(next + (pair * lines + v) * LINE, _MM_HINT_T1);
        }
#pragma GCC unroll 6
        for (int row = 0; row < num_rows; row++) {
            int32_t both;
            memcpy(&both, rows + row * stride + pair * 2, sizeof both);
            __m512bh input = (__m512bh)_mm512_set1_epi32(both);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) acc[row][v] = _mm512_dpbf16_ps(acc[row][v], panel[v], input);
        }
    }
#pragma GCC unroll 6
    for (int row = 0; row < num_rows; row++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) _mm512_store_ps(sums + row * PANEL + v * LANES, acc[row][v]);
}

#define TILE_OF(n)                                                                                                     \
    static __attribute__((noinline)) void multiply_##n(float *sums, const uint16_t *rows, int64_t stride,             \
                                                       const uint16_t *weights, int64_t num_pairs, int is_first,      \
                                                       const char *next, int lines) {                                  \
        multiply_tile(sums, rows, stride, weights, num_pairs, n, is_first, next, lines);                               \
    }
TILE_OF(1) TILE_OF(2) TILE_OF(3) TILE_OF(4) TILE_OF(5) TILE_OF(6)

typedef void (*Tile)(float *, const uint16_t *, int64_t, const uint16_t *, int64_t, int, const char *, int);
static const Tile TILES[MAX_ROWS + 1] = {NULL, multiply_1, multiply_2, multiply_3, multiply_4, multiply_5, multiply_6};

/* Sums [num_rows, PANEL] of rows with one panel. */
static void multiply_panel(float *sums, const uint16_t *rows, const uint16_t *panel, int64_t num_rows, int64_t inputs) {
    int64_t num_tiles = (num_rows + MAX_ROWS - 1) / MAX_ROWS;
    /* The next weights are fetched by the tiles that work on these, evenly, so that memory is never idle and never
     * waited for. What lies behind the last weights is not read. */
    int lines = num_tiles >= 4 ? 1 : num_tiles >= 2 ? 2 : VECTORS;
    for (int64_t pair = 0; pair < inputs / 2; pair += PAIR_BLOCK) {
        int64_t count = inputs / 2 - pair < PAIR_BLOCK ? inputs / 2 - pair : PAIR_BLOCK;
        const uint16_t *weights = panel + pair * PANEL * 2;
        for (int64_t tile = 0; tile < num_tiles; tile++) {
            int64_t first = num_rows * tile / num_tiles, size = num_rows * (tile + 1) / num_tiles - first;
            const char *next = (const char *)(weights + count * PANEL * 2) + tile * lines * count * LINE;
            TILES[size](sums + first * PANEL, rows + first * inputs + pair * 2, inputs, weights, count, pair == 0, next,
                        tile * lines < VECTORS ? lines : 0);
        }
    }
}

/* Rows [num_rows, inputs] times packed weights, plus bias [outputs], and what follows, into [num_rows, outputs]; `inputs`
 * is even. */
void multiply_bf16(uint16_t *output, const uint16_t *rows, const uint16_t *packed, const float *bias,
                   const uint16_t *other, int64_t num_rows, int64_t inputs, int64_t outputs, int64_t what) {
    int64_t num_panels = (outputs + PANEL - 1) / PANEL, num_blocks = (num_rows + ROW_BLOCK - 1) / ROW_BLOCK;
#pragma omp parallel for schedule(static) collapse(2)
    for (int64_t panel = 0; panel < num_panels; panel++)
        for (int64_t block = 0; block < num_blocks; block++) {
            float sums[ROW_BLOCK * PANEL] __attribute__((aligned(64)));
            int64_t first = num_rows * block / num_blocks, count = num_rows * (block + 1) / num_blocks - first;
            int64_t column = panel * PANEL, width = outputs - column < PANEL ? outputs - column : PANEL;
            multiply_panel(sums, rows + first * inputs, packed + column * inputs, count, inputs);
            for (int64_t row = 0; row < count; row++) {
                int64_t place = (first + row) * outputs + column;
                finish_columns(output + place, sums + row * PANEL, bias ? bias + column : NULL, other ? other + place : NULL,
                               width, what, 1);
            }
        }
}
#endif
