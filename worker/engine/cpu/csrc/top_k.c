/* The k largest scores of a row, found without sorting.
 *
 * The bits of floats, with those of negative ones flipped, are in the order of the floats, and the k-th largest is
 * found by bisection of its bits. A sample of the blocks guesses an edge a little below it, one pass over the row
 * copies out what is at or above that edge, and bisection goes on in these few.
 */
#if defined(__x86_64__) && defined(__GNUC__)
/* Whole vectors, of which GCC uses half on Intel's processors: faster here, and slower in gemm.c. */
#pragma GCC target("prefer-vector-width=512")
#endif

#include <string.h>

#include "sampling.h"

/* One block of so many is in the sample; it must hold MARGIN scores more than the k largest should have there. */
enum { SAMPLE_STEP = 16, MARGIN = 12 };

INLINE int32_t ordered_bits(float x) {
    int32_t bits = bits_of(x);
    return bits ^ ((bits >> 31) & INT32_MAX);
}

INLINE float from_ordered_bits(int32_t bits) { return with_bits(bits ^ ((bits >> 31) & INT32_MAX)); }

static int64_t count_at_least(const float *x, int64_t count, int32_t edge) {
    int64_t found = 0;
    for (int64_t start = 0; start < count; start += BLOCK) {
        int64_t size = block_size(start, count);
        int32_t in_block = 0;
        for (int64_t i = start; i < start + size; i++) in_block += ordered_bits(x[i]) >= edge;
        found += in_block;
    }
    return found;
}

/* The k-th largest of x [count], k <= count. Invariant: count(x >= low) >= k > count(x >= high). */
static float kth_largest(const float *x, int64_t count, int64_t k) {
    int64_t low = ordered_bits(-INFINITY), high = (int64_t)ordered_bits(INFINITY) + 1;
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (count_at_least(x, count, (int32_t)middle) >= k) low = middle;
        else high = middle;
    }
    return from_ordered_bits((int32_t)low);
}

/* Copies out the scores at or above an edge with their ids, in order; returns how many. */
static int64_t gather(float *scores, int32_t *ids, Logits x, float edge) {
    float block[BLOCK];
    int64_t found = 0;
    for (int64_t start = 0; start < x.count; start += BLOCK) {
        int64_t size = load_block(block, x, start), i = 0;
        if (max_of(block, size) < edge) continue;
#ifdef __AVX512F__
        __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        for (; i + LANES <= size; i += LANES) {
            __m512 values = _mm512_loadu_ps(block + i);
            __mmask16 is_kept = _mm512_cmp_ps_mask(values, _mm512_set1_ps(edge), _CMP_GE_OQ);
            if (!is_kept) continue;
            __m512i places = _mm512_add_epi32(lane, _mm512_set1_epi32((int32_t)(start + i)));
            _mm512_storeu_ps(scores + found, _mm512_maskz_compress_ps(is_kept, values));
            _mm512_storeu_si512(ids + found, _mm512_maskz_compress_epi32(is_kept, places));
            found += __builtin_popcount(is_kept);
        }
#endif
        for (; i < size; i++)
            if (block[i] >= edge) scores[found] = block[i], ids[found++] = (int32_t)(start + i);
    }
    return found;
}

/* An edge that about k scores, and rarely fewer, are at or above. */
static float guess_edge(Logits x, int64_t k, float *sample) {
    int64_t size = 0;
    for (int64_t start = 0; start < x.count; start += BLOCK * SAMPLE_STEP) size += load_block(sample + size, x, start);
    int64_t expected = (int64_t)((double)k * size / x.count * 1.25) + MARGIN;
    return expected < size ? kth_largest(sample, size, expected) : -INFINITY;
}

/* Writes edits into the scores at or above an edge; whether they still hold the k largest. */
static int edit_gathered(float *scores, const int32_t *ids, int64_t found, Logits x, const Edits *edits, int64_t k,
                         float edge) {
    for (int64_t i = 0; i < edits->num_ids; i++)
        if (edits->scores[i] >= edge && logit_of(x, edits->ids[i]) < edge) return 0;
    int64_t at_least = 0;
    for (int64_t i = 0; i < found; i++) {
        int32_t edit = find_edit(edits, ids[i]);
        if (edit >= 0) scores[i] = edits->scores[edit];
        at_least += scores[i] >= edge;
    }
    return at_least >= k;
}

int64_t gather_top_k(float *scores, int32_t *ids, Logits x, const Edits *edits, int64_t k, float *scratch) {
    float edge = guess_edge(x, k, scratch);
    int64_t found = gather(scores, ids, x, edge), kept = 0;
    if (found < k) found = gather(scores, ids, x, edge = -INFINITY);
    if (edits->num_ids && !edit_gathered(scores, ids, found, x, edits, k, edge)) return -1;
    float least = kth_largest(scores, found, k);
    for (int64_t i = 0; i < found; i++)
        if (scores[i] >= least) scores[kept] = scores[i], ids[kept++] = ids[i];
    return kept;
}
