/* Attention of rows one by one over paged keys: those that decode, and of prompts those with few keys. Every
 * row is computed by one thread in one order. All sums are fp32. */
#if defined(__x86_64__) && defined(__GNUC__)
/* Whole vectors, of which GCC takes half for Intel's processors: faster here, and slower in gemm.c. */
#pragma GCC target("prefer-vector-width=512")
#endif

#include <omp.h>
#include <string.h>

#include "attention.h"
#include "vecmath.h"

/* Keys that are worked on side by side. */
enum { TILE = 16 };

/* How many keys ahead memory is fetched; they lie too far apart for the processor to guess. */
enum { AHEAD = 2 * TILE };

/* Query heads that share a tile while it is in registers, and lanes of their sums. */
enum { HEADS = 4, WIDE = 4 };

typedef float Lanes __attribute__((vector_size(sizeof(float) * TILE)));

/* Where a tile's rows lie, the vectors of consecutive places of a sequence. */
INLINE void find_rows(const char **rows, const void *pool, const int32_t *blocks, int64_t first, int64_t count,
                      int64_t kv_head, Shape s, int64_t size, int is_bf16) {
    int64_t block = first / s.block_size, offset = first % s.block_size; /* divided once: it takes long */
    for (int64_t key = 0; key < count; key++) {
        int64_t slot = (int64_t)blocks[block] * s.block_size + offset;
        rows[key] = at(pool, (slot * s.num_kv_heads + kv_head) * size, is_bf16);
        if (++offset == s.block_size) block++, offset = 0;
    }
}

/* Keys or values [count, size], `stride` numbers apart, from place `first` on; those up to `end` will be wanted soon. */
INLINE void load_tile(float *to, const void *pool, const int32_t *blocks, int64_t first, int64_t count, int64_t end,
                      int64_t kv_head, Shape s, int64_t size, int64_t stride, int is_bf16) {
    const char *rows[TILE], *ahead[TILE];
    int64_t next = first + AHEAD, num_ahead = end - next < TILE ? end - next : TILE;
    find_rows(rows, pool, blocks, first, count, kv_head, s, size, is_bf16);
    find_rows(ahead, pool, blocks, next, num_ahead, kv_head, s, size, is_bf16);
    for (int64_t key = 0; key < num_ahead; key++)
        for (int64_t i = 0; i < size * (is_bf16 ? 2 : 4); i += 64) __builtin_prefetch(ahead[key] + i);
    for (int64_t key = 0; key < count; key++) load(to + key * stride, rows[key], size, is_bf16);
}

/* Scores of a tile's keys, for `num_heads` query heads at once; a known number keeps their sums in registers. */
INLINE void score_heads(float *scores, int64_t stride, const float *q, const Lanes *across, int64_t dim, int64_t count,
                        int num_heads) {
    Lanes even[HEADS], odd[HEADS];
    int64_t i = 0;
#pragma GCC unroll 4
    for (int head = 0; head < num_heads; head++) even[head] = odd[head] = (Lanes){0};
    for (; i + 1 < dim; i += 2) {
#pragma GCC unroll 4
        for (int head = 0; head < num_heads; head++) {
            even[head] += q[head * dim + i] * across[i];
            odd[head] += q[head * dim + i + 1] * across[i + 1];
        }
    }
#pragma GCC unroll 4
    for (int head = 0; head < num_heads; head++) {
        if (i < dim) even[head] += q[head * dim + i] * across[i];
        even[head] += odd[head];
        memcpy(scores + head * stride, &even[head], sizeof(float) * count);
    }
}

