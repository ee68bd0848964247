/* Products of rows with packed weights, and what follows them: pairs of bf16, four bytes, or one fp32 at a time.
 *
 * A result is a sum in one order whatever the other rows are, so a row's bits do not depend on them. Weights are packed
 * in panels of 64 outputs, [panels][words of inputs][64 outputs], zeros where a panel is not full; a word is 4 bytes. For
 * AMX a panel has another order (gemm_amx.h).
 */
#define _GNU_SOURCE

#include <stdint.h>

/* Whether two bf16 at once are faster than one after the other. On Intel's processors an instruction with pairs takes four
 * times as long as one with fp32. */
int is_dpbf16_fast(void) {
#ifdef __AVX512BF16__
    return !__builtin_cpu_is("intel");
#else
    return 0;
#endif
}

/* Rows of so many outputs are logits. */
const int64_t min_logits_n = 1 << 15;

#ifdef __AVX512F__
#include <omp.h>

#include "gemm_amx.h"
#include "epilogue.h"
#include "gemm_avx512.h"

/* Rows that share a panel while it is in the first caches. */
enum { ROW_BLOCK = 96 };

/* Rows that pass all panels together: the pages that they and their results lie in, and where each is, stay known to the
 * processor. */
enum { ROWS_AT_ONCE = 4 * ROW_BLOCK };

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
INLINE void multiply_widened(int32_t *sums, const char *rows, const char *panel, int64_t num_rows, int64_t num_words) {
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

/* Sums [num_rows, PANEL] of rows of `num_words` words with one panel, of one kind. A panel is cold before the first of
 * its rows. Sums of rows in the last tile of AMX stand `shift` rows later, with those of as many rows before them. */
typedef void (*PanelProduct)(int32_t *sums, const char *rows, const char *panel, int64_t num_rows, int64_t num_words,
                             int64_t shift, int is_cold);
#define PANEL_OF(name, ...)                                                                                            \
    static void multiply_panel_##name(int32_t *sums, const char *rows, const char *panel, int64_t num_rows,            \
                                      int64_t num_words, int64_t shift, int is_cold) {                                 \
        (void)shift, (void)is_cold;                                                                                    \
        __VA_ARGS__;                                                                                                   \
    }

PANEL_OF(f32, multiply_panel(sums, rows, panel, num_rows, num_words, TILES_f32))
PANEL_OF(widened, multiply_widened(sums, rows, panel, num_rows, num_words))
#ifdef __AVX512BF16__
PANEL_OF(bf16_pairs, multiply_panel(sums, rows, panel, num_rows, num_words, TILES_pairs))
#endif
#ifdef __AVX512VNNI__
PANEL_OF(int8, multiply_panel(sums, rows, panel, num_rows, num_words, TILES_int8))
#endif
#ifdef HAS_AMX
PANEL_OF(bf16_amx, multiply_panel_amx(sums, rows, panel, num_rows, num_words, shift, is_cold, BF16_PAIRS))
PANEL_OF(int8_amx, multiply_panel_amx(sums, rows, panel, num_rows, num_words, shift, is_cold, INT8))
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

/* A product: rows [num_rows, num_words] times packed weights, plus bias, and what follows, into [num_rows, outputs]. Where
 * gates follow, weights and bias have a panel of them before each other one. */
typedef struct {
    void *output;
    const char *rows, *packed;
    const float *bias;
    const void *other;
    const Worth *worth; /* of int8 */
    int64_t num_rows, num_words, outputs, what;
} Product;

/* How one kind of products works: up to `most_rows` rows at a time, the first of which is a multiple of `side`. */
typedef struct {
    PanelProduct multiply;
    int64_t most_rows, side;
    int is_amx, is_bf16;
} Kind;

INLINE int64_t parts_of(int64_t whole, int64_t size) { return (whole + size - 1) / size; }

