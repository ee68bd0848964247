/* What torch has no CPU operation for: attention of decoding rows over paged keys, RMS norm in one pass, and what
 * stands before and after an int8 product.
 *
 * Every row is computed by one thread in one order, so its bits do not depend on its neighbours. All sums are fp32.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#define INLINE static inline __attribute__((always_inline))

INLINE float from_bf16(uint16_t bits) {
    union { uint32_t bits; float value; } both = {(uint32_t)bits << 16};
    return both.value;
}

INLINE uint16_t to_bf16(float value) { /* to nearest, ties to even */
    union { float value; uint32_t bits; } both = {value};
    return (uint16_t)((both.bits + 0x7fff + ((both.bits >> 16) & 1)) >> 16);
}

INLINE void load(float *to, const void *from, int64_t count, int is_bf16) {
    if (is_bf16)
        for (int64_t i = 0; i < count; i++) to[i] = from_bf16(((const uint16_t *)from)[i]);
    else
        for (int64_t i = 0; i < count; i++) to[i] = ((const float *)from)[i];
}

INLINE void store(void *to, const float *from, int64_t count, int is_bf16) {
    if (is_bf16)
        for (int64_t i = 0; i < count; i++) ((uint16_t *)to)[i] = to_bf16(from[i]);
    else
        for (int64_t i = 0; i < count; i++) ((float *)to)[i] = from[i];
}

INLINE const void *at(const void *base, int64_t index, int is_bf16) {
    return (const char *)base + index * (is_bf16 ? 2 : 4);
}

/* exp(x) for x <= 0 with a relative error of about 2e-7: 2^n times a polynomial of the rest (Cephes). */
INLINE float exp_of_negative(float x) {
    x = x < -87.0f ? -87.0f : x;
    float n = rintf(x * 1.44269504f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    union { int32_t bits; float value; } scale = {((int32_t)n + 127) << 23};
    return p * scale.value;
}

typedef struct {
    int64_t num_heads, num_kv_heads, dim, value_dim, block_size, max_blocks, window;
    int64_t query_stride; /* elements from one row's query to the next */
    float scale;
} Shape;

/* One row's group of query heads over one key head. `scores` holds group * num_keys numbers. */
INLINE void attend(void *output, const void *query, const void *keys, const void *values, const int32_t *blocks,
                   int64_t num_keys, int64_t kv_head, Shape s, int64_t dim, float *scores, int is_bf16) {
    int64_t group = s.num_heads / s.num_kv_heads, size = s.value_dim;
    int64_t first = s.window > 0 && num_keys > s.window ? num_keys - s.window : 0;
    float q[group * dim], row[dim > size ? dim : size], sums[group * size];
    load(q, query, group * dim, is_bf16);
    for (int64_t i = 0; i < group * dim; i++) q[i] *= s.scale;
    for (int64_t key = first; key < num_keys; key++) {
        int64_t slot = (int64_t)blocks[key / s.block_size] * s.block_size + key % s.block_size;
        load(row, at(keys, (slot * s.num_kv_heads + kv_head) * dim, is_bf16), dim, is_bf16);
        for (int64_t head = 0; head < group; head++) {
            float dot = 0;
            for (int64_t i = 0; i < dim; i++) dot += q[head * dim + i] * row[i];
            scores[head * num_keys + key] = dot;
        }
    }
    for (int64_t head = 0; head < group; head++) {
        float *mine = scores + head * num_keys, largest = -INFINITY, total = 0;
        for (int64_t key = first; key < num_keys; key++) largest = mine[key] > largest ? mine[key] : largest;
        for (int64_t key = first; key < num_keys; key++) mine[key] = exp_of_negative(mine[key] - largest);
        for (int64_t key = first; key < num_keys; key++) total += mine[key];
        for (int64_t key = first; key < num_keys; key++) mine[key] /= total;
    }
    for (int64_t i = 0; i < group * size; i++) sums[i] = 0;
    for (int64_t key = first; key < num_keys; key++) {
        int64_t slot = (int64_t)blocks[key / s.block_size] * s.block_size + key % s.block_size;
        load(row, at(values, (slot * s.num_kv_heads + kv_head) * size, is_bf16), size, is_bf16);
        for (int64_t head = 0; head < group; head++)
            for (int64_t i = 0; i < size; i++) sums[head * size + i] += scores[head * num_keys + key] * row[i];
    }
    store(output, sums, group * size, is_bf16);
}

/* Query [rows, heads, dim], keys [slots, kv_heads, dim], values [slots, kv_heads, value_dim], blocks [rows,
 * max_blocks], num_keys [rows]; writes output [rows, heads, value_dim]. Returns 0, or 1 where memory ran out. */
INLINE int attend_all(void *output, const void *query, const void *keys, const void *values, const int32_t *blocks,
                      const int32_t *num_keys, int64_t num_rows, Shape s, int is_bf16) {
    int64_t group = s.num_heads / s.num_kv_heads, longest = 0, failed = 0;
    for (int64_t row = 0; row < num_rows; row++) longest = num_keys[row] > longest ? num_keys[row] : longest;
#pragma omp parallel reduction(| : failed)
    {
        float *scores = malloc(sizeof(float) * group * longest);
        failed = scores == NULL;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < num_rows * s.num_kv_heads; task++) {
            int64_t row = task / s.num_kv_heads, head = task % s.num_kv_heads;
            void *to = (void *)at(output, (row * s.num_heads + head * group) * s.value_dim, is_bf16);
            const void *from = at(query, row * s.query_stride + head * group * s.dim, is_bf16);
            const int32_t *mine = blocks + row * s.max_blocks;
            if (scores == NULL) continue;
            /* The common sizes by name, so that their loops are unrolled. */
            if (s.dim == 64) attend(to, from, keys, values, mine, num_keys[row], head, s, 64, scores, is_bf16);
            else if (s.dim == 128) attend(to, from, keys, values, mine, num_keys[row], head, s, 128, scores, is_bf16);
            else attend(to, from, keys, values, mine, num_keys[row], head, s, s.dim, scores, is_bf16);
        }
        free(scores);
    }
    return (int)failed;
}

