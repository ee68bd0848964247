/* Products of rows with packed weights, and what follows them: pairs of bf16, four bytes, or one fp32 at a time.
 *
 * A result is a sum in one order whatever the other rows are, so a row's bits do not depend on them. Weights are packed
 * in panels of 64 outputs, [panels][words of inputs][64 outputs], zeros where a panel is not full; a word is 4 bytes. For
 * AMX a panel has another order (amx.h).
 */
#define _GNU_SOURCE

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

#include "amx.h"
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
static void multiply_panel_widened(int32_t *sums, const char *rows, const char *panel, int64_t num_rows,
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

/* Sums [num_rows, PANEL] of rows of `num_words` words with one panel, of one kind. */
typedef void (*PanelProduct)(int32_t *sums, const char *rows, const char *panel, int64_t num_rows, int64_t num_words);
#define PANEL_OF(name, multiply, kind)                                                                                 \
    static void multiply_panel_##name(int32_t *sums, const char *rows, const char *panel, int64_t num_rows,            \
                                      int64_t num_words) {                                                             \
        multiply(sums, rows, panel, num_rows, num_words, kind);                                                        \
    }

PANEL_OF(f32, multiply_panel, TILES_f32)
#ifdef __AVX512BF16__
PANEL_OF(bf16_pairs, multiply_panel, TILES_pairs)
#endif
#ifdef __AVX512VNNI__
PANEL_OF(int8, multiply_panel, TILES_int8)
#endif
#ifdef HAS_AMX
PANEL_OF(bf16_amx, multiply_panel_amx, BF16_PAIRS)
PANEL_OF(int8_amx, multiply_panel_amx, INT8)
#endif

/* What int8 rows and weights are worth; zeros are bytes of 128. */
typedef struct {
    const float *row_scales, *weight_scales; /* [num_rows], [outputs] */
    const int32_t *zeros;                    /* [outputs] the products of zeros with the weights */
} Worth;

INLINE void weigh_sums(float *y, const int32_t *sums, const Worth *worth, int64_t row, int64_t column, int64_t width) {
    for (int64_t i = 0; i < width; i++)
        y[i] = (float)(sums[i] - worth->zeros[column + i]) * worth->row_scales[row] * worth->weight_scales[column + i];
}

/* A product: rows [num_rows, num_words] times packed weights, plus bias [outputs], and what follows, into [num_rows,
 * outputs]. */
typedef struct {
    void *output;
    const char *rows, *packed;
    const float *bias;
    const void *other;
    const Worth *worth; /* of int8 */
    int64_t num_rows, num_words, outputs, what;
} Product;

/* Up to ROW_BLOCK rows from `first` on with one panel. */
INLINE void multiply_block(Product p, int64_t first, int64_t end, int64_t panel, PanelProduct multiply_one,
                           int is_bf16) {
    int32_t sums[ROW_BLOCK * PANEL] __attribute__((aligned(LINE)));
    int64_t column = panel * PANEL, width = p.outputs - column < PANEL ? p.outputs - column : PANEL;
    /* Where the results go, and what follows with, is fetched meanwhile. */
    for (int64_t row = first; row < end; row++)
        for (int64_t i = 0; i < width; i += LINE / (is_bf16 ? 2 : 4)) {
            __builtin_prefetch(at(p.output, row * p.outputs + column + i, is_bf16), 1, 2);
            if (p.other) __builtin_prefetch(at(p.other, row * p.outputs + column + i, is_bf16), 0, 2);
        }
    multiply_one(sums, p.rows + first * p.num_words * WORD, p.packed + column * p.num_words * WORD, end - first,
                   p.num_words);
    for (int64_t row = first; row < end; row++) {
        const int32_t *mine = sums + (row - first) * PANEL;
        const float *bias = p.bias ? p.bias + column : NULL;
        const void *other = p.other ? at(p.other, row * p.outputs + column, is_bf16) : NULL;
        void *output = (void *)at(p.output, row * p.outputs + column, is_bf16);
        float y[PANEL];
        if (p.worth) weigh_sums(y, mine, p.worth, row, column, width);
        else memcpy(y, mine, sizeof y);
        if (width == PANEL) /* a known number of columns needs no loops */
            finish_columns(output, y, bias, other, PANEL, p.what, is_bf16);
        else
            finish_columns(output, y, bias, other, width, p.what, is_bf16);
    }
}

