/* Paged attention (Kwon et al. 2023) on vectors, in bf16 and fp32: of rows that decode, and of prompts with few keys.
 *
 * A row's keys are taken KEY_TILE at a time. All query heads of a key head share a tile (grouped-query attention,
 * Ainslie et al. 2023), HEADS of them at once:
 *
 *     scores: Q K^T                                        output: P V
 *                       KEY_TILE keys                                 VECTORS x 16 values
 *                     +---------------+                             +------+------+------+------+
 *       key_t[i]      | 1 vector      |                 value[key]  |      |      |      |      |
 *                     +---------------+                             +------+------+------+------+
 *       q[head 0][i]  | even and odd  |           probs[head 0][key]| acc  | acc  | acc  | acc  |
 *          ..         | i: 2 acc each |              ..             |    HEADS x VECTORS acc    |
 *       q[head 3][i]  |               |           probs[head 3][key]| acc  | acc  | acc  | acc  |
 *                     +---------------+                             +------+------+------+------+
 *
 * The softmax in between takes all scores of a row: they fit the caches. One thread computes a row, always in the same
 * order, in fp32.
 */
#if defined(__x86_64__) && defined(__GNUC__)
/* Whole vectors, of which GCC uses half on Intel's processors: faster here, and slower in gemm.c. */
#pragma GCC target("prefer-vector-width=512")
#endif

#include <omp.h>
#include <string.h>

#include "attention.h"
#include "vecmath.h"

enum { KEY_TILE = 16, HEADS = 4, VECTORS = 4 };

/* Keys between one that is used and one that is prefetched: blocks are too far apart for the hardware prefetcher. */
enum { PREFETCH_DISTANCE = 2 * KEY_TILE };

typedef float Vector __attribute__((vector_size(sizeof(float) * KEY_TILE)));

/* Addresses of a key head's keys or values at `count` positions of a sequence from `first` on. */
INLINE void find_rows(const char **rows, const void *pool, const int32_t *block_table, int64_t first, int64_t count,
                      int64_t kv_head, AttentionShape s, int64_t size, int is_bf16) {
    int64_t block = first / s.block_size, offset = first % s.block_size; /* divided once: division is slow */
    for (int64_t key = 0; key < count; key++) {
        int64_t slot = (int64_t)block_table[block] * s.block_size + offset;
        rows[key] = at(pool, (slot * s.num_kv_heads + kv_head) * size, is_bf16);
        if (++offset == s.block_size) block++, offset = 0;
    }
}

/* Keys or values [count, size], `stride` numbers apart, from position `first` on; prefetches later ones before
 * `end`. */
INLINE void load_tile(float *to, const void *pool, const int32_t *block_table, int64_t first, int64_t count,
                      int64_t end, int64_t kv_head, AttentionShape s, int64_t size, int64_t stride, int is_bf16) {
    const char *rows[KEY_TILE], *later[KEY_TILE];
    int64_t next = first + PREFETCH_DISTANCE, num_later = end - next < KEY_TILE ? end - next : KEY_TILE;
    find_rows(rows, pool, block_table, first, count, kv_head, s, size, is_bf16);
    find_rows(later, pool, block_table, next, num_later, kv_head, s, size, is_bf16);
    for (int64_t key = 0; key < num_later; key++)
        for (int64_t i = 0; i < size * (is_bf16 ? 2 : 4); i += LINE) __builtin_prefetch(later[key] + i);
    for (int64_t key = 0; key < count; key++) load(to + key * stride, rows[key], size, is_bf16);
}

/* Scores of a tile's keys [dim][KEY_TILE] for `num_heads` query heads; a constant number keeps the accumulators in
 * registers. */
INLINE void score_tile(float *scores, int64_t stride, const float *q, const Vector *keys_t, int64_t dim, int64_t count,
                       int num_heads) {
    Vector even[HEADS], odd[HEADS];
    int64_t i = 0;
#pragma GCC unroll 4
    for (int head = 0; head < num_heads; head++) even[head] = odd[head] = (Vector){0};
    for (; i + 1 < dim; i += 2) {
#pragma GCC unroll 4
        for (int head = 0; head < num_heads; head++) {
            even[head] += q[head * dim + i] * keys_t[i];
            odd[head] += q[head * dim + i + 1] * keys_t[i + 1];
        }
    }
#pragma GCC unroll 4
    for (int head = 0; head < num_heads; head++) {
        if (i < dim) even[head] += q[head * dim + i] * keys_t[i];
        even[head] += odd[head];
        memcpy(scores + head * stride, &even[head], sizeof(float) * count);
    }
}