int paged_attention_bf16(void *output, const void *query, const void *keys, const void *values, const int32_t *blocks,
                         const int32_t *num_keys, int64_t num_rows, const Shape *shape) {
    return attend_all(output, query, keys, values, blocks, num_keys, num_rows, *shape, 1);
}

int paged_attention_f32(void *output, const void *query, const void *keys, const void *values, const int32_t *blocks,
                        const int32_t *num_keys, int64_t num_rows, const Shape *shape) {
    return attend_all(output, query, keys, values, blocks, num_keys, num_rows, *shape, 0);
}

/* rows / sqrt(mean of squares + eps) * weight, for rows [num_rows, size]. */
INLINE void normalise(void *output, const void *rows, const void *weight, int64_t num_rows, int64_t size, float eps,
                      int is_bf16) {
    float w[size];
    load(w, weight, size, is_bf16);
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
    normalise(output, rows, weight, num_rows, size, eps, 1);
}

void rms_norm_f32(void *output, const void *rows, const void *weight, int64_t num_rows, int64_t size, float eps) {
    normalise(output, rows, weight, num_rows, size, eps, 0);
}

/* Each row as unsigned bytes around 128, and what a byte of it is worth: rows ~ (bytes - 128) * scale. */
INLINE void quantise(uint8_t *bytes, float *scales, const void *rows, int64_t num_rows, int64_t size, int is_bf16) {
#pragma omp parallel for schedule(static) if (num_rows * size > 16384)
    for (int64_t row = 0; row < num_rows; row++) {
        float x[size], largest = 1e-30f;
        load(x, at(rows, row * size, is_bf16), size, is_bf16);
        for (int64_t i = 0; i < size; i++) largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
        float inverse = 127.0f / largest;
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

enum { NOTHING, SWISH, TIMES, PLUS };

/* y = products * scale of the row + bias, then what follows: y, y * sigmoid(y), y * other or y + other. */
INLINE void finish(void *output, const float *products, const float *scales, const float *bias, const void *other,
                   int64_t num_rows, int64_t size, int64_t what, int is_bf16) {
#pragma omp parallel for schedule(static) if (num_rows * size > 16384)
    for (int64_t row = 0; row < num_rows; row++) {
        const float *from = products + row * size;
        float y[512], z[512];
        for (int64_t start = 0; start < size; start += 512) {
            int64_t count = size - start < 512 ? size - start : 512;
            for (int64_t i = 0; i < count; i++) y[i] = from[start + i] * scales[row];
            if (bias) for (int64_t i = 0; i < count; i++) y[i] += bias[start + i];
            if (what == SWISH) {
                for (int64_t i = 0; i < count; i++) z[i] = exp_of_negative(-fabsf(y[i]));
                for (int64_t i = 0; i < count; i++) y[i] *= (y[i] < 0 ? z[i] : 1.0f) / (1.0f + z[i]);
            } else if (what != NOTHING) {
                load(z, at(other, row * size + start, is_bf16), count, is_bf16);
                if (what == TIMES) for (int64_t i = 0; i < count; i++) y[i] *= z[i];
                else for (int64_t i = 0; i < count; i++) y[i] += z[i];
            }
            store((void *)at(output, row * size + start, is_bf16), y, count, is_bf16);
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