/* Adds a part of a tile's values, `num` lanes wide, each with its share, to the sums of `num_heads` query heads. */
INLINE void add_part(Lanes *sums, const float *shares, int64_t stride, const Lanes *tile, int64_t width, int64_t count,
                     int num_heads, int num) {
    Lanes mine[HEADS][WIDE];
#pragma GCC unroll 4
    for (int head = 0; head < num_heads; head++)
#pragma GCC unroll 4
        for (int i = 0; i < num; i++) mine[head][i] = sums[head * width + i];
    for (int64_t key = 0; key < count; key++) {
#pragma GCC unroll 4
        for (int head = 0; head < num_heads; head++)
#pragma GCC unroll 4
            for (int i = 0; i < num; i++) mine[head][i] += shares[head * stride + key] * tile[key * width + i];
    }
#pragma GCC unroll 4
    for (int head = 0; head < num_heads; head++)
#pragma GCC unroll 4
        for (int i = 0; i < num; i++) sums[head * width + i] = mine[head][i];
}

INLINE void add_values(Lanes *sums, const float *shares, int64_t stride, const Lanes *tile, int64_t width, int64_t count,
                       int num_heads) {
    int64_t i = 0;
    for (; i + WIDE <= width; i += WIDE) add_part(sums + i, shares, stride, tile + i, width, count, num_heads, WIDE);
    for (; i < width; i++) add_part(sums + i, shares, stride, tile + i, width, count, num_heads, 1);
}

static void softmax(float *scores, int64_t count) {
    float largest = largest_of(scores, count), total = 0;
    for (int64_t i = 0; i < count; i++) scores[i] = exp_of_negative(scores[i] - largest);
    for (int64_t i = 0; i < count; i++) total += scores[i];
    for (int64_t i = 0; i < count; i++) scores[i] /= total;
}

/* Calls f(arguments…, number of heads) for the `count` heads from `begin` on, HEADS at a time; `head` is the first of
 * them. */
#define FOR_HEADS(begin, count, f, ...)                                                                                \
    for (int64_t head = (begin); head < (begin) + (count); head += HEADS) switch ((begin) + (count) - head) {          \
            case 1: f(__VA_ARGS__, 1); break;                                                                          \
            case 2: f(__VA_ARGS__, 2); break;                                                                          \
            case 3: f(__VA_ARGS__, 3); break;                                                                          \
            default: f(__VA_ARGS__, HEADS);                                                                            \
        }

/* One row's query heads over the key heads `kv_first` up to `kv_end`, which lie side by side: each tile of them is read at
 * once. `scores` holds num_keys numbers for each of those query heads. */
INLINE void attend(void *output, const void *query, const void *keys, const void *values, const int32_t *blocks,
                   int64_t num_keys, int64_t kv_first, int64_t kv_end, Shape s, int64_t dim, int64_t size, float *scores,
                   int is_bf16) {
    int64_t group = s.num_heads / s.num_kv_heads, num_heads = group * (kv_end - kv_first);
    int64_t width = (size + TILE - 1) / TILE, first = s.window > 0 && num_keys > s.window ? num_keys - s.window : 0;
    float q[num_heads * dim], row_major[TILE * dim];
    Lanes across[dim], tile[TILE * width], sums[num_heads * width];
    load(q, at(query, kv_first * group * dim, is_bf16), num_heads * dim, is_bf16);
    for (int64_t i = 0; i < num_heads * dim; i++) q[i] *= s.scale;
    for (int64_t i = 0; i < TILE * dim; i++) row_major[i] = 0;
    for (int64_t i = 0; i < TILE * width; i++) tile[i] = (Lanes){0};
    for (int64_t i = 0; i < num_heads * width; i++) sums[i] = (Lanes){0};
    for (int64_t start = first; start < num_keys; start += TILE) {
        int64_t count = num_keys - start < TILE ? num_keys - start : TILE;
        for (int64_t kv = kv_first; kv < kv_end; kv++) {
            int64_t begin = (kv - kv_first) * group;
            load_tile(row_major, keys, blocks, start, count, num_keys, kv, s, dim, dim, is_bf16);
            /* Turned, so that the keys are added up side by side instead of each across its own numbers. */
            for (int64_t i = 0; i < dim; i++)
                for (int64_t key = 0; key < TILE; key++) across[i][key] = row_major[key * dim + i];
            FOR_HEADS(begin, group, score_heads, scores + head * num_keys + start, num_keys, q + head * dim, across, dim,
                      count)
        }
    }
    for (int64_t head = 0; head < num_heads; head++) softmax(scores + head * num_keys + first, num_keys - first);
    for (int64_t start = first; start < num_keys; start += TILE) {
        int64_t count = num_keys - start < TILE ? num_keys - start : TILE;
        for (int64_t kv = kv_first; kv < kv_end; kv++) {
            int64_t begin = (kv - kv_first) * group;
            load_tile((float *)tile, values, blocks, start, count, num_keys, kv, s, size, width * TILE, is_bf16);
            FOR_HEADS(begin, group, add_values, sums + head * width, scores + head * num_keys + start, num_keys, tile,
                      width, count)
        }
    }
    for (int64_t head = 0; head < num_heads; head++)
        store((void *)at(output, (kv_first * group + head) * size, is_bf16), (float *)(sums + head * width), size, is_bf16);
}

