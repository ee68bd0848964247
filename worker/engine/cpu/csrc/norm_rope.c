/* RMS norm (Zhang & Sennrich 2019) and rotary position embeddings (Su et al. 2021), each in one pass over memory.
 *
 * One thread computes a row, always in the same order.
 */
#include "vecmath.h"

/* rows / sqrt(mean of squares + eps) * weight, for rows [num_rows, size]. */
INLINE void rms_norm(void *output, const void *rows, const void *weight, int64_t num_rows, int64_t size, float eps,
                     int is_bf16, int is_bf16_weight) {
    float w[size];
    load(w, weight, size, is_bf16_weight);
#pragma omp parallel for schedule(static) if (num_rows * size > 16384)
    for (int64_t row = 0; row < num_rows; row++) {
        float x[size], squares = 0;
        load(x, at(rows, row * size, is_bf16), size, is_bf16);
        for (int64_t i = 0; i < size; i++) squares += x[i] * x[i];
        float scale = 1.0f / sqrtf(squares / size + eps);
        for (int64_t i = 0; i < size; i++) x[i] *= scale * w[i];
        store((void *)at(output, row * size, is_bf16), x, size, is_bf16);
    }
}

void rms_norm_bf16(void *output, const void *rows, const void *weight, int64_t num_rows, int64_t size, float eps) {
    rms_norm(output, rows, weight, num_rows, size, eps, 1, 1);
}

void rms_norm_bf16_by_f32(void *output, const void *rows, const void *weight, int64_t num_rows, int64_t size,
                          float eps) {
    rms_norm(output, rows, weight, num_rows, size, eps, 1, 0);
}

void rms_norm_f32(void *output, const void *rows, const void *weight, int64_t num_rows, int64_t size, float eps) {
    rms_norm(output, rows, weight, num_rows, size, eps, 0, 0);
}

/* Rotates heads [num_rows, num_heads, dim] in place, rows `stride` elements apart, by their angles' cosines and sines
 * [num_rows, dim]; the first half of the sines is negated. */
INLINE void rotate(void *heads, const void *cos, const void *signed_sin, int64_t num_rows, int64_t num_heads,
                   int64_t dim, int64_t stride, int is_bf16) {
    int64_t half = dim / 2;
#pragma omp parallel for schedule(static) if (num_rows * num_heads * dim > 16384)
    for (int64_t row = 0; row < num_rows; row++) {
        float c[dim], s[dim], x[dim], y[dim];
        load(c, at(cos, row * dim, is_bf16), dim, is_bf16);
        load(s, at(signed_sin, row * dim, is_bf16), dim, is_bf16);
        for (int64_t head = 0; head < num_heads; head++) {
            void *head_data = (void *)at(heads, row * stride + head * dim, is_bf16);
            load(x, head_data, dim, is_bf16);
            for (int64_t i = 0; i < half; i++) y[i] = x[i] * c[i] + x[i + half] * s[i];
            for (int64_t i = half; i < dim; i++) y[i] = x[i] * c[i] + x[i - half] * s[i];
            store(head_data, y, dim, is_bf16);
        }
    }
}

void rotate_bf16(void *heads, const void *cos, const void *signed_sin, int64_t num_rows, int64_t num_heads, int64_t dim,
                 int64_t stride) {
    rotate(heads, cos, signed_sin, num_rows, num_heads, dim, stride, 1);
}

void rotate_f32(void *heads, const void *cos, const void *signed_sin, int64_t num_rows, int64_t num_heads, int64_t dim,
                int64_t stride) {
    rotate(heads, cos, signed_sin, num_rows, num_heads, dim, stride, 0);
}
