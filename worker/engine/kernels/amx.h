/* Products on AMX: up to 64 rows times 16 outputs, summed in tile registers; each weight is loaded once for them.
 *
 * A tile is 16 rows of a line. Its weights lie in one piece, and those of a panel in the order of their use: groups of up
 * to GROUP steps, in each the four columns of 16 outputs, in each the group's steps, [16 words][16 outputs]. A group of
 * the rows and all sums stay in the first cache. `num_words` is a multiple of SIDE.
 */
#ifndef NOCTURNE_AMX_H
#define NOCTURNE_AMX_H

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__)
#define HAS_AMX 1

#include <sys/syscall.h>
#include <unistd.h> /* syscall, which wants _GNU_SOURCE */

#include "tiles.h"

/* Rows, outputs and words of a tile; steps of a group; tiles of rows that are worked on together. */
enum { SIDE = 16, GROUP = 4, MAX_TILES = 4 };

enum { TILE_BYTES = SIDE * LINE, PANEL_BYTES = PANEL * WORD, COLUMNS = PANEL / SIDE };

/* Before each tile of weights two tiles are fetched from so far ahead, each thus twice. Tried: once, or from further
 * ahead, is slower with many rows, whose own lines then wait behind them (docs/performance.md). */
enum { AHEAD_BYTES = 2 * TILE_BYTES, FETCHED_LINES = 2 * SIDE };

/* Linux lets a process use the tiles once it has asked; its threads inherit that. */
INLINE int ask_for_amx(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

/* Registers: 0 to 3 are the sums of one tile of rows each, 4 the rows of a full tile, 5 those of the last one, which may
 * not be full, 6 and 7 weights. */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes_of_row[16];
    uint8_t num_rows[16];
} __attribute__((packed, aligned(64))) TileShapes;

INLINE void shape_tiles(int num_tiles, int64_t last_rows) {
    TileShapes shapes = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) {
        shapes.bytes_of_row[tile] = LINE;
        shapes.num_rows[tile] = SIDE;
    }
    shapes.num_rows[num_tiles - 1] = shapes.num_rows[5] = (uint8_t)last_rows;
    /* GCC's intrinsics do not say that they read memory. */
    __asm__ volatile("" ::"m"(shapes) : "memory");
    _tile_loadconfig(&shapes);
}

/* Registers are constants: each is a line of its own. `kind` is known where these are inlined. */
#define ADD_PRODUCTS(sums, rows, weights)                                                                              \
    if (kind == INT8)                                                                                                  \
        _tile_dpbusd(sums, rows, weights);                                                                             \
    else                                                                                                               \
        _tile_dpbf16ps(sums, rows, weights)

#define ADD_ROWS(tile, weights)                                                                                        \
    if (tile + 1 < num_tiles) {                                                                                        \
        _tile_loadd(4, rows + tile * SIDE * stride, stride);                                                           \
        ADD_PRODUCTS(tile, 4, weights);                                                                                \
    } else if (tile + 1 == num_tiles) {                                                                                \
        _tile_loadd(5, rows + tile * SIDE * stride, stride);                                                           \
        ADD_PRODUCTS(tile, 5, weights);                                                                                \
    }

#define ADD_STEP(weights)                                                                                              \
    for (int64_t line = 0; line < FETCHED_LINES; line++)                                                               \
        _mm_prefetch(panel + AHEAD_BYTES + line * LINE, _MM_HINT_T1);                                                  \
    _tile_loadd(weights, panel, LINE);                                                                                 \
    ADD_ROWS(0, weights)                                                                                               \
    ADD_ROWS(1, weights)                                                                                               \
    ADD_ROWS(2, weights)                                                                                               \
    ADD_ROWS(3, weights)                                                                                               \
    panel += TILE_BYTES;                                                                                               \
    rows += LINE;

#define LOAD_SUMS(tile) _tile_loadd(tile, sums + tile * SIDE * PANEL, PANEL_BYTES)
#define STORE_SUMS(tile) _tile_stored(tile, sums + tile * SIDE * PANEL, PANEL_BYTES)
#define FOR_SUMS(f)                                                                                                    \
    f(0);                                                                                                              \
    if (num_tiles > 1) f(1);                                                                                           \
    if (num_tiles > 2) f(2);                                                                                           \
    if (num_tiles > 3) f(3);

/* Adds to a column of sums [rows, PANEL] a group's products; returns the weights that follow. */
INLINE const char *multiply_column(int32_t *sums, const char *rows, int64_t stride, const char *panel, int64_t num_steps,
                                   int is_first, int num_tiles, int kind) {
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

INLINE void multiply_tiles(int32_t *sums, const char *rows, const char *panel, int64_t num_words, int num_tiles,
                           int kind) {
    int64_t num_steps = num_words / SIDE;
    for (int64_t step = 0; step < num_steps; step += GROUP) {
        int64_t count = num_steps - step < GROUP ? num_steps - step : GROUP;
        for (int column = 0; column < COLUMNS; column++)
            panel = multiply_column(sums + column * SIDE, rows + step * LINE, num_words * WORD, panel, count, step == 0,
                                    num_tiles, kind);
    }
}

/* Sums [num_rows, PANEL] of rows of `num_words` words with one panel. What lies behind the last weights is not read. */
INLINE void multiply_panel_amx(int32_t *sums, const char *rows, const char *panel, int64_t num_rows, int64_t num_words,
                               int kind) {
    for (int64_t first = 0; first < num_rows; first += MAX_TILES * SIDE) {
        int64_t left = num_rows - first, size = left < MAX_TILES * SIDE ? left : MAX_TILES * SIDE;
        int num_tiles = (int)((size + SIDE - 1) / SIDE);
        int32_t *mine = sums + first * PANEL;
        const char *from = rows + first * num_words * WORD;
        shape_tiles(num_tiles, size - (num_tiles - 1) * SIDE);
        switch (num_tiles) { /* a known number keeps them in registers */
            case 1: multiply_tiles(mine, from, panel, num_words, 1, kind); break;
            case 2: multiply_tiles(mine, from, panel, num_words, 2, kind); break;
            case 3: multiply_tiles(mine, from, panel, num_words, 3, kind); break;
            default: multiply_tiles(mine, from, panel, num_words, 4, kind);
        }
    }
    _tile_release();
}

#endif
#endif
