/* Attention on AMX, the part that works on one chunk of keys: scores, online softmax, values.
 *
 *      scores: K Q^T                                   output: P V
 *                     tmm4: queries                                   tmm6, tmm7: values
 *                     [32 of dim][16 lanes]                           [32 keys][16 of value_dim]
 *                    +------------+                                 +-------+-------+-------+-------+
 *    16 keys   tmm6  | tmm0       |          probs, upper half tmm4 | tmm0  | tmm1  | tmm2  | tmm3  |
 *    16 keys   tmm7  | tmm1       |                 lower half tmm5 | += both halves, 16 lanes each |
 *    16 keys   tmm6  | tmm2       |          [16 lanes][32 keys]    +-------+-------+-------+-------+
 *    16 keys   tmm7  | tmm3       |
 *                    +------------+
 *
 * Keys are tiles as they are in the cache. Scores [keys, lanes] have a vector for each key, so that the softmax of all
 * 16 lanes goes down the keys at once. Its running maximum and sum are those of Milakov & Gimelshein 2018 ("Online
 * normalizer calculation for softmax"), the accumulators that are rescaled with them those of FlashAttention (Dao et
 * al. 2022). A prob is split into two bf16 (Henry, Tang & Heinecke 2019): their sum has 16 of its bits.
 */
#ifndef NOCTURNE_ATTENTION_AMX_H
#define NOCTURNE_ATTENTION_AMX_H

#include <string.h>

#include "attention.h"
#include "gemm_amx.h"

#ifdef HAS_AMX

/* Keys whose probs are one tile, and keys of a chunk; packs that a thread takes at once. */
enum { KEYS_PER_TILE = 32, CHUNK = 128, MAX_PACKS = 16 };

/* VNNI groups of a tile, and bf16 numbers of a cache line. */
enum { TILE_SIZE = TILE_DIM * TILE_DIM, LINE_BF16 = LINE / 2 };

/* The compiler does not know that tiles are loaded from memory. */
#define COMPILER_FENCE() __asm__ volatile("" ::: "memory")

/* A row of a step. Of the `seqused_k` keys in the cache it sees those in [first_key, end_key). */
typedef struct {
    const int32_t *block_table;
    int64_t seqused_k, first_key, end_key;
} QueryRow;

/* The arguments of a call; `group` query heads share a key head. */
typedef struct {
    void *output;
    const void *query, *keys, *values;
    const QueryRow *rows;
    int64_t num_rows, group, rows_per_pack;
    AttentionShape s;
} AttentionArgs;

/* Adjacent rows, as many as have up to 16 query heads for a key head; each of these heads is a lane. */
typedef struct {
    int64_t first_row, num_rows, first_key, end_key; /* keys that one of its rows sees */
    __m512i first_keys, end_keys;                    /* of each lane */
} Pack;

/* Rows of a pack that share the keys of a chunk, and the number of these keys. */
typedef struct {
    const QueryRow *row;
    int64_t seqlen_k;
    int first_lane, num_lanes;
} KeyGroup;

/* The online softmax of a pack and one key head. */
typedef struct {
    __m512 row_max, row_sum; /* of scores in powers of two, and of their exponentials */
    uint32_t *queries;       /* [dim / 32, 16 VNNI groups, lanes] */
    float *acc;              /* [lanes, value_dim] */
} SoftmaxState;

/* A chunk's values of one key head in VNNI layout, and whose they are. */
typedef struct {
    QueryRow row;
    int64_t start;
    uint32_t *packed; /* [CHUNK / KEYS_PER_TILE, value_dim / 16, 16 pairs of keys, 16 values] */
} ValueTiles;

/* A thread's memory. */
typedef struct {
    __m512 scores[CHUNK], group_scores[CHUNK];
    uint32_t probs[2][CHUNK / KEYS_PER_TILE][TILE_SIZE]; /* upper and lower half, [lane][pair of keys] */
    float chunk_acc[TILE_DIM * MAX_ROW_TILES * TILE_DIM]; /* [lanes, values of MAX_ROW_TILES tiles] */
    Pack packs[MAX_PACKS];
    SoftmaxState *states; /* [packs, key heads] */
    ValueTiles *values;   /* [key heads] */
    char *copies;         /* of keys or values that are not adjacent in memory */
} Workspace;

/* The number of a row's cached keys in the chunk. */
INLINE int64_t num_keys_in_chunk(const QueryRow *row, int64_t start) {
    return row->seqused_k - start < CHUNK ? row->seqused_k - start : CHUNK;
}

