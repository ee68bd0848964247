/* gemm: output [M, N] = epilogue(rows [M, K] times packed weights), in bf16, fp32 and int8, on AVX-512 and AMX.
 *
 *             K                   N = output features                   N
 *         +--------+           +----+----+----+----+           +----+----+----+----+
 *       M |  rows  |    x    K | NR | NR | .. |    |    =    M | NR | NR | .. |    |
 *         +--------+           +----+----+----+----+           +----+----+----+----+
 *
 *   for MAX_MC rows of M                  all threads together, so that the TLB keeps the pages of rows and output
 *     for NR columns of N, MC rows        these blocks are divided among the threads
 *       for KC of K                       weights [KC, NR] stay in the L2 cache
 *         for MR rows                     the micro-kernel, its accumulators in registers (gemm_avx512.h, gemm_amx.h)
 *       epilogue (epilogue.h)             acc [MC, NR] to the output, rounded once
 *
 * The blocking is that of Goto & van de Geijn 2008 ("Anatomy of high-performance matrix multiplication") with the
 * names of BLIS. Weights are packed when a model is loaded, as [blocks of N][VNNI groups of K][NR], with zeros where a
 * block is not full (weight_layout.py); rows are used as they are. K4 is K in VNNI groups of 4 bytes.
 *
 * Batch-invariant: an accumulator is a sum in one order whatever M is.
 */
#define _GNU_SOURCE

#include <stdint.h>

/* Whether VDPBF16PS is faster than two multiply-adds of fp32. On Intel's processors it takes four times as long as
 * one. */
int is_dpbf16_fast(void) {
#ifdef __AVX512BF16__
    return !__builtin_cpu_is("intel");
#else
    return 0;
#endif
}

/* A result of at least so many columns is logits. */
const int64_t min_logits_n = 1 << 15;

#ifdef __AVX512F__
#include <omp.h>

#include "gemm_amx.h"

/* Rows that share a block of weights while it is in the L1 and L2 caches. */
enum { MC = 96, MAX_MC = 4 * MC };

/* VNNI groups of bf16 that are widened at a time: 16 KiB of fp32 weights stay in the L1 cache for all rows. */
enum { KC_WIDENED = 32 };

/* From this many row tiles on it is faster to widen weights once for all of them. */
enum { MIN_TILES_TO_WIDEN = 6 };

/* Cache lines of the next weights that each of `num_tiles` row tiles prefetches for a VNNI group of these: spread
 * evenly, so that memory is never idle and never waited for. */
INLINE int lines_to_prefetch(int64_t num_tiles) { return num_tiles >= 4 ? 1 : num_tiles >= 2 ? 2 : NR_VECTORS; }

/* acc [num_rows, NR] of rows [num_rows, K4] times one block of weights. */
INLINE void matmul_block(int32_t *acc, const char *rows, const char *weights, int64_t num_rows, int64_t K4,
                         const MicroKernel *micro_kernels) {
    int64_t num_tiles = ceil_div(num_rows, MR);
    int lines = lines_to_prefetch(num_tiles);
    for (int64_t k = 0; k < K4; k += KC) {
        int64_t count = K4 - k < KC ? K4 - k : KC;
        const char *w = weights + k * NR * VNNI;
        for (int64_t tile = 0; tile < num_tiles; tile++) {
            int64_t first = num_rows * tile / num_tiles, size = num_rows * (tile + 1) / num_tiles - first;
            const char *next = w + count * NR * VNNI + tile * lines * count * LINE; /* may be beyond the last weights */
            micro_kernels[size](acc + first * NR, rows + (first * K4 + k) * VNNI, K4 * VNNI, w, count, k == 0, next,
                                tile * lines < NR_VECTORS ? lines : 0);
        }
    }
}

/* bf16 weights [K4, NR, 2] as fp32 [K4, 2, NR]. */
INLINE void widen_weights(float *to, const char *weights, int64_t K4) {
    for (int64_t vector = 0; vector < K4 * NR_VECTORS; vector++) {
        __m512i pairs = _mm512_loadu_si512(weights + vector * LINE);
        float *first = to + vector / NR_VECTORS * 2 * NR + vector % NR_VECTORS * LANES;
        _mm512_store_si512(first, widen_bf16(pairs, 0));
        _mm512_store_si512(first + NR, widen_bf16(pairs, 1));
    }
}

/* `matmul_block` of bf16 widened to fp32; where there are many rows the weights are widened once for all of them. The
 * accumulators are the same either way. */
