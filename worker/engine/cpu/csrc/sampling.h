/* A row of logits or of weights, a block of BLOCK numbers at a time, and the steps of sampling it.
 *
 * A block is added up in fp32, the sums of blocks in double: as exact as needed, and vectorized.
 */
#ifndef NOCTURNE_SAMPLING_H
#define NOCTURNE_SAMPLING_H

#include "vecmath.h"

enum { BLOCK = 256 };

INLINE int64_t block_size(int64_t start, int64_t count) { return count - start < BLOCK ? count - start : BLOCK; }

/* A row of logits. A block of it is widened to fp32 in the L1 cache, which does not hold a whole row. */
typedef struct {
    const void *data;
    int64_t count;
    int is_bf16;
} Logits;

INLINE int64_t load_block(float *block, Logits x, int64_t start) {
    int64_t size = block_size(start, x.count);
    load(block, at(x.data, start, x.is_bf16), size, x.is_bf16);
    return size;
}

INLINE int64_t count_above(Logits x, float limit) {
    float block[BLOCK];
    int64_t found = 0;
    for (int64_t start = 0; start < x.count; start += BLOCK) {
        int64_t size = load_block(block, x, start);
        int32_t in_block = 0;
        for (int64_t i = 0; i < size; i++) in_block += block[i] > limit;
        found += in_block;
    }
    return found;
}

/* The sampling parameters of a row: `ROW_PARAMS` of sampler.py. `SamplingRules` of sampling_row.py explains each. */
typedef struct {
    double temperature, top_p, nucleus_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, uniform;
    int64_t top_k, num_alternatives, num_prompt_ids, num_token_ids, num_biased, num_banned;
    const int32_t *prompt_ids, *token_ids, *biased_ids, *banned_ids;
    const float *biases;
    const uint32_t *allowed; /* a bit per token id, or NULL */
} RowParams;

/* The scores of few tokens, which stand instead of their logits; a hash table finds a token's, a list a block's. */
typedef struct {
    float *scores;           /* [num_ids] */
    int32_t *ids, *counts;   /* [num_ids] */
    int32_t *table;          /* [mask + 1] places among the edits, or -1 */
    int32_t *heads, *next;   /* of the list of each block; -1 ends it */
    int64_t num_ids, mask;
} Edits;

INLINE float logit_of(Logits x, int64_t token_id) {
    float logit;
    load(&logit, at(x.data, token_id, x.is_bf16), 1, x.is_bf16);
    return logit;
}

/* edits.c: makes the edits of a row's parameters but `allowed`. */
void make_edits(Edits *edits, Logits x, const RowParams *params);

/* The place of a token's edit, or -1; there must be some edit. */
int32_t find_edit(const Edits *edits, int32_t id);

/* The largest score after the edits, and its first token; `block_max` are the maxima of the row's blocks before. */
float edited_max(const Edits *edits, Logits x, const float *block_max, int64_t *token_id);

/* A copy of the row with the edits and without the tokens that are not allowed. */
void apply_edits(float *scores, Logits x, const Edits *edits, const uint32_t *allowed);

/* top_k.c: the scores at or above the k-th largest, and their ids in ascending order; returns how many, or -1 where
 * edits raise a token among these, or lower too many. `scratch` is [x.count + LANES], and so are `scores` and `ids`. */
int64_t gather_top_k(float *scores, int32_t *ids, Logits x, const Edits *edits, int64_t k, float *scratch);

/* nucleus.c: zeroes the weights [count] outside of the nucleus, returns how many are kept; `keep_top_p` keeps the
 * weight that crosses the limit, too. `scratch` is [count + LANES]. */
int64_t keep_nucleus(float *weights, int64_t count, double nucleus_p, float *scratch);
int64_t keep_top_p(float *weights, int64_t count, double top_p, float *scratch);

#endif