/* Whether two rows, both with keys in the chunk, share all of them. */
static int share_keys(const QueryRow *a, const QueryRow *b, int64_t start, AttentionShape s) {
    int64_t seqlen_k = num_keys_in_chunk(a, start), block = start / s.block_size;
    if (seqlen_k != num_keys_in_chunk(b, start)) return 0;
    int64_t num_blocks = (start + seqlen_k - 1) / s.block_size - block + 1;
    return a->block_table == b->block_table ||
           memcmp(a->block_table + block, b->block_table + block, sizeof(int32_t) * num_blocks) == 0;
}

/* The address of TILE_DIM keys or values from `position` on, of which `count` exist, and their distance in bytes.
 * Those of several blocks are copied together first. */
INLINE const char *find_tile(int64_t *stride, char *copies, const void *pool, const QueryRow *row, int64_t position,
                             int64_t count, int64_t kv_head, AttentionShape s, int64_t size) {
    int64_t block = position / s.block_size, offset = position % s.block_size, bytes = size * 2;
    const char *first = (const char *)pool + kv_head * bytes;
    *stride = s.num_kv_heads * bytes;
    if (s.block_size % TILE_DIM == 0) return first + (row->block_table[block] * s.block_size + offset) * *stride;
    for (int64_t key = 0; key < (count < TILE_DIM ? count : TILE_DIM); key++) {
        memcpy(copies + key * bytes, first + (row->block_table[block] * s.block_size + offset) * *stride, bytes);
        if (++offset == s.block_size) block++, offset = 0;
    }
    *stride = bytes;
    return copies;
}

#define SCORE_TILE(tile, key_register)                                                                                 \
    if (tile < num_tiles) {                                                                                            \
        _tile_loadd(key_register, tiles[tile] + part * LINE, stride);                                                  \
        _tile_dpbf16ps(tile, key_register, 4);                                                                         \
    }
#define STORE_SCORES(tile) _tile_stored(tile, scores + key + tile * TILE_DIM, LINE)

/* Scores [keys, lanes] of a group's keys in the chunk with the queries of all lanes. */
static void score_keys(__m512 *scores, const KeyGroup *group, int64_t start, const uint32_t *queries, int64_t kv_head,
                       char *copies, const AttentionArgs *args) {
    int64_t dim = args->s.dim, stride = 0;
    for (int64_t key = 0; key < group->seqlen_k; key += MAX_ROW_TILES * TILE_DIM) {
        const char *tiles[MAX_ROW_TILES];
        int64_t left = ceil_div(group->seqlen_k - key, TILE_DIM);
        int num_tiles = (int)(left < MAX_ROW_TILES ? left : MAX_ROW_TILES);
        for (int64_t i = 0; i < num_tiles; i++)
            tiles[i] = find_tile(&stride, copies + i * TILE_DIM * dim * 2, args->keys, group->row,
                                 start + key + i * TILE_DIM, group->seqlen_k - key - i * TILE_DIM, kv_head, args->s,
                                 dim);
        COMPILER_FENCE();
        FOR_ACC_TILES(_tile_zero)
        for (int64_t part = 0; part < dim / LINE_BF16; part++) {
            _tile_loadd(4, queries + part * TILE_SIZE, LINE);
            SCORE_TILE(0, 6)
            SCORE_TILE(1, 7)
            SCORE_TILE(2, 6)
            SCORE_TILE(3, 7)
        }
        FOR_ACC_TILES(STORE_SCORES)
    }
    COMPILER_FENCE();
}

/* Scores of a chunk, of each lane with the keys of its own group; those of a lane without keys are left as they are. */
static void score_chunk(Workspace *workspace, const KeyGroup *groups, int num_groups, int64_t start,
                        const uint32_t *queries, int64_t kv_head, const AttentionArgs *args) {
    for (int i = 0; i < num_groups; i++) {
        const KeyGroup *group = &groups[i];
        score_keys(i == 0 ? workspace->scores : workspace->group_scores, group, start, queries, kv_head,
                   workspace->copies, args);
        __mmask16 lanes = (__mmask16)(((1u << group->num_lanes) - 1) << group->first_lane);
        for (int64_t key = 0; i > 0 && key < group->seqlen_k; key++)
            workspace->scores[key] =
                _mm512_mask_mov_ps(workspace->scores[key], lanes, workspace->group_scores[key]);
    }
}

