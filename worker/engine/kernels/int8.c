/* What stands before and after an int8 product. Every row is computed by one thread in one order. */
#include "epilogue.h"

/* Each row as unsigned bytes around 128, and what a byte of it is worth: rows ~ (bytes - 128) * scale. */
INLINE void quantise(uint8_t *bytes, float *scales, const void *rows, int64_t num_rows, int64_t size, int is_bf16) {
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

void quantise_bf16(uint8_t *bytes, float *scales, const void *rows, int64_t num_rows, int64_t size) {
    quantise(bytes, scales, rows, num_rows, size, 1);
}

void quantise_f32(uint8_t *bytes, float *scales, const void *rows, int64_t num_rows, int64_t size) {
    quantise(bytes, scales, rows, num_rows, size, 0);
}

/* y = products * scale of the row + bias, and what follows. */
INLINE void finish(void *output, const float *products, const float *scales, const float *bias, const void *other,
                   int64_t num_rows, int64_t size, int64_t what, int is_bf16) {
#pragma omp parallel for schedule(static) if (num_rows * size > 16384)
    for (int64_t row = 0; row < num_rows; row++) {
        float y[512];
        for (int64_t start = 0; start < size; start += 512) {
            int64_t count = size - start < 512 ? size - start : 512, place = row * size + start;
            for (int64_t i = 0; i < count; i++) y[i] = products[place + i] * scales[row];
            finish_columns((void *)at(output, place, is_bf16), y, bias ? bias + start : NULL,
                           other ? at(other, place, is_bf16) : NULL, count, what, is_bf16);
        }
    }
}

void finish_bf16(void *output, const float *products, const float *scales, const float *bias, const void *other,
                 int64_t num_rows, int64_t size, int64_t what) {
    finish(output, products, scales, bias, other, num_rows, size, what, 1);
}

void finish_f32(void *output, const float *products, const float *scales, const float *bias, const void *other,
                int64_t num_rows, int64_t size, int64_t what) {
    finish(output, products, scales, bias, other, num_rows, size, what, 0);
}