/* Adds `num_vectors` vectors of a tile's values, each times its prob, to the accumulators of `num_heads` query
 * heads. */
INLINE void add_value_vectors(Vector *acc, const float *probs, int64_t stride, const Vector *values, int64_t width,
                              int64_t count, int num_heads, int num_vectors) {
    Vector c[HEADS][VECTORS];
#pragma GCC unroll 4
    for (int head = 0; head < num_heads; head++)
#pragma GCC unroll 4
        for (int i = 0; i < num_vectors; i++) c[head][i] = acc[head * width + i];
    for (int64_t key = 0; key < count; key++) {
#pragma GCC unroll 4
        for (int head = 0; head < num_heads; head++)
#pragma GCC unroll 4
            for (int i = 0; i < num_vectors; i++) c[head][i] += probs[head * stride + key] * values[key * width + i];
    }
#pragma GCC unroll 4
    for (int head = 0; head < num_heads; head++)
#pragma GCC unroll 4
        for (int i = 0; i < num_vectors; i++) acc[head * width + i] = c[head][i];
}

/* Adds a tile's values [count][width], in vectors. */
INLINE void add_values(Vector *acc, const float *probs, int64_t stride, const Vector *values, int64_t width,
                       int64_t count, int num_heads) {
    int64_t i = 0;
    for (; i + VECTORS <= width; i += VECTORS)
        add_value_vectors(acc + i, probs, stride, values + i, width, count, num_heads, VECTORS);
    for (; i < width; i++) add_value_vectors(acc + i, probs, stride, values + i, width, count, num_heads, 1);
}

