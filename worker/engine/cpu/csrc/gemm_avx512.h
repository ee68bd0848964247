/* The micro-kernel of gemm on AVX-512: up to MR rows times NR = 64 columns, accumulated in registers.
 *
 *                       NR = 4 vectors of 16 lanes
 *                    +-------+-------+-------+-------+
 *      w[k]          |  w 0  |  w 1  |  w 2  |  w 3  |     4 registers: a VNNI group of K of 64 output features
 *                    +-------+-------+-------+-------+
 *      a[row 0][k]   | acc   | acc   | acc   | acc   |     1 register: the same group of one row in all lanes
 *         ...        |       24 accumulators         |
 *      a[row 5][k]   | acc   | acc   | acc   | acc   |     24 + 4 + 1 of the 32 registers
 *                    +-------+-------+-------+-------+
 *
 * Blocking and the names MR, NR and KC are those of BLIS (Goto & van de Geijn 2008; Van Zee & van de Geijn 2015).
 * K is counted in VNNI groups, the 4 bytes that an instruction multiplies in a lane: `K4`. See Intel's optimization
 * reference manual on VNNI.
 */
#ifndef NOCTURNE_GEMM_AVX512_H
#define NOCTURNE_GEMM_AVX512_H

#include <immintrin.h>
#include <string.h>

#include "epilogue.h"

enum { NR_VECTORS = NR / LANES, MR = 6 };

/* Bytes of a VNNI group. */
enum { VNNI = 4 };

/* VNNI groups of K whose weights, 128 KiB of NR output features, stay in the L2 cache for all rows. */
enum { KC = 512 };

/* The element type of a VNNI group: one fp32, two bf16, four bytes. WIDENED_BF16 are two bf16 that are multiplied as
 * fp32 one by one, for processors that are slow with pairs; the rows are fp32 then. */
enum { F32, BF16_PAIRS, WIDENED_BF16, INT8 };

/* acc + weights * inputs in each lane: int32 for int8, fp32 for the others. */
INLINE __m512i dot_accumulate(__m512i acc, __m512i weights, __m512i inputs, int type) {
    (void)type;
#ifdef __AVX512VNNI__
    if (type == INT8) return _mm512_dpbusd_epi32(acc, inputs, weights);
#endif
#ifdef __AVX512BF16__
    if (type == BF16_PAIRS) return (__m512i)_mm512_dpbf16_ps((__m512)acc, (__m512bh)weights, (__m512bh)inputs);
#endif
    return (__m512i)_mm512_fmadd_ps((__m512)weights, (__m512)inputs, (__m512)acc);
}

/* The first or the second bf16 of each pair as fp32. */
INLINE __m512i widen_bf16(__m512i pairs, int is_second) {
    return is_second ? _mm512_and_si512(pairs, _mm512_set1_epi32((int32_t)0xffff0000)) : _mm512_slli_epi32(pairs, 16);
}

/* Adds to acc [num_rows, NR] the matmul of rows, `stride` bytes apart, with weights [K4, NR]; meanwhile prefetches
 * `lines` cache lines for each VNNI group from `next` on. */
INLINE void micro_kernel(int32_t *acc, const char *rows, int64_t stride, const char *weights, int64_t K4, int num_rows,
                         int is_first, const char *next, int lines, int type) {
    __m512i c[MR][NR_VECTORS];
#pragma GCC unroll 6
    for (int row = 0; row < num_rows; row++)
#pragma GCC unroll 4
        for (int v = 0; v < NR_VECTORS; v++)
            c[row][v] = is_first ? _mm512_setzero_si512() : _mm512_load_si512(acc + row * NR + v * LANES);
    const int parts = type == WIDENED_BF16 ? 2 : 1;
    for (int64_t k = 0; k < K4; k++)
#pragma GCC unroll 2
        for (int part = 0; part < parts; part++) {
            __m512i w[NR_VECTORS];
#pragma GCC unroll 4
            for (int v = 0; v < NR_VECTORS; v++) {
                w[v] = _mm512_loadu_si512(weights + (k * NR + v * LANES) * VNNI);
                if (type == WIDENED_BF16) w[v] = widen_bf16(w[v], part);
                if (part == 0 && v < lines) _mm_prefetch(next + (k * lines + v) * LINE, _MM_HINT_T1);
            }
#pragma GCC unroll 6
            for (int row = 0; row < num_rows; row++) {
                int32_t bits;
                memcpy(&bits, rows + row * stride + (k * parts + part) * VNNI, VNNI);
                __m512i inputs = _mm512_set1_epi32(bits);
#pragma GCC unroll 4
                for (int v = 0; v < NR_VECTORS; v++) c[row][v] = dot_accumulate(c[row][v], w[v], inputs, type);
            }
            /* Pairs are loaded once for each part: keeping them would take registers that are not there. */
            if (type == WIDENED_BF16) __asm__ volatile("" ::: "memory");
        }
#pragma GCC unroll 6
    for (int row = 0; row < num_rows; row++)
#pragma GCC unroll 4
        for (int v = 0; v < NR_VECTORS; v++) _mm512_store_si512(acc + row * NR + v * LANES, c[row][v]);
}

/* One function for each number of rows: only a constant number keeps the accumulators in registers. */
typedef void (*MicroKernel)(int32_t *, const char *, int64_t, const char *, int64_t, int, const char *, int);
#define MICRO_KERNEL(n, name, type)                                                                                    \
    static __attribute__((noinline)) void micro_kernel_##n##_##name(int32_t *acc, const char *rows, int64_t stride,    \
                                                                    const char *weights, int64_t K4, int is_first,     \
                                                                    const char *next, int lines) {                     \
        micro_kernel(acc, rows, stride, weights, K4, n, is_first, next, lines, type);                                  \
    }
#define MICRO_KERNELS(name, type)                                                                                      \
    MICRO_KERNEL(1, name, type) MICRO_KERNEL(2, name, type) MICRO_KERNEL(3, name, type)                                \
    MICRO_KERNEL(4, name, type) MICRO_KERNEL(5, name, type) MICRO_KERNEL(6, name, type)                                \
    static const MicroKernel micro_kernels_##name[MR + 1] = {                                                          \
        NULL,                  micro_kernel_1_##name, micro_kernel_2_##name, micro_kernel_3_##name,                    \
        micro_kernel_4_##name, micro_kernel_5_##name, micro_kernel_6_##name};

MICRO_KERNELS(f32, F32)
MICRO_KERNELS(widened, WIDENED_BF16)
#ifdef __AVX512BF16__
MICRO_KERNELS(pairs, BF16_PAIRS)
#endif
#ifdef __AVX512VNNI__
MICRO_KERNELS(int8, INT8)
#endif

#endif