/* Rows that pass all panels together: the pages that they and their results lie in, and where each is, stay known to the
 * processor. */
enum { ROWS_AT_ONCE = 4 * ROW_BLOCK };

INLINE void multiply(Product p, PanelProduct multiply_one, int is_bf16) {
    int64_t num_panels = (p.outputs + PANEL - 1) / PANEL;
    int64_t num_parts = (p.num_rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
    for (int64_t part = 0; part < num_parts; part++) {
        int64_t start = p.num_rows * part / num_parts, num_rows = p.num_rows * (part + 1) / num_parts - start;
        int64_t num_blocks = (num_rows + ROW_BLOCK - 1) / ROW_BLOCK;
        /* Where there are more threads than panels, several share one. */
        int64_t num_sharing = (omp_get_max_threads() + num_panels - 1) / num_panels;
        int64_t most_blocks = (num_rows + MAX_ROWS - 1) / MAX_ROWS;
        if (num_sharing > num_blocks) num_blocks = num_sharing < most_blocks ? num_sharing : most_blocks;
#pragma omp parallel for schedule(static) collapse(2)
        for (int64_t panel = 0; panel < num_panels; panel++)
            for (int64_t block = 0; block < num_blocks; block++)
                multiply_block(p, start + num_rows * block / num_blocks, start + num_rows * (block + 1) / num_blocks,
                               panel, multiply_one, is_bf16);
    }
}

#define PRODUCT_OF(name, panel, is_bf16)                                                                               \
    void multiply_##name(void *output, const char *rows, const char *packed, const float *bias, const void *other,     \
                         int64_t num_rows, int64_t num_words, int64_t outputs, int64_t what) {                         \
        Product p = {output, rows, packed, bias, other, NULL, num_rows, num_words, outputs, what};                     \
        multiply(p, panel, is_bf16);                                                                                   \
    }
#define INT8_PRODUCT_OF(name, panel, is_bf16)                                                                          \
    void multiply_##name(void *output, const char *rows, const char *packed, const float *bias, const void *other,     \
                         const Worth *worth, int64_t num_rows, int64_t num_words, int64_t outputs, int64_t what) {     \
        Product p = {output, rows, packed, bias, other, worth, num_rows, num_words, outputs, what};                    \
        multiply(p, panel, is_bf16);                                                                                   \
    }

/* One input a word. */
PRODUCT_OF(f32, multiply_panel_f32, 0)
/* Two inputs a word, one at a time, or both at once. */
PRODUCT_OF(bf16_widened, multiply_panel_widened, 1)
#ifdef __AVX512BF16__
PRODUCT_OF(bf16_pairs, multiply_panel_bf16_pairs, 1)
#endif
/* Four inputs a word; output and other in bf16 or fp32. */
#ifdef __AVX512VNNI__
INT8_PRODUCT_OF(int8_bf16, multiply_panel_int8, 1)
INT8_PRODUCT_OF(int8_f32, multiply_panel_int8, 0)
#endif
#ifdef HAS_AMX
PRODUCT_OF(bf16_amx, multiply_panel_bf16_amx, 1)
INT8_PRODUCT_OF(int8_amx_bf16, multiply_panel_int8_amx, 1)
INT8_PRODUCT_OF(int8_amx_f32, multiply_panel_int8_amx, 0)
#endif
#endif

/* Whether this process may multiply with AMX; it must have asked before it does. */
int may_use_amx(void) {
#ifdef HAS_AMX
    return ask_for_amx();
#else
    return 0;
#endif
}