/* Whether results are written past the caches, which would read their lines first and lose what they have: all logits, and
 * everything where AMX waits for memory anyway. */
INLINE int is_streamed(const Product *p, Kind kind) {
    int64_t row_bytes = p->outputs * (kind.is_bf16 ? 2 : 4);
    int is_worth_it = kind.is_amx || p->outputs >= min_logits_n;
    return is_worth_it && row_bytes % LINE == 0 && (uintptr_t)p->output % LINE == 0;
}

/* Up to `most_rows` rows from `first` on with one panel of outputs. */
INLINE void multiply_block(Product p, int64_t first, int64_t end, int64_t panel, int is_cold, Kind kind) {
    int32_t sums[2][ROWS_AT_ONCE * PANEL] __attribute__((aligned(LINE)));
    int64_t column = panel * PANEL, width = p.outputs - column < PANEL ? p.outputs - column : PANEL;
    int num_panels = p.what == GATED ? 2 : 1, streams = is_streamed(&p, kind);
    /* Where the results go, and what follows with, is fetched meanwhile; AMX needs all fetches for weights. */
    for (int64_t row = first; row < end && !kind.is_amx; row++)
        for (int64_t i = 0; i < width; i += LINE / (kind.is_bf16 ? 2 : 4)) {
            __builtin_prefetch(at(p.output, row * p.outputs + column + i, kind.is_bf16), 1, 2);
            if (p.other) __builtin_prefetch(at(p.other, row * p.outputs + column + i, kind.is_bf16), 0, 2);
        }
    int64_t row_bytes = p.num_words * WORD, last = first + (parts_of(end - first, kind.side) - 1) * kind.side;
    int64_t shift = kind.is_amx && p.num_rows >= kind.side ? last + kind.side - end : 0;
    for (int i = 0; i < num_panels; i++)
        kind.multiply(sums[i], p.rows + first * row_bytes, p.packed + (panel * num_panels + i) * PANEL * row_bytes,
                      end - first, p.num_words, shift, is_cold);
    for (int64_t row = first; row < end; row++) {
        int64_t sum = (row - first + (row < last ? 0 : shift)) * PANEL;
        void *output = (void *)at(p.output, row * p.outputs + column, kind.is_bf16);
        const void *other = p.other ? at(p.other, row * p.outputs + column, kind.is_bf16) : NULL;
        const float *bias = p.bias ? p.bias + column * num_panels : NULL;
        const float *y[2] = {(const float *)sums[0] + sum, (const float *)sums[1] + sum};
        float weighed[2][PANEL];
        for (int i = 0; p.worth && i < num_panels; i++) {
            weigh_sums(weighed[i], sums[i] + sum, p.worth, row, (panel * num_panels + i) * PANEL, width);
            y[i] = weighed[i];
        }
        /* A known number of columns needs no loops. */
        if (p.what == GATED && width == PANEL)
            finish_gated(output, y[0], y[1], bias, PANEL, kind.is_bf16, streams);
        else if (p.what == GATED)
            finish_gated(output, y[0], y[1], bias, width, kind.is_bf16, streams);
        else if (width == PANEL)
            finish_columns(output, y[0], bias, other, PANEL, kind.is_bf16, streams);
        else
            finish_columns(output, y[0], bias, other, width, kind.is_bf16, streams);
    }
}

/* The first row of a part of several, all but the last of which are whole sides. */
INLINE int64_t start_of(int64_t part, int64_t num_parts, int64_t num_rows, int64_t side) {
    return part == num_parts ? num_rows : parts_of(num_rows, side) * part / num_parts * side;
}

/* The same of a known kind: what threads share is compiled once for all kinds, and would ask for it at every number. */
typedef void (*BlockProduct)(const Product *p, int64_t first, int64_t end, int64_t panel, int is_cold);

