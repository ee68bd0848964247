/* The micro-kernel of gemm on AMX: up to 64 rows times 16 columns, accumulated in four tile registers.
 *
 *                        weights, 16 columns of N
 *                       +-----------------------+
 *        one K step     | tmm6, then tmm7 ...   |    [16 VNNI groups of K][16 output features]
 *                       +-----------------------+
 *      rows 0..15  tmm4 | tmm0                  |
 *      rows 16..31 tmm5 | tmm1   accumulators   |    a tile of rows is [16 rows][16 VNNI groups of K]
 *      rows 32..47 tmm4 | tmm2   [16, 16] each  |
 *      rows 48..63 tmm5 | tmm3                  |    each weight tile is loaded once for all of them
 *                       +-----------------------+
 *
 * A tile is 16 rows of 64 bytes (Intel's optimization reference manual, chapter on AMX). The weights of NR columns lie
 * in the order of their use: for each K_STEPS_L1 steps of K the four tile columns of NR, for each of these its steps,
 * so that these steps of the rows and all accumulators stay in the L1 cache. `K4` is a multiple of TILE_DIM.
 *
 * Where there are 16 rows or more, the last tile overlaps the one before it and computes some rows a second time: the
 * tile config stays the same, and nothing beyond the rows is read.
 */
#ifndef NOCTURNE_GEMM_AMX_H
#define NOCTURNE_GEMM_AMX_H

#include "gemm_avx512.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__)
#define HAS_AMX 1

#include <sys/syscall.h>
#include <unistd.h> /* syscall, which wants _GNU_SOURCE */

/* Rows of a tile, and elements of 4 bytes in each row; tiles of rows that are accumulated together. */
enum { TILE_DIM = 16, MAX_ROW_TILES = 4 };

/* Steps of K, of TILE_DIM VNNI groups each, that stay in the L1 cache, and in the L2 cache. */
enum { K_STEPS_L1 = 4, K_STEPS_L2 = KC / TILE_DIM };

enum { TILE_BYTES = TILE_DIM * LINE, ACC_STRIDE = NR * 4, NR_TILES = NR / TILE_DIM };

/* Before each weight tile two tiles are prefetched from this far ahead, so each is prefetched twice. Once, or from
 * further ahead, was slower with many rows, whose own lines then wait behind these (docs/log.md). */
enum { PREFETCH_DISTANCE = 2 * TILE_BYTES, PREFETCH_LINES = 2 * TILE_DIM };

/* Linux lets a process use the tiles once it has asked; its threads inherit that. */
INLINE int request_tile_permission(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

/* The operand of LDTILECFG. */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes_per_row[16];
    uint8_t num_rows[16];
} __attribute__((packed, aligned(64))) TileConfig;

/* Loads the tile config for M rows. Slower than one tile matmul, so once for a whole gemm. */
INLINE void load_tile_config(int64_t M) {
    TileConfig config = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) {
        config.bytes_per_row[tile] = LINE;
        config.num_rows[tile] = (uint8_t)(tile < 6 && M < TILE_DIM ? M : TILE_DIM);
    }
    /* GCC's intrinsics do not declare that they read memory. */
    __asm__ volatile("" ::"m"(config) : "memory");
    _tile_loadconfig(&config);
}

INLINE void release_tiles(void) { _tile_release(); }

/* Tile registers must be literals, so each is a line of its own. `type` is a constant where these are inlined. */
#define TILE_DOT(acc, rows, weights)                                                                                   \
    if (type == INT8)                                                                                                  \
        _tile_dpbusd(acc, rows, weights);                                                                              \
    else                                                                                                               \
        _tile_dpbf16ps(acc, rows, weights)

#define MATMUL_ROW_TILE(tile, row_register, weights)                                                                   \
    if (tile < num_tiles) {                                                                                            \
        _tile_loadd(row_register, rows + (tile + 1 < num_tiles ? tile * TILE_DIM * stride : last), stride);            \
        TILE_DOT(tile, row_register, weights);                                                                         \
    }

#define MATMUL_K_STEP(weight_register)                                                                                 \
    for (int64_t line = 0; line < prefetch_lines; line++)                                                              \
        _mm_prefetch(weights + PREFETCH_DISTANCE + line * LINE, _MM_HINT_T1);                                          \
    _tile_loadd(weight_register, weights, LINE);                                                                       \
    MATMUL_ROW_TILE(0, 4, weight_register)                                                                             \
    MATMUL_ROW_TILE(1, 5, weight_register)                                                                             \
    MATMUL_ROW_TILE(2, 4, weight_register)                                                                             \
    MATMUL_ROW_TILE(3, 5, weight_register)                                                                             \
    weights += TILE_BYTES;                                                                                             \
    rows += LINE;