/* Replaces `count` scores, a multiple of KEYS_PER_TILE, by 2^(score - row_max), the unnormalized probs, and updates
 * maximum and sum of each lane; returns the factor that rescales its accumulators. Scores become powers of two by a
 * factor of log2(e), as in FlashAttention's kernels. */
static __m512 exp_scores(__m512 *scores, SoftmaxState *state, const Pack *pack, int64_t start, int64_t count,
                         float scale) {
    const __m512 lowest = _mm512_set1_ps(-INFINITY), to_power = _mm512_set1_ps(scale * LOG2_E);
    __m512 maxima[4] = {lowest, lowest, lowest, lowest}, sums[4] = {{0}};
    int has_unseen_keys = _mm512_cmpgt_epi32_mask(pack->first_keys, _mm512_set1_epi32((int32_t)start)) != 0 ||
                          _mm512_cmplt_epi32_mask(pack->end_keys, _mm512_set1_epi32((int32_t)(start + count))) != 0;
    for (int64_t key = 0; key < count; key += 4)
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            if (has_unseen_keys) {
                __m512i position = _mm512_set1_epi32((int32_t)(start + key + i));
                __mmask16 is_seen = _mm512_cmpgt_epi32_mask(pack->end_keys, position) &
                                    _mm512_cmple_epi32_mask(pack->first_keys, position);
                scores[key + i] = _mm512_mask_mov_ps(lowest, is_seen, scores[key + i]);
            }
            maxima[i] = _mm512_max_ps(maxima[i], scores[key + i]);
        }
    __m512 chunk_max = _mm512_max_ps(_mm512_max_ps(maxima[0], maxima[1]), _mm512_max_ps(maxima[2], maxima[3]));
    __m512 new_max = _mm512_max_ps(state->row_max, _mm512_mul_ps(chunk_max, to_power));
    /* A lane that has seen no key yet has nothing to rescale; the bound keeps inf - inf out of the exponent. */
    __m512 exponent = _mm512_max_ps(_mm512_set1_ps(-200), _mm512_sub_ps(state->row_max, new_max));
    __mmask16 is_larger = _mm512_cmp_ps_mask(new_max, state->row_max, _CMP_GT_OQ);
    __m512 rescale = _mm512_mask_mov_ps(_mm512_set1_ps(1), is_larger, exp2_16(exponent));
    for (int64_t key = 0; key < count; key += 4)
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            __m512 prob = exp2_16(_mm512_fmsub_ps(scores[key + i], to_power, new_max));
            if (has_unseen_keys) {
                __mmask16 is_seen = _mm512_cmp_ps_mask(scores[key + i], lowest, _CMP_NEQ_UQ);
                prob = _mm512_maskz_mov_ps(is_seen, prob);
            }
            scores[key + i] = prob;
            sums[i] = _mm512_add_ps(sums[i], prob);
        }
    __m512 chunk_sum = _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
    state->row_sum = _mm512_fmadd_ps(state->row_sum, rescale, chunk_sum);
    state->row_max = new_max;
    return rescale;
}

/* The upper halves of two keys' probs as pairs of bf16. */
INLINE __m512i pair_upper_halves(__m512 even, __m512 odd) {
    __m512i upper = _mm512_set1_epi32((int32_t)0xffff0000);
    return _mm512_or_si512(_mm512_and_si512((__m512i)odd, upper), _mm512_srli_epi32((__m512i)even, 16));
}

/* x minus its upper half; the upper half of the result is rounded. */
INLINE __m512 remainder_of(__m512 x) {
    __m512 rest = _mm512_sub_ps(x, (__m512)_mm512_and_si512((__m512i)x, _mm512_set1_epi32((int32_t)0xffff0000)));
    return (__m512)_mm512_add_epi32((__m512i)rest, _mm512_set1_epi32(0x8000));
}

/* Probs [count, lanes] as tiles [lanes, keys] of bf16, the upper halves and the remainders. */
static void split_probs(Workspace *workspace, int64_t count) {
    for (int64_t tile = 0; tile < count / KEYS_PER_TILE; tile++) {
        const __m512 *x = workspace->scores + tile * KEYS_PER_TILE;
        __m512i upper[TILE_DIM], lower[TILE_DIM];
#pragma GCC unroll 16
        for (int i = 0; i < TILE_DIM; i++) upper[i] = pair_upper_halves(x[2 * i], x[2 * i + 1]);
        transpose_16x16(upper);
        for (int i = 0; i < TILE_DIM; i++) _mm512_store_si512(workspace->probs[0][tile] + i * TILE_DIM, upper[i]);
#pragma GCC unroll 16
        for (int i = 0; i < TILE_DIM; i++)
            lower[i] = pair_upper_halves(remainder_of(x[2 * i]), remainder_of(x[2 * i + 1]));
        transpose_16x16(lower);
        for (int i = 0; i < TILE_DIM; i++) _mm512_store_si512(workspace->probs[1][tile] + i * TILE_DIM, lower[i]);
    }
}

