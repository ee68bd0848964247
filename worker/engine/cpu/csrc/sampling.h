/* A row of logits or of weights, a block of BLOCK numbers at a time: what sampling.c and nucleus.c share.
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

/* nucleus.c: zeroes the weights [count] outside of the nucleus, returns how many are kept. `scratch` is [count +
 * LANES]. */
int64_t keep_nucleus(float *weights, int64_t count, double top_p, float *scratch);

#endif
