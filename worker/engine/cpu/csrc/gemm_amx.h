/* Products on AMX: up to 64 rows times 16 outputs, summed in tile registers; each weight is loaded once for them.
 *
 * A tile is 16 rows of a line. Its weights lie in one piece, and those of a panel in the order of their use: groups of up
 * to GROUP steps, in each the four columns of 16 outputs, in each the group's steps, [16 words][16 outputs]. A group of
 * the rows and all sums stay in the first cache. `num_words` is a multiple of SIDE.
 *
 * The last of 16 or more rows share a tile with some before them, whose sums are then there twice: registers keep their
 * shapes, and nothing behind the rows is read.
 */
#ifndef NOCTURNE_AMX_H
#define NOCTURNE_AMX_H

#include "gemm_avx512.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__)
#define HAS_AMX 1

#include <sys/syscall.h>
#include <unistd.h> /* syscall, which wants _GNU_SOURCE */

/* Rows, outputs and words of a tile; steps of a group; tiles of rows that are worked on together. */
enum { SIDE = 16, GROUP = 4, MAX_TILES = 4 };

/* Whole groups. */
enum { STEPS_AT_ONCE = WORD_BLOCK / SIDE };

enum { TILE_BYTES = SIDE * LINE, PANEL_BYTES = PANEL * WORD, COLUMNS = PANEL / SIDE };

/* Before each tile of weights two tiles are fetched from so far ahead, each thus twice. Tried: once, or from further
 * ahead, is slower with many rows, whose own lines then wait behind them (docs/performance.md). */
enum { AHEAD_BYTES = 2 * TILE_BYTES, FETCHED_LINES = 2 * SIDE };

/* Linux lets a process use the tiles once it has asked; its threads inherit that. */
INLINE int ask_for_amx(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

/* Registers: 0 to 3 are the sums of one tile of rows each, 4 and 5 rows, 6 and 7 weights. */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes_of_row[16];
    uint8_t num_rows[16];
} __attribute__((packed, aligned(64))) TileShapes;

/* This takes a thread longer than a tile's products, so it is done once for all of a product's `num_rows`. */
INLINE void shape_tiles(int64_t num_rows) {
    TileShapes shapes = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) {
        shapes.bytes_of_row[tile] = LINE;
        shapes.num_rows[tile] = (uint8_t)(tile < 6 && num_rows < SIDE ? num_rows : SIDE);
    }
    /* GCC's intrinsics do not say that they read memory. */
    __asm__ volatile("" ::"m"(shapes) : "memory");
    _tile_loadconfig(&shapes);
}

INLINE void release_tiles(void) { _tile_release(); }

/* Registers are constants: each is a line of its own. `kind` is known where these are inlined. */
#define ADD_PRODUCTS(sums, rows, weights)                                                                              \
    if (kind == INT8)                                                                                                  \
        _tile_dpbusd(sums, rows, weights);                                                                             \
    else                                                                                                               \
        _tile_dpbf16ps(sums, rows, weights)

#define ADD_ROWS(tile, row_register, weights)                                                                          \
    if (tile < num_tiles) {                                                                                            \
        _tile_loadd(row_register, rows + (tile + 1 < num_tiles ? tile * SIDE * stride : last), stride);                \
        ADD_PRODUCTS(tile, row_register, weights);                                                                     \
    }

#define ADD_STEP(weights)                                                                                              \
    for (int64_t line = 0; line < fetched_lines; line++)                                                               \
        _mm_prefetch(panel + AHEAD_BYTES + line * LINE, _MM_HINT_T1);                                                  \
    _tile_loadd(weights, panel, LINE);                                                                                 \
    ADD_ROWS(0, 4, weights)                                                                                            \
    ADD_ROWS(1, 5, weights)                                                                                            \
    ADD_ROWS(2, 4, weights)                                                                                            \
    ADD_ROWS(3, 5, weights)                                                                                            \
    panel += TILE_BYTES;                                                                                               \
    rows += LINE;

