/* The nucleus of a row (Holtzman et al. 2020): the most probable tokens whose mass does not exceed nucleus_p; by the
 * rule of top_p, which is Transformers', with the token that crosses the limit.
 *
 * Nothing is sorted. Weights are positive, so their bits are ordered as they are, and the lightest weight that is kept
 * is found by bisection of its bits:
 *
 *     bits   0 ........ low [ bracket ] high ........ bits of 1.0        mass(w >= low) > limit >= mass(w >= high)
 *                             | the cut is in here
 *
 * A sample of the blocks guesses a narrow bracket, one pass over the row copies its weights out, and bisection goes on
 * in these few. nucleus.py is the reference.
 */
#if defined(__x86_64__) && defined(__GNUC__)
/* Whole vectors, of which GCC uses half on Intel's processors: faster here, and slower in gemm.c. */
#pragma GCC target("prefer-vector-width=512")
#endif

#include "sampling.h"

/* A cumulative probability this little beside the limit is rounding: it is at the limit. */
#define SLACK 1e-6

/* Zeroes all weights below `value`, and of those equal to it all but the first `num_equal`. */
static void zero_below(float *weights, int64_t count, float value, int64_t num_equal) {
    for (int64_t start = 0; start < count; start += BLOCK) {
        int64_t size = block_size(start, count);
        int32_t in_block = 0;
        for (int64_t i = start; i < start + size; i++) {
            in_block += weights[i] == value;
            weights[i] = weights[i] < value ? 0.0f : weights[i];
        }
        if (in_block > num_equal)
            for (int64_t i = start, left = num_equal; i < start + size; i++)
                if (weights[i] == value && left-- <= 0) weights[i] = 0;
        num_equal = in_block > num_equal ? 0 : num_equal - in_block;
    }
}

static double double_sum(const float *weights, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; i++) sum += weights[i];
    return sum;
}

/* Weights with bits in [low, high). */
typedef struct { int32_t low, high; } Bracket;

/* The weights on both sides of an edge. */
typedef struct {
    double mass;         /* of those at the edge or above */
    int32_t at_or_above; /* the smallest of their bits */
    int32_t below;       /* the largest bits of the others, or -1 */
} Sides;

/* Compares every `step`th block with an edge; if that is not every block, sums of blocks are rounded to fp32. */
INLINE Sides divide_at(const float *weights, int64_t count, int32_t edge, int64_t step) {
    double mass = 0;
    int32_t at_or_above = INT32_MAX, below = -1;
    for (int64_t start = 0; start < count; start += BLOCK * step) {
        int64_t size = block_size(start, count);
        float in_block = 0;
        for (int64_t i = start; i < start + size; i++) {
            int32_t bits = bits_of(weights[i]);
            int32_t is_above = -(bits >= edge); /* all bits or none */
            if (step == 1) mass += with_bits(bits & is_above);
            else in_block += with_bits(bits & is_above);
            int32_t high = bits | (~is_above & INT32_MAX), low = bits | is_above;
            at_or_above = high < at_or_above ? high : at_or_above;
            below = low > below ? low : below;
        }
        mass += in_block;
    }
    return (Sides){mass, at_or_above, below};
}

/* One bisection step. Invariant: mass(w >= low) > limit >= mass(w >= high). An empty upper half has no mass,
 * whatever the limit: rounding may have made it negative. */
INLINE Bracket bisect(Bracket cut, const float *weights, int64_t count, double limit, int64_t step) {
    Sides sides = divide_at(weights, count, cut.low + (cut.high - cut.low) / 2, step);
    if (sides.mass > limit && sides.mass > 0) return (Bracket){sides.at_or_above, cut.high};
    return (Bracket){cut.low, sides.below > cut.low ? sides.below + 1 : cut.low + 1};
}

/* The weights above a bracket, and those in it. */
typedef struct { double mass_above, mass_within; int64_t num_above, num_within; } Split;