/* `sink` is one more score, which no value belongs to; -INFINITY for none. */
static void softmax(float *scores, int64_t count, float sink) {
    float row_max = max_of(scores, count), row_sum = 0;
    if (sink > row_max) row_max = sink;
    if (sink > -INFINITY) row_sum = exp_of_negative(sink - row_max);
    for (int64_t i = 0; i < count; i++) scores[i] = exp_of_negative(scores[i] - row_max);
    for (int64_t i = 0; i < count; i++) row_sum += scores[i];
    for (int64_t i = 0; i < count; i++) scores[i] /= row_sum;
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

/* One row's query heads over the key heads `kv_first` up to `kv_end`, which are adjacent in memory: each tile of
 * them is read at once. `scores` holds seqused_k numbers for each of those query heads. */
INLINE void attend_row(void *output, const void *query, const void *keys, const void *values,
                       const int32_t *block_table, int64_t seqused_k, int64_t kv_first, int64_t kv_end,
                       AttentionShape s, int64_t dim, int64_t value_dim, float *scores, int is_bf16) {
    int64_t group = s.num_heads / s.num_kv_heads, num_heads = group * (kv_end - kv_first);
    int64_t first = first_key_of(seqused_k, s);
    int64_t width = ceil_div(value_dim, KEY_TILE);
    float q[num_heads * dim], key_tile[KEY_TILE * dim];
    Vector keys_t[dim], value_tile[KEY_TILE * width], acc[num_heads * width];
    load(q, at(query, kv_first * group * dim, is_bf16), num_heads * dim, is_bf16);
    for (int64_t i = 0; i < num_heads * dim; i++) q[i] *= s.scale;
    for (int64_t i = 0; i < KEY_TILE * dim; i++) key_tile[i] = 0;
    for (int64_t i = 0; i < KEY_TILE * width; i++) value_tile[i] = (Vector){0};
    for (int64_t i = 0; i < num_heads * width; i++) acc[i] = (Vector){0};
    for (int64_t start = first; start < seqused_k; start += KEY_TILE) {
        int64_t count = seqused_k - start < KEY_TILE ? seqused_k - start : KEY_TILE;
        for (int64_t kv = kv_first; kv < kv_end; kv++) {
            int64_t begin = (kv - kv_first) * group;
            load_tile(key_tile, keys, block_table, start, count, seqused_k, kv, s, dim, dim, is_bf16);
            /* Transposed, so that a lane adds up one key's score; a sum across lanes would be slower. */
            for (int64_t i = 0; i < dim; i++)
                for (int64_t key = 0; key < KEY_TILE; key++) keys_t[i][key] = key_tile[key * dim + i];
            FOR_HEADS(begin, group, score_tile, scores + head * seqused_k + start, seqused_k, q + head * dim, keys_t,
                      dim, count)
        }
    }
    for (int64_t head = 0; head < num_heads; head++)
        softmax(scores + head * seqused_k + first, seqused_k - first,
                s.sinks == NULL ? -INFINITY : s.sinks[kv_first * group + head]);
    for (int64_t start = first; start < seqused_k; start += KEY_TILE) {
        int64_t count = seqused_k - start < KEY_TILE ? seqused_k - start : KEY_TILE;
        for (int64_t kv = kv_first; kv < kv_end; kv++) {
            int64_t begin = (kv - kv_first) * group;
            load_tile((float *)value_tile, values, block_table, start, count, seqused_k, kv, s, value_dim,
                      width * KEY_TILE, is_bf16);
            FOR_HEADS(begin, group, add_values, acc + head * width, scores + head * seqused_k + start, seqused_k,
                      value_tile, width, count)
        }
    }
    for (int64_t head = 0; head < num_heads; head++)
        store((void *)at(output, (kv_first * group + head) * value_dim, is_bf16), (float *)(acc + head * width),
              value_dim, is_bf16);
}

/* Query [rows, heads, dim], keys [slots, kv_heads, dim], values [slots, kv_heads, value_dim], block_table [rows,
 * max_blocks], seqused_k [rows]; writes output [rows, heads, value_dim]. Returns 0, or 1 where memory ran out. */
INLINE int paged_attention(void *output, const void *query, const void *keys, const void *values,
                           const int32_t *block_table, const int32_t *seqused_k, int64_t num_rows, AttentionShape s,
                           int is_bf16) {
    int64_t max_seqlen_k = 0, failed = 0;
    /* With few rows the threads share each row's heads. */
    int64_t num_parts = num_rows < omp_get_max_threads() ? s.num_kv_heads : 1, part_size = s.num_kv_heads / num_parts;
    for (int64_t row = 0; row < num_rows; row++)
        max_seqlen_k = seqused_k[row] > max_seqlen_k ? seqused_k[row] : max_seqlen_k;
#pragma omp parallel reduction(| : failed)
    {
        float *scores = malloc(sizeof(float) * (s.num_heads / num_parts) * max_seqlen_k);
        failed = scores == NULL;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < num_rows * num_parts; task++) {
            int64_t row = task / num_parts, kv = task % num_parts * part_size, end = kv + part_size;
            void *to = (void *)at(output, row * s.num_heads * s.value_dim, is_bf16);
            const void *q = at(query, row * s.query_stride, is_bf16);
            const int32_t *blocks = block_table + row * s.max_blocks;
            if (scores == NULL) continue;
            /* Common head sizes as constants, which unrolls their loops. */
            if (s.dim == 64 && s.value_dim == 64)
                attend_row(to, q, keys, values, blocks, seqused_k[row], kv, end, s, 64, 64, scores, is_bf16);
            else if (s.dim == 128 && s.value_dim == 128)
                attend_row(to, q, keys, values, blocks, seqused_k[row], kv, end, s, 128, 128, scores, is_bf16);
            else
                attend_row(to, q, keys, values, blocks, seqused_k[row], kv, end, s, s.dim, s.value_dim, scores,
                           is_bf16);
        }
        free(scores);
    }
    return (int)failed;
}

/* One query row for each sequence, so cu_seqlens_q says nothing more. */
int paged_attention_bf16(void *output, const void *query, const void *keys, const void *values,
                         const int32_t *block_table, const int32_t *seqused_k, const int32_t *cu_seqlens_q,
                         int64_t num_rows, const AttentionShape *shape) {
    (void)cu_seqlens_q;
    return paged_attention(output, query, keys, values, block_table, seqused_k, num_rows, *shape, 1);
}

int paged_attention_f32(void *output, const void *query, const void *keys, const void *values,
                        const int32_t *block_table, const int32_t *seqused_k, const int32_t *cu_seqlens_q,
                        int64_t num_rows, const AttentionShape *shape) {
    (void)cu_seqlens_q;
    return paged_attention(output, query, keys, values, block_table, seqused_k, num_rows, *shape, 0);
}
