/* The steps before and after an int8 matmul of oneDNN's: quantization of its rows, and the epilogue on its result.
 *
 * Rows are quantized symmetrically, each by its own maximum ("vector-wise", Dettmers et al. 2022), as unsigned bytes
 * with zero point 128, which VNNI and AMX multiply with signed weights. One thread computes a row, always in the same
 * order.
 */
#include "epilogue.h"

/* bytes [M, size] and scales [M] with rows ~ (bytes - 128) * scale. */
INLINE void quantize(uint8_t *bytes, float *scales, const void *rows, int64_t M, int64_t size, int is_bf16) {
#pragma omp parallel for schedule(static) if (M * size > 16384)
    for (int64_t row = 0; row < M; row++) {
        float x[size], magnitudes[size];
        load(x, at(rows, row * size, is_bf16), size, is_bf16);
        for (int64_t i = 0; i < size; i++) magnitudes[i] = fabsf(x[i]);
        float max = max_of(magnitudes, size); /* NaN where there is one, and so is the row then: fmaxf would lose it */
        max = max < 1e-30f ? 1e-30f : max;
        float inverse = 127.0f / max;
        for (int64_t i = 0; i < size; i++) bytes[row * size + i] = (uint8_t)(int32_t)(rintf(x[i] * inverse) + 128.0f);
        scales[row] = max / 127.0f;
    }
}

void quantize_bf16(uint8_t *bytes, float *scales, const void *rows, int64_t M, int64_t size) {
    quantize(bytes, scales, rows, M, size, 1);
}

void quantize_f32(uint8_t *bytes, float *scales, const void *rows, int64_t M, int64_t size) {
    quantize(bytes, scales, rows, M, size, 0);
}

/* Accumulators [M, N] (with EPILOGUE_SWIGLU [M, blocks of N, gates and ups, NR]) times each row's scale, plus bias,
 * through the epilogue into output [M, N]. */
INLINE void scale_and_epilogue(void *output, const float *acc, const float *row_scales, const float *bias,
                               const void *residual, int64_t M, int64_t N, int64_t epilogue, int is_bf16) {
    int64_t num_blocks = ceil_div(N, NR);
#pragma omp parallel for schedule(static) if (M * N > 16384)
    for (int64_t row = 0; row < M; row++)
        for (int64_t block = 0; block < num_blocks; block++) {
            float y[2][NR];
            int64_t column = block * NR, count = N - column < NR ? N - column : NR;
            void *to = (void *)at(output, row * N + column, is_bf16);
            if (epilogue == EPILOGUE_SWIGLU) {
                const float *gate_up = acc + (row * num_blocks + block) * 2 * NR;
                for (int64_t i = 0; i < 2 * NR; i++) y[i / NR][i % NR] = gate_up[i] * row_scales[row];
                epilogue_swiglu(to, y[0], y[1], bias ? bias + 2 * column : NULL, count, is_bf16, 0);
            } else {
                for (int64_t i = 0; i < count; i++) y[0][i] = acc[row * N + column + i] * row_scales[row];
                epilogue_add(to, y[0], bias ? bias + column : NULL,
                             residual ? at(residual, row * N + column, is_bf16) : NULL, count, is_bf16, 0);
            }
        }
}

void epilogue_bf16(void *output, const float *acc, const float *row_scales, const float *bias, const void *residual,
                   int64_t M, int64_t N, int64_t epilogue) {
    scale_and_epilogue(output, acc, row_scales, bias, residual, M, N, epilogue, 1);
}

void epilogue_f32(void *output, const float *acc, const float *row_scales, const float *bias, const void *residual,
                  int64_t M, int64_t N, int64_t epilogue) {
    scale_and_epilogue(output, acc, row_scales, bias, residual, M, N, epilogue, 0);
}