INLINE void multiply(Product p, BlockProduct multiply_one, Kind kind) {
    int64_t num_panels = parts_of(p.outputs, PANEL), num_parts = parts_of(p.num_rows, ROWS_AT_ONCE);
    /* With AMX all rows pass a long panel together, a part of it at a time. */
    int64_t most_rows = kind.is_amx && p.num_words > WORD_BLOCK ? ROWS_AT_ONCE : kind.most_rows;
    /* Where there are more threads than panels, several share one. */
    int64_t num_sharing = parts_of(omp_get_max_threads(), num_panels);
#pragma omp parallel
    {
        if (kind.is_amx) shape_tiles(p.num_rows);
        for (int64_t part = 0; part < num_parts; part++) {
            int64_t start = start_of(part, num_parts, p.num_rows, kind.side);
            int64_t num_rows = start_of(part + 1, num_parts, p.num_rows, kind.side) - start;
            int64_t num_blocks = parts_of(num_rows, most_rows), most_blocks = parts_of(num_rows, kind.side);
            if (num_sharing > num_blocks) num_blocks = num_sharing < most_blocks ? num_sharing : most_blocks;
#pragma omp for schedule(static) collapse(2) nowait
            for (int64_t panel = 0; panel < num_panels; panel++)
                for (int64_t block = 0; block < num_blocks; block++)
                    multiply_one(&p, start + start_of(block, num_blocks, num_rows, kind.side),
                                 start + start_of(block + 1, num_blocks, num_rows, kind.side), panel, block == 0);
        }
        if (kind.is_amx) release_tiles();
        _mm_sfence(); /* what was streamed is there for the other threads */
    }
}

#define IN_ROWS(name) .multiply = multiply_panel_##name, .most_rows = ROW_BLOCK, .side = MAX_ROWS, .is_amx = 0
#define IN_TILES(name) .multiply = multiply_panel_##name, .most_rows = MAX_TILES * SIDE, .side = SIDE, .is_amx = 1
#define PRODUCT_OF(name, ...)                                                                                          \
    static void multiply_block_##name(const Product *p, int64_t first, int64_t end, int64_t panel, int is_cold) {      \
        multiply_block(*p, first, end, panel, is_cold, (Kind){__VA_ARGS__});                                           \
    }                                                                                                                  \
    void matmul_##name(void *output, const char *rows, const char *packed, const float *bias, const void *other,     \
                         const Worth *worth, int64_t num_rows, int64_t num_words, int64_t outputs, int64_t what) {     \
        Product p = {output, rows, packed, bias, other, worth, num_rows, num_words, outputs, what};                    \
        multiply(p, multiply_block_##name, (Kind){__VA_ARGS__});                                                       \
    }

/* One input a word. */
PRODUCT_OF(f32, IN_ROWS(f32), .is_bf16 = 0)
/* Two inputs a word, one at a time, or both at once. */
PRODUCT_OF(bf16_widened, IN_ROWS(widened), .is_bf16 = 1)
#ifdef __AVX512BF16__
PRODUCT_OF(bf16_pairs, IN_ROWS(bf16_pairs), .is_bf16 = 1)
#endif
/* Four inputs a word; output and other in bf16 or fp32. */
#ifdef __AVX512VNNI__
PRODUCT_OF(int8_bf16, IN_ROWS(int8), .is_bf16 = 1)
PRODUCT_OF(int8_f32, IN_ROWS(int8), .is_bf16 = 0)
#endif
#ifdef HAS_AMX
PRODUCT_OF(bf16_amx, IN_TILES(bf16_amx), .is_bf16 = 1)
PRODUCT_OF(int8_amx_bf16, IN_TILES(int8_amx), .is_bf16 = 1)
PRODUCT_OF(int8_amx_f32, IN_TILES(int8_amx), .is_bf16 = 0)
#endif
#endif

/* Whether this process may multiply with AMX; it must have asked before it does. */
int request_amx(void) {
#ifdef HAS_AMX
    return ask_for_amx();
#else
    return 0;
#endif
}