/* Copies the weights in the bracket to `within`, which needs LANES numbers more and may be where the weights are. */
static Split split(float *within, const float *weights, int64_t count, Bracket cut) {
    Split found = {0, 0, 0, 0};
    int64_t i = 0;
#ifdef __AVX512F__
    __m512d first_sums = _mm512_setzero_pd(), second_sums = _mm512_setzero_pd();
    __m512i low = _mm512_set1_epi32(cut.low), high = _mm512_set1_epi32(cut.high);
    for (; i + LANES <= count; i += LANES) {
        __m512 x = _mm512_loadu_ps(weights + i);
        __mmask16 is_above = _mm512_cmpge_epi32_mask((__m512i)x, high);
        __mmask16 is_within = _mm512_mask_cmpge_epi32_mask((__mmask16)~is_above, (__m512i)x, low);
        __m512 above = _mm512_maskz_mov_ps(is_above, x);
        __m256 first = _mm512_castps512_ps256(above);
        __m256 second = _mm512_castps512_ps256(_mm512_shuffle_f32x4(above, above, 0xee));
        first_sums = _mm512_add_pd(first_sums, _mm512_cvtps_pd(first));
        second_sums = _mm512_add_pd(second_sums, _mm512_cvtps_pd(second));
        _mm512_storeu_ps(within + found.num_within, _mm512_maskz_compress_ps(is_within, x));
        found.num_within += __builtin_popcount(is_within);
        found.num_above += __builtin_popcount(is_above);
    }
    found.mass_above = _mm512_reduce_add_pd(_mm512_add_pd(first_sums, second_sums));
#endif
    for (; i < count; i++) {
        int32_t bits = bits_of(weights[i]);
        if (bits >= cut.high) found.mass_above += weights[i], found.num_above++;
        else if (bits >= cut.low) within[found.num_within++] = weights[i];
    }
    found.mass_within = double_sum(within, found.num_within);
    return found;
}

/* The cut is guessed from every 16th block; the bracket goes this many bits beyond the guess on both sides. */
enum { SAMPLE_STEP = 16, GUESS_BITS = 1 << 19 };

/* A bracket that holds the cut, and its split; a wrong guess moves it and makes it wider. */
static Bracket find_bracket(Split *found, float *scratch, const float *weights, int64_t count, double total,
                            double limit) {
    /* All weights that are lighter than this have less mass than total - limit together. */
    Bracket all = {bits_of((float)((total - limit) / count / 2)), bits_of(1.0f) + 1};
    double sampled_limit = limit / total * divide_at(weights, count, 0, SAMPLE_STEP).mass;
    Bracket guess = all;
    while (guess.high - guess.low > GUESS_BITS / 4) guess = bisect(guess, weights, count, sampled_limit, SAMPLE_STEP);
    int64_t width = GUESS_BITS, low = guess.low - width, high = guess.low + width;
    for (;; width *= 4) {
        Bracket cut = {(int32_t)(low > all.low ? low : all.low), (int32_t)(high < all.high ? high : all.high)};
        *found = split(scratch, weights, count, cut);
        if (found->mass_above > limit && cut.high < all.high) {
            low = cut.high;
            high = low + width * 4;
        } else if (found->mass_above + found->mass_within <= limit && cut.low > all.low) {
            high = cut.low;
            low = high - width * 4;
        } else {
            return cut;
        }
    }
}

/* Keeps the heaviest weights with a mass of at most `limit`, and `num_crossing` weights more: 0 or 1. */
static int64_t keep_mass(float *weights, int64_t count, double total, double limit, int64_t num_crossing,
                         float *scratch) {
    Split found;
    Bracket cut = find_bracket(&found, scratch, weights, count, total, limit);
    while (cut.high - cut.low > 1) { /* until one value is left: the lightest kept, or the heaviest not kept */
        cut = bisect(cut, scratch, found.num_within, limit - found.mass_above, 1);
        Split inner = split(scratch, scratch, found.num_within, cut);
        found = (Split){found.mass_above + inner.mass_above, inner.mass_within, found.num_above + inner.num_above,
                        inner.num_within};
    }
    float value = with_bits(cut.low);
    int64_t num_equal = 0;
    for (double mass = found.mass_above + value; num_equal < found.num_within && mass <= limit; mass += value)
        num_equal++;
    if (num_crossing && num_equal < found.num_within) num_equal++;
    if (found.num_above + num_equal == 0) num_equal = 1; /* the first exceeds the limit alone */
    zero_below(weights, count, value, num_equal);
    return found.num_above + num_equal;
}

int64_t keep_nucleus(float *weights, int64_t count, double nucleus_p, float *scratch) {
    double total = double_sum(weights, count), limit = (nucleus_p + SLACK) * total;
    if (limit >= total) return count_above((Logits){weights, count, 0}, 0);
    return keep_mass(weights, count, total, limit, 0, scratch);
}

int64_t keep_top_p(float *weights, int64_t count, double top_p, float *scratch) {
    double total = double_sum(weights, count), limit = (top_p - SLACK) * total;
    return keep_mass(weights, count, total, limit < 0 ? 0 : limit, 1, scratch);
}
