/* Products of rows with packed weights, and what follows them: pairs of bf16, four bytes, or one fp32 at a time.
 *
 * A result is a sum in one order whatever the other rows are, so a row's bits do not depend on them. Weights are packed
 * in panels of 64 outputs, [panels][words of inputs][64 outputs], zeros where a panel is not full; a word is 4 bytes.
 */
/* Whether two bf16 at once are faster than one after the other. On Intel's processors an instruction with pairs takes four
 * times as long as one with fp32. */
int pairs_are_fast(void) {
#ifdef __AVX512BF16__
    return !__builtin_cpu_is("intel");
#else
    return 0;
#endif
}

#ifdef __AVX512F__
#include <omp.h>

#include "epilogue.h"
#include "tiles.h"

/* Rows that share a panel while it is in the cache, and words of inputs that are in it at a time. */
enum { ROW_BLOCK = 96, WORD_BLOCK = 512 };

/* Pairs of bf16 that are widened at a time: 16 KB of fp32 weights stay in the first cache for all rows. */
enum { WIDE_BLOCK = 32 };

/* So many tiles of rows make it worth while to widen weights once for all of them. */
enum { WIDENING_PAYS = 6 };

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

/* Words as fp32 numbers, [num_words][2][PANEL]. */
INLINE void widen(float *to, const char *pairs, int64_t num_words) {
    for (int64_t line = 0; line < num_words * VECTORS; line++) {
        __m512i words = _mm512_loadu_si512(pairs + line * LINE);
        float *place = to + line / VECTORS * 2 * PANEL + line % VECTORS * LANES;
        _mm512_store_si512(place, widened(words, 0));
        _mm512_store_si512(place + PANEL, widened(words, 1));
    }
}

/* The same of bf16 that is widened, once for all rows where there are many; the sums are the same either way. */
static void multiply_widened_panel(int32_t *sums, const char *rows, const char *panel, int64_t num_rows,
                                   int64_t num_words) {
    float wide[WIDE_BLOCK * 2 * PANEL] __attribute__((aligned(LINE))), inputs[MAX_ROWS * WIDE_BLOCK * 2];
    int64_t num_tiles = (num_rows + MAX_ROWS - 1) / MAX_ROWS;
    int widens_first = num_tiles >= WIDENING_PAYS;
    int lines = num_tiles >= 4 ? 1 : num_tiles >= 2 ? 2 : VECTORS;
    for (int64_t word = 0; word < num_words; word += WIDE_BLOCK) {
        int64_t count = num_words - word < WIDE_BLOCK ? num_words - word : WIDE_BLOCK;
        const char *weights = panel + word * PANEL * WORD, *next = weights + count * PANEL * WORD;
        if (widens_first) widen(wide, weights, count);
        for (int64_t tile = 0; tile < num_tiles; tile++) {
            int64_t first = num_rows * tile / num_tiles, size = num_rows * (tile + 1) / num_tiles - first;
            for (int64_t row = 0; row < size; row++)
                load(inputs + row * WIDE_BLOCK * 2, rows + ((first + row) * num_words + word) * WORD, count * 2, 1);
            const char *mine = (const char *)inputs, *fetched = next + tile * lines * count * LINE;
            if (widens_first) /* twice as many words, each with a line */
                TILES_f32[size](sums + first * PANEL, mine, WIDE_BLOCK * 2 * WORD, (const char *)wide, count * 2,
                                word == 0, next + tile * 2 * count * LINE, tile < VECTORS / 2);
            else
                TILES_widened[size](sums + first * PANEL, mine, WIDE_BLOCK * 2 * WORD, weights, count, word == 0,
                                    fetched, tile * lines < VECTORS ? lines : 0);
        }
    }
}

/* What int8 rows and weights are worth; zeros are bytes of 128. */
typedef struct {
    const float *row_scales, *weight_scales; /* [num_rows], [outputs] */
    const int32_t *zeros;                    /* [outputs] the products of zeros with the weights */
} Worth;

/* Rows [num_rows, num_words] times packed weights, plus bias [outputs], and what follows, into [num_rows, outputs];
 * bf16 is widened where there are no tiles for it. */
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
            const char *mine_rows = rows + first * num_words * WORD, *weights = packed + column * num_words * WORD;
            if (tiles)
                multiply_panel(sums, mine_rows, weights, count, num_words, tiles);
            else
                multiply_widened_panel(sums, mine_rows, weights, count, num_words);
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

/* One input a word. */
void multiply_f32(void *output, const char *rows, const char *packed, const float *bias, const void *other,
                  int64_t num_rows, int64_t num_words, int64_t outputs, int64_t what) {
    multiply(output, rows, packed, bias, other, NULL, num_rows, num_words, outputs, what, TILES_f32, 0);
}

/* Two inputs a word, one at a time. */
void multiply_bf16_widened(void *output, const char *rows, const char *packed, const float *bias, const void *other,
                           int64_t num_rows, int64_t num_words, int64_t outputs, int64_t what) {
    multiply(output, rows, packed, bias, other, NULL, num_rows, num_words, outputs, what, NULL, 1);
}

#ifdef __AVX512BF16__
/* Two inputs a word, both at once. */
void multiply_bf16_pairs(void *output, const char *rows, const char *packed, const float *bias, const void *other,
                         int64_t num_rows, int64_t num_words, int64_t outputs, int64_t what) {
    multiply(output, rows, packed, bias, other, NULL, num_rows, num_words, outputs, what, TILES_pairs, 1);
}
#endif

#ifdef __AVX512VNNI__
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