/* Packs a row's values of a chunk in VNNI layout, two keys side by side, unless they are packed already. LINE_BF16
 * values become two tiles, each with every other four of them; zeros follow the row's keys. */
static void pack_values(ValueTiles *values, const QueryRow *row, int64_t start, int64_t kv_head, char *copies,
                        const AttentionArgs *args) {
    int64_t size = args->s.value_dim, stride = 0, count = num_keys_in_chunk(row, start);
    if (values->start == start && share_keys(&values->row, row, start, args->s)) return;
    for (int64_t key = 0; key < count; key += KEYS_PER_TILE)
        for (int64_t half = 0; half < KEYS_PER_TILE; half += TILE_DIM) {
            int64_t left = count - key - half;
            uint32_t *to = values->packed + key / KEYS_PER_TILE * (size / TILE_DIM) * TILE_SIZE + half / 2 * TILE_DIM;
            const char *from = NULL;
            if (left > 0)
                from = find_tile(&stride, copies, args->values, row, start + key + half, left, kv_head, args->s, size);
            for (int64_t i = 0; i < TILE_DIM; i += 2, to += TILE_DIM, from += 2 * stride)
                for (int64_t part = 0; part < size / LINE_BF16; part++) {
                    __m512i even = _mm512_setzero_si512(), odd = even;
                    if (left > i) even = _mm512_loadu_si512(from + part * LINE);
                    if (left > i + 1) odd = _mm512_loadu_si512(from + stride + part * LINE);
                    _mm512_store_si512(to + 2 * part * TILE_SIZE, _mm512_unpacklo_epi16(even, odd));
                    _mm512_store_si512(to + (2 * part + 1) * TILE_SIZE, _mm512_unpackhi_epi16(even, odd));
                }
        }
    values->row = *row, values->start = start;
}

#define ADD_VALUE_TILE(tile, value_register)                                                                           \
    if (tile < num_tiles) {                                                                                            \
        _tile_loadd(value_register, packed + tile * TILE_SIZE, LINE);                                                  \
        _tile_dpbf16ps(tile, 4, value_register);                                                                       \
        _tile_dpbf16ps(tile, 5, value_register);                                                                       \
    }
#define STORE_CHUNK_ACC(tile) _tile_stored(tile, workspace->chunk_acc + tile * TILE_DIM, MAX_ROW_TILES * LINE)

/* acc = acc * rescale + probs * values, for the lanes of a group. */
static void add_values(Workspace *workspace, float *acc, const KeyGroup *group, const ValueTiles *values,
                       const float *rescale, int64_t size) {
    for (int64_t first = 0; first < size / TILE_DIM; first += MAX_ROW_TILES) {
        int64_t left = size / TILE_DIM - first;
        int num_tiles = (int)(left < MAX_ROW_TILES ? left : MAX_ROW_TILES);
        FOR_ACC_TILES(_tile_zero)
        for (int64_t keys = 0; keys < ceil_div(group->seqlen_k, KEYS_PER_TILE); keys++) {
            const uint32_t *packed = values->packed + (keys * (size / TILE_DIM) + first) * TILE_SIZE;
            _tile_loadd(4, workspace->probs[0][keys], LINE);
            _tile_loadd(5, workspace->probs[1][keys], LINE);
            ADD_VALUE_TILE(0, 6)
            ADD_VALUE_TILE(1, 7)
            ADD_VALUE_TILE(2, 6)
            ADD_VALUE_TILE(3, 7)
        }
        FOR_ACC_TILES(STORE_CHUNK_ACC)
        COMPILER_FENCE();
        for (int lane = group->first_lane; lane < group->first_lane + group->num_lanes; lane++)
            for (int tile = 0; tile < num_tiles; tile++) {
                float *c = acc + lane * size + (first + tile) * TILE_DIM;
                __m512 added = _mm512_load_ps(workspace->chunk_acc + (lane * MAX_ROW_TILES + tile) * TILE_DIM);
                _mm512_store_ps(c, _mm512_fmadd_ps(_mm512_load_ps(c), _mm512_set1_ps(rescale[lane]), added));
            }
    }
}

#endif
#endif