#define LOAD_ACC(tile) _tile_loadd(tile, acc + tile * TILE_DIM * NR, ACC_STRIDE)
#define STORE_ACC(tile) _tile_stored(tile, acc + tile * TILE_DIM * NR, ACC_STRIDE)
#define FOR_ACC_TILES(f)                                                                                               \
    f(0);                                                                                                              \
    if (num_tiles > 1) f(1);                                                                                           \
    if (num_tiles > 2) f(2);                                                                                           \
    if (num_tiles > 3) f(3);

/* Adds `num_steps` steps of K to a tile column of acc [tiles, TILE_DIM, NR]; returns the weights that follow. Rows are
 * `stride` bytes apart, and those of the last tile begin at `last`. */
INLINE const char *matmul_tile_column(int32_t *acc, const char *rows, int64_t stride, int64_t last,
                                        const char *weights, int64_t num_steps, int is_first, int64_t prefetch_lines,
                                        int num_tiles, int type) {
    if (is_first) {
        FOR_ACC_TILES(_tile_zero)
    } else {
        FOR_ACC_TILES(LOAD_ACC)
    }
    for (int64_t step = 0; step < num_steps; step += 2) {
        MATMUL_K_STEP(6)
        if (step + 1 < num_steps) {
            MATMUL_K_STEP(7)
        }
    }
    FOR_ACC_TILES(STORE_ACC)
    return weights;
}

/* `num_tiles` tiles of rows times NR columns, a K_STEPS_L1 block of K at a time. */
INLINE void micro_kernel_amx(int32_t *acc, const char *rows, int64_t stride, int64_t last, const char *weights,
                             int64_t num_steps, int is_first, int is_cold, int num_tiles, int type) {
    for (int64_t step = 0; step < num_steps; step += K_STEPS_L1) {
        int64_t count = num_steps - step < K_STEPS_L1 ? num_steps - step : K_STEPS_L1;
        for (int column = 0; column < NR_TILES; column++)
            weights = matmul_tile_column(acc + column * TILE_DIM, rows + step * LINE, stride, last, weights, count,
                                           is_first && step == 0, is_cold ? PREFETCH_LINES : 0, num_tiles, type);
    }
}

/* acc [num_rows, NR] of rows with one block of weights, up to MAX_ROW_TILES tiles of rows at a time; the first of them
 * prefetch the weights if these are cold. The very last tile begins `overlap` rows early. Prefetches may go beyond the
 * weights, loads do not. */
INLINE void matmul_block_amx(int32_t *acc, const char *rows, const char *weights, int64_t num_rows, int64_t K4,
                             int64_t overlap, int is_cold, int type) {
    int64_t all_tiles = ceil_div(num_rows, TILE_DIM), num_parts = ceil_div(all_tiles, MAX_ROW_TILES);
    int64_t num_steps = K4 / TILE_DIM, stride = K4 * VNNI;
    for (int64_t step = 0; step < num_steps; step += K_STEPS_L2)
        for (int64_t part = 0; part < num_parts; part++) {
            int64_t first = all_tiles * part / num_parts;
            int num_tiles = (int)(all_tiles * (part + 1) / num_parts - first), prefetches = is_cold && part == 0;
            int64_t count = num_steps - step < K_STEPS_L2 ? num_steps - step : K_STEPS_L2;
            int64_t last = ((num_tiles - 1) * TILE_DIM - (part + 1 == num_parts ? overlap : 0)) * stride;
            int32_t *c = acc + first * TILE_DIM * NR;
            const char *a = rows + first * TILE_DIM * stride + step * LINE, *w = weights + step * NR_TILES * TILE_BYTES;
            /* Only a constant number of tiles keeps the accumulators in registers. */
#define CALL_MICRO_KERNEL(n)                                                                                           \
    if (num_tiles == n && prefetches) micro_kernel_amx(c, a, stride, last, w, count, step == 0, 1, n, type);           \
    if (num_tiles == n && !prefetches) micro_kernel_amx(c, a, stride, last, w, count, step == 0, 0, n, type);
            CALL_MICRO_KERNEL(1)
            CALL_MICRO_KERNEL(2)
            CALL_MICRO_KERNEL(3)
            CALL_MICRO_KERNEL(4)
        }
}

#else

INLINE void load_tile_config(int64_t M) { (void)M; }
INLINE void release_tiles(void) {}

#endif
#endif