INLINE void matmul_block_widened(int32_t *acc, const char *rows, const char *weights, int64_t num_rows, int64_t K4) {
    float wide[KC_WIDENED * 2 * NR] __attribute__((aligned(LINE))), inputs[MR * KC_WIDENED * 2];
    int64_t num_tiles = ceil_div(num_rows, MR);
    int widens_first = num_tiles >= MIN_TILES_TO_WIDEN, lines = lines_to_prefetch(num_tiles);
    for (int64_t k = 0; k < K4; k += KC_WIDENED) {
        int64_t count = K4 - k < KC_WIDENED ? K4 - k : KC_WIDENED;
        const char *w = weights + k * NR * VNNI, *next = w + count * NR * VNNI;
        if (widens_first) widen_weights(wide, w, count);
        for (int64_t tile = 0; tile < num_tiles; tile++) {
            int64_t first = num_rows * tile / num_tiles, size = num_rows * (tile + 1) / num_tiles - first;
            for (int64_t row = 0; row < size; row++)
                load(inputs + row * KC_WIDENED * 2, rows + ((first + row) * K4 + k) * VNNI, count * 2, 1);
            const char *a = (const char *)inputs, *prefetched = next + tile * lines * count * LINE;
            if (widens_first) /* twice as many groups, with a line to prefetch for each */
                micro_kernels_f32[size](acc + first * NR, a, KC_WIDENED * 2 * VNNI, (const char *)wide, count * 2,
                                        k == 0, next + tile * 2 * count * LINE, tile < NR_VECTORS / 2);
            else
                micro_kernels_widened[size](acc + first * NR, a, KC_WIDENED * 2 * VNNI, w, count, k == 0, prefetched,
                                            tile * lines < NR_VECTORS ? lines : 0);
        }
    }
}

/* `matmul_block` of one type. A block of weights is cold before its first rows. On AMX the last tile begins
 * `overlap` rows early, so the accumulators of its rows are that many rows further on. */
typedef void (*MatmulBlock)(int32_t *acc, const char *rows, const char *weights, int64_t num_rows, int64_t K4,
                            int64_t overlap, int is_cold);
#define DEFINE_MATMUL_BLOCK(name, ...)                                                                                 \
    static void matmul_block_##name(int32_t *acc, const char *rows, const char *weights, int64_t num_rows, int64_t K4, \
                                    int64_t overlap, int is_cold) {                                                    \
        (void)overlap, (void)is_cold;                                                                                  \
        __VA_ARGS__;                                                                                                   \
    }

DEFINE_MATMUL_BLOCK(f32, matmul_block(acc, rows, weights, num_rows, K4, micro_kernels_f32))
DEFINE_MATMUL_BLOCK(bf16_widened, matmul_block_widened(acc, rows, weights, num_rows, K4))
#ifdef __AVX512BF16__
DEFINE_MATMUL_BLOCK(bf16_pairs, matmul_block(acc, rows, weights, num_rows, K4, micro_kernels_pairs))
#endif
#ifdef __AVX512VNNI__
DEFINE_MATMUL_BLOCK(int8, matmul_block(acc, rows, weights, num_rows, K4, micro_kernels_int8))
#endif
#ifdef HAS_AMX
DEFINE_MATMUL_BLOCK(bf16_amx, matmul_block_amx(acc, rows, weights, num_rows, K4, overlap, is_cold, BF16_PAIRS))
DEFINE_MATMUL_BLOCK(int8_amx, matmul_block_amx(acc, rows, weights, num_rows, K4, overlap, is_cold, INT8))
#endif

/* The factors of int8 accumulators. Rows have zero point 128, whose share of each accumulator is subtracted
 * first (Jacob et al. 2018, 2.3). */
typedef struct {
    const float *row_scales, *weight_scales; /* [M], [N] */
    const int32_t *compensation;             /* [N] 128 times the sum of each output feature's weights */
} DequantizationScales;

INLINE void dequantize(float *y, const int32_t *acc, const DequantizationScales *scales, int64_t row, int64_t column,
                       int64_t width) {
    for (int64_t i = 0; i < width; i++)
        y[i] = (float)(acc[i] - scales->compensation[column + i]) * scales->row_scales[row] *
               scales->weight_scales[column + i];
}

/* The arguments of a gemm. With EPILOGUE_SWIGLU N counts the ups, and weights, bias and scales have a block of gates
 * before each block of ups. */
typedef struct {
    void *output;
    const char *rows, *weights;
    const float *bias;
    const void *residual;
    const DequantizationScales *scales; /* of int8 */
    int64_t M, N, K4, epilogue;
} Gemm;