/* Query [rows, heads, dim], keys [slots, kv_heads, dim], values [slots, kv_heads, value_dim], blocks [rows,
 * max_blocks], num_keys [rows]; writes output [rows, heads, value_dim]. Returns 0, or 1 where memory ran out. */
INLINE int attend_all(void *output, const void *query, const void *keys, const void *values, const int32_t *blocks,
                      const int32_t *num_keys, int64_t num_rows, Shape s, int is_bf16) {
    int64_t longest = 0, failed = 0;
    /* With few rows the threads share each row's heads. */
    int64_t num_parts = num_rows < omp_get_max_threads() ? s.num_kv_heads : 1, part_size = s.num_kv_heads / num_parts;
    for (int64_t row = 0; row < num_rows; row++) longest = num_keys[row] > longest ? num_keys[row] : longest;
#pragma omp parallel reduction(| : failed)
    {
        float *scores = malloc(sizeof(float) * (s.num_heads / num_parts) * longest);
        failed = scores == NULL;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < num_rows * num_parts; task++) {
            int64_t row = task / num_parts, head = task % num_parts * part_size, end = head + part_size;
            void *to = (void *)at(output, row * s.num_heads * s.value_dim, is_bf16);
            const void *from = at(query, row * s.query_stride, is_bf16);
            const int32_t *mine = blocks + row * s.max_blocks;
            if (scores == NULL) continue;
            /* The common sizes by name, so that their loops are unrolled. */
            if (s.dim == 64 && s.value_dim == 64)
                attend(to, from, keys, values, mine, num_keys[row], head, end, s, 64, 64, scores, is_bf16);
            else if (s.dim == 128 && s.value_dim == 128)
                attend(to, from, keys, values, mine, num_keys[row], head, end, s, 128, 128, scores, is_bf16);
            else
                attend(to, from, keys, values, mine, num_keys[row], head, end, s, s.dim, s.value_dim, scores, is_bf16);
        }
        free(scores);
    }
    return (int)failed;
}

/* Runs of one row each, so that first_rows says nothing more. */
int paged_attention_bf16(void *output, const void *query, const void *keys, const void *values, const int32_t *blocks,
                     const int32_t *num_keys, const int32_t *first_rows, int64_t num_runs, const Shape *shape) {
    (void)first_rows;
    return attend_all(output, query, keys, values, blocks, num_keys, num_runs, *shape, 1);
}

int paged_attention_f32(void *output, const void *query, const void *keys, const void *values, const int32_t *blocks,
                    const int32_t *num_keys, const int32_t *first_rows, int64_t num_runs, const Shape *shape) {
    (void)first_rows;
    return attend_all(output, query, keys, values, blocks, num_keys, num_runs, *shape, 0);
}