#define LOAD_SUMS(tile) _tile_loadd(tile, sums + tile * SIDE * PANEL, PANEL_BYTES)
#define STORE_SUMS(tile) _tile_stored(tile, sums + tile * SIDE * PANEL, PANEL_BYTES)
#define FOR_SUMS(f)                                                                                                    \
    f(0);                                                                                                              \
    if (num_tiles > 1) f(1);                                                                                           \
    if (num_tiles > 2) f(2);                                                                                           \
    if (num_tiles > 3) f(3);

/* Adds to a column of sums [tiles, SIDE, PANEL] a group's products; returns the weights that follow. Rows are `stride`
 * bytes apart, and those of the last tile begin at `last`. */
INLINE const char *multiply_column(int32_t *sums, const char *rows, int64_t stride, int64_t last, const char *panel,
                                   int64_t num_steps, int is_first, int64_t fetched_lines, int num_tiles, int kind) {
    if (is_first) {
        FOR_SUMS(_tile_zero)
    } else {
        FOR_SUMS(LOAD_SUMS)
    }
    for (int64_t step = 0; step < num_steps; step += 2) {
        ADD_STEP(6)
        if (step + 1 < num_steps) {
            ADD_STEP(7)
        }
    }
    FOR_SUMS(STORE_SUMS)
    return panel;
}

INLINE void multiply_tiles(int32_t *sums, const char *rows, int64_t stride, int64_t last, const char *panel,
                           int64_t num_steps, int is_first, int is_cold, int num_tiles, int kind) {
    for (int64_t step = 0; step < num_steps; step += GROUP) {
        int64_t count = num_steps - step < GROUP ? num_steps - step : GROUP;
        for (int column = 0; column < COLUMNS; column++)
            panel = multiply_column(sums + column * SIDE, rows + step * LINE, stride, last, panel, count,
                                    is_first && step == 0, is_cold ? FETCHED_LINES : 0, num_tiles, kind);
    }
}

/* Sums of rows with one panel, tiles of them up to MAX_TILES at a time, which is fetched with the first if it is cold. The
 * very last tile begins `shift` rows early. What lies behind the last weights is not read. */
INLINE void multiply_panel_amx(int32_t *sums, const char *rows, const char *panel, int64_t num_rows, int64_t num_words,
                               int64_t shift, int is_cold, int kind) {
    int64_t all_tiles = (num_rows + SIDE - 1) / SIDE, num_blocks = (all_tiles + MAX_TILES - 1) / MAX_TILES;
    int64_t num_steps = num_words / SIDE, stride = num_words * WORD;
    for (int64_t step = 0; step < num_steps; step += STEPS_AT_ONCE)
        for (int64_t block = 0; block < num_blocks; block++) {
            int64_t first = all_tiles * block / num_blocks;
            int num_tiles = (int)(all_tiles * (block + 1) / num_blocks - first), fetches = is_cold && block == 0;
            int64_t count = num_steps - step < STEPS_AT_ONCE ? num_steps - step : STEPS_AT_ONCE;
            int64_t last = ((num_tiles - 1) * SIDE - (block + 1 == num_blocks ? shift : 0)) * stride;
            int32_t *mine = sums + first * SIDE * PANEL;
            const char *from = rows + first * SIDE * stride + step * LINE, *weights = panel + step * COLUMNS * TILE_BYTES;
            /* A known number keeps them in registers. */
#define MULTIPLY_TILES(n)                                                                                              \
    if (num_tiles == n && fetches) multiply_tiles(mine, from, stride, last, weights, count, step == 0, 1, n, kind);    \
    if (num_tiles == n && !fetches) multiply_tiles(mine, from, stride, last, weights, count, step == 0, 0, n, kind);
            MULTIPLY_TILES(1)
            MULTIPLY_TILES(2)
            MULTIPLY_TILES(3)
            MULTIPLY_TILES(4)
        }
}

#else

INLINE void shape_tiles(int64_t num_rows) { (void)num_rows; }
INLINE void release_tiles(void) {}

#endif
#endif