/* The kernel of one type: it multiplies blocks of up to `max_rows` rows, which begin at multiples of `row_step`. */
typedef struct {
    MatmulBlock matmul_block;
    int64_t max_rows, row_step;
    int is_amx, is_bf16;
} Kernel;

/* Non-temporal stores bypass the caches, which otherwise read the output's lines first and evict what they hold: for
 * logits, and for everything on AMX, which waits for memory anyway. */
INLINE int uses_non_temporal_stores(const Gemm *g, Kernel kernel) {
    int64_t row_bytes = g->N * (kernel.is_bf16 ? 2 : 4);
    int pays_off = kernel.is_amx || g->N >= min_logits_n;
    return pays_off && row_bytes % LINE == 0 && (uintptr_t)g->output % LINE == 0;
}

/* Prefetches rows [first, end) of the output and the residual, which the epilogue needs after the matmul. */
INLINE void prefetch_output(const Gemm *g, int64_t first, int64_t end, int64_t column, int64_t width, int is_bf16) {
    for (int64_t row = first; row < end; row++)
        for (int64_t i = 0; i < width; i += LINE / (is_bf16 ? 2 : 4)) {
            __builtin_prefetch(at(g->output, row * g->N + column + i, is_bf16), 1, 2);
            if (g->residual) __builtin_prefetch(at(g->residual, row * g->N + column + i, is_bf16), 0, 2);
        }
}

/* Stores `width` columns of one row from its accumulators, with SwiGLU those of the gates and the ups. */
INLINE void store_row(const Gemm *g, const int32_t *const acc[2], int64_t row, int64_t block, int64_t width,
                      int is_bf16, int is_non_temporal) {
    int64_t column = block * NR, num_blocks = g->epilogue == EPILOGUE_SWIGLU ? 2 : 1;
    void *output = (void *)at(g->output, row * g->N + column, is_bf16);
    const void *residual = g->residual ? at(g->residual, row * g->N + column, is_bf16) : NULL;
    const float *bias = g->bias ? g->bias + column * num_blocks : NULL;
    const float *y[2] = {(const float *)acc[0], (const float *)acc[1]};
    float dequantized[2][NR];
    for (int i = 0; g->scales && i < num_blocks; i++) {
        dequantize(dequantized[i], acc[i], g->scales, row, (block * num_blocks + i) * NR, width);
        y[i] = dequantized[i];
    }
    /* A constant width is unrolled. */
    if (g->epilogue == EPILOGUE_SWIGLU && width == NR)
        epilogue_swiglu(output, y[0], y[1], bias, NR, is_bf16, is_non_temporal);
    else if (g->epilogue == EPILOGUE_SWIGLU)
        epilogue_swiglu(output, y[0], y[1], bias, width, is_bf16, is_non_temporal);
    else if (width == NR)
        epilogue_add(output, y[0], bias, residual, NR, is_bf16, is_non_temporal);
    else
        epilogue_add(output, y[0], bias, residual, width, is_bf16, is_non_temporal);
}

/* Rows [first, end), at most `max_rows`, times one block of N. */
INLINE void gemm_block(Gemm g, int64_t first, int64_t end, int64_t block, int is_cold, Kernel kernel) {
    int32_t acc[2][MAX_MC * NR] __attribute__((aligned(LINE)));
    int64_t column = block * NR, width = g.N - column < NR ? g.N - column : NR;
    int num_blocks = g.epilogue == EPILOGUE_SWIGLU ? 2 : 1, is_non_temporal = uses_non_temporal_stores(&g, kernel);
    /* AMX needs all prefetches for weights. */
    if (!kernel.is_amx) prefetch_output(&g, first, end, column, width, kernel.is_bf16);
    int64_t row_bytes = g.K4 * VNNI, last = first + (ceil_div(end - first, kernel.row_step) - 1) * kernel.row_step;
    int64_t overlap = kernel.is_amx && g.M >= kernel.row_step ? last + kernel.row_step - end : 0;
    for (int i = 0; i < num_blocks; i++)
        kernel.matmul_block(acc[i], g.rows + first * row_bytes, g.weights + (block * num_blocks + i) * NR * row_bytes,
                            end - first, g.K4, overlap, is_cold);
    for (int64_t row = first; row < end; row++) {
        int64_t offset = (row - first + (row < last ? 0 : overlap)) * NR;
        store_row(&g, (const int32_t *const[2]){acc[0] + offset, acc[1] + offset}, row, block, width, kernel.is_bf16,
                  is_non_temporal);
    }
}

