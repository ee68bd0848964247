/* What stands before and after an int8 product. Every row is computed by one thread in one order. */
#include "epilogue.h"

/* Each row as unsigned bytes around 128, and what a byte of it is worth: rows ~ (bytes - 128) * scale. */
INLINE void quantize(uint8_t *bytes, float *scales, const void *rows, int64_t num_rows, int64_t size, int is_bf16) {
#pragma omp parallel for schedule(static) if (num_rows * size > 16384)
    for (int64_t row = 0; row < num_rows; row++) {
        float x[size], sizes[size];
        load(x, at(rows, row * size, is_bf16), size, is_bf16);
        for (int64_t i = 0; i < size; i++) sizes[i] = fabsf(x[i]);
        float largest = fmaxf(largest_of(sizes, size), 1e-30f), inverse = 127.0f / largest;
        for (int64_t i = 0; i < size; i++) bytes[row * size + i] = (uint8_t)(int32_t)(rintf(x[i] * inverse) + 128.0f);
        scales[row] = largest / 127.0f;
    }
}

void quantize_bf16(uint8_t *bytes, float *scales, const void *rows, int64_t num_rows, int64_t size) {
    quantize(bytes, scales, rows, num_rows, size, 1);
}

void quantize_f32(uint8_t *bytes, float *scales, const void *rows, int64_t num_rows, int64_t size) {
    quantize(bytes, scales, rows, num_rows, size, 0);
}

/* Products [num_rows, size, or panels of gates and others alternately] times each row's scale, plus bias, and what
 * follows, into [num_rows, size]. */
INLINE void finish(void *output, const float *products, const float *scales, const float *bias, const void *other,
                   int64_t num_rows, int64_t size, int64_t what, int is_bf16) {
    int64_t num_panels = (size + PANEL - 1) / PANEL;
#pragma omp parallel for schedule(static) if (num_rows * size > 16384)
    for (int64_t row = 0; row < num_rows; row++)
        for (int64_t panel = 0; panel < num_panels; panel++) {
            float y[2][PANEL];
            int64_t place = panel * PANEL, count = size - place < PANEL ? size - place : PANEL;
            void *mine = (void *)at(output, row * size + place, is_bf16);
            if (what == GATED) {
                const float *gates = products + (row * num_panels + panel) * 2 * PANEL;
                for (int64_t i = 0; i < 2 * PANEL; i++) y[i / PANEL][i % PANEL] = gates[i] * scales[row];
                finish_gated(mine, y[0], y[1], bias ? bias + 2 * place : NULL, count, is_bf16, 0);
            } else {
                for (int64_t i = 0; i < count; i++) y[0][i] = products[row * size + place + i] * scales[row];
                finish_columns(mine, y[0], bias ? bias + place : NULL,
                               other ? at(other, row * size + place, is_bf16) : NULL, count, is_bf16, 0);
            }
        }
}

void epilogue_bf16(void *output, const float *products, const float *scales, const float *bias, const void *other,
                 int64_t num_rows, int64_t size, int64_t what) {
    finish(output, products, scales, bias, other, num_rows, size, what, 1);
}

void epilogue_f32(void *output, const float *products, const float *scales, const float *bias, const void *other,
                int64_t num_rows, int64_t size, int64_t what) {
    finish(output, products, scales, bias, other, num_rows, size, what, 0);
}