/* The first row of a part of `num_rows`; every part but the last has whole row steps. */
INLINE int64_t first_row(int64_t part, int64_t num_parts, int64_t num_rows, int64_t row_step) {
    return part == num_parts ? num_rows : ceil_div(num_rows, row_step) * part / num_parts * row_step;
}

/* `gemm_block` of one kernel. The parallel loop calls it by pointer: GCC does not see through an OpenMP region that the
 * kernel is constant. */
typedef void (*GemmBlock)(const Gemm *g, int64_t first, int64_t end, int64_t block, int is_cold);

INLINE void gemm(Gemm g, GemmBlock run_block, Kernel kernel) {
    int64_t num_blocks = ceil_div(g.N, NR), num_parts = ceil_div(g.M, MAX_MC);
    /* On AMX all rows share each KC of K, where K is longer than that. */
    int64_t max_rows = kernel.is_amx && g.K4 > KC ? MAX_MC : kernel.max_rows;
    /* With more threads than blocks of N, several share one. */
    int64_t num_sharing = ceil_div(omp_get_max_threads(), num_blocks);
#pragma omp parallel
    {
        if (kernel.is_amx) load_tile_config(g.M);
        for (int64_t part = 0; part < num_parts; part++) {
            int64_t start = first_row(part, num_parts, g.M, kernel.row_step);
            int64_t num_rows = first_row(part + 1, num_parts, g.M, kernel.row_step) - start;
            int64_t num_m = ceil_div(num_rows, max_rows), max_num_m = ceil_div(num_rows, kernel.row_step);
            if (num_sharing > num_m) num_m = num_sharing < max_num_m ? num_sharing : max_num_m;
#pragma omp for schedule(static) collapse(2) nowait
            for (int64_t block = 0; block < num_blocks; block++)
                for (int64_t m = 0; m < num_m; m++)
                    run_block(&g, start + first_row(m, num_m, num_rows, kernel.row_step),
                              start + first_row(m + 1, num_m, num_rows, kernel.row_step), block, m == 0);
        }
        if (kernel.is_amx) release_tiles();
        _mm_sfence(); /* makes non-temporal stores visible to the other threads */
    }
}

#define AVX512_KERNEL(name) .matmul_block = matmul_block_##name, .max_rows = MC, .row_step = MR, .is_amx = 0
#define AMX_KERNEL(name)                                                                                               \
    .matmul_block = matmul_block_##name, .max_rows = MAX_ROW_TILES * TILE_DIM, .row_step = TILE_DIM, .is_amx = 1
#define DEFINE_MATMUL(name, ...)                                                                                       \
    static void gemm_block_##name(const Gemm *g, int64_t first, int64_t end, int64_t block, int is_cold) {             \
        gemm_block(*g, first, end, block, is_cold, (Kernel){__VA_ARGS__});                                             \
    }                                                                                                                  \
    void matmul_##name(void *output, const char *rows, const char *weights, const float *bias, const void *residual,   \
                       const DequantizationScales *scales, int64_t M, int64_t N, int64_t K4, int64_t epilogue) {       \
        Gemm g = {output, rows, weights, bias, residual, scales, M, N, K4, epilogue};                                  \
        gemm(g, gemm_block_##name, (Kernel){__VA_ARGS__});                                                             \
    }

/* A VNNI group is one fp32, two bf16 (multiplied one by one, or both at once), or four int8 with an output of either
 * floating-point type. */
DEFINE_MATMUL(f32, AVX512_KERNEL(f32), .is_bf16 = 0)
DEFINE_MATMUL(bf16_widened, AVX512_KERNEL(bf16_widened), .is_bf16 = 1)
#ifdef __AVX512BF16__
DEFINE_MATMUL(bf16_pairs, AVX512_KERNEL(bf16_pairs), .is_bf16 = 1)
#endif
#ifdef __AVX512VNNI__
DEFINE_MATMUL(int8_bf16, AVX512_KERNEL(int8), .is_bf16 = 1)
DEFINE_MATMUL(int8_f32, AVX512_KERNEL(int8), .is_bf16 = 0)
#endif
#ifdef HAS_AMX
DEFINE_MATMUL(bf16_amx, AMX_KERNEL(bf16_amx), .is_bf16 = 1)
DEFINE_MATMUL(int8_amx_bf16, AMX_KERNEL(int8_amx), .is_bf16 = 1)
DEFINE_MATMUL(int8_amx_f32, AMX_KERNEL(int8_amx), .is_bf16 = 0)
#endif
#endif

/* Whether this process may use AMX; asks Linux for permission, which must come before the first use. */
int request_amx(void) {
#ifdef HAS_AMX
    return request_tile_permission();
#else
    return 0;
#endif
}
