/* The choice of a token in each row of logits, with its trace. Every row is computed by one thread in one order.
 *
 * The rules are those of nucleus.py and draw.py, which are the reference: tokens lie on a line in the order of their
 * ids, each as long as its weight, and a number in [0, 1) points at a place on it.
 */
#if defined(__x86_64__) && defined(__GNUC__)
/* Whole vectors, of which GCC takes half for Intel's processors: faster here, and slower in gemm.c. */
#pragma GCC target("prefer-vector-width=512")
#endif

#include <string.h>

#include "vecmath.h"

/* Numbers that are added up in fp32; the sums of blocks are added up in double. */
enum { BLOCK = 256 };

/* A cumulative probability this little above top_p is rounding, not excess. */
#define TOP_P_SLACK 1e-6

INLINE int64_t block_size(int64_t start, int64_t count) { return count - start < BLOCK ? count - start : BLOCK; }

/* A row of logits. They are widened a block at a time, which then is in the first cache: a row in fp32 is not. */
typedef struct {
    const void *numbers;
    int64_t count;
    int is_bf16;
} Logits;

INLINE int64_t load_block(float *block, Logits x, int64_t start) {
    int64_t size = block_size(start, x.count);
    load(block, at(x.numbers, start, x.is_bf16), size, x.is_bf16);
    return size;
}

INLINE float logit_of(Logits x, int64_t token_id) {
    float logit;
    load(&logit, at(x.numbers, token_id, x.is_bf16), 1, x.is_bf16);
    return logit;
}

/* The largest logit, and its first token. */
INLINE float largest_logit(Logits x, int64_t *token_id) {
    float block[BLOCK], largest = -INFINITY;
    int64_t found = 0;
    for (int64_t start = 0; start < x.count; start += BLOCK) {
        float here = largest_of(block, load_block(block, x, start));
        if (here > largest) largest = here, found = start;
    }
    while (found + 1 < x.count && logit_of(x, found) != largest) found++;
    *token_id = found;
    return largest;
}

static double sum_of(const float *x, int64_t count) {
    double total = 0;
    for (int64_t start = 0; start < count; start += BLOCK) {
        int64_t size = block_size(start, count);
        float sum = 0;
        for (int64_t i = 0; i < size; i++) sum += x[start + i];
        total += sum;
    }
    return total;
}

INLINE int64_t count_above(Logits x, float limit) {
    float block[BLOCK];
    int64_t found = 0;
    for (int64_t start = 0; start < x.count; start += BLOCK) {
        int64_t size = load_block(block, x, start);
        int32_t here = 0;
        for (int64_t i = 0; i < size; i++) here += block[i] > limit;
        found += here;
    }
    return found;
}

/* Weights exp((x - largest) / temperature) of logits x; -inf and what is too small to count weigh nothing. */
INLINE void weigh(float *weights, Logits x, float largest, float temperature) {
    float block[BLOCK];
    for (int64_t start = 0; start < x.count; start += BLOCK) {
        int64_t size = load_block(block, x, start);
        for (int64_t i = 0; i < size; i++) {
            float exponent = (block[i] - largest) / temperature;
            float weight = exp_of_negative(exponent);
            weights[start + i] = exponent < SMALLEST_EXPONENT ? 0.0f : weight;
        }
    }
}

/* Zeroes all weights below `value`, and of those equal to it all but the first `num_equal`. */
static void cut_below(float *weights, int64_t count, float value, int64_t num_equal) {
    for (int64_t start = 0; start < count; start += BLOCK) {
        int64_t size = block_size(start, count);
        int32_t here = 0;
        for (int64_t i = start; i < start + size; i++) {
            here += weights[i] == value;
            weights[i] = weights[i] < value ? 0.0f : weights[i];
        }
        if (here > num_equal)
            for (int64_t i = start, left = num_equal; i < start + size; i++)
                if (weights[i] == value && left-- <= 0) weights[i] = 0;
        num_equal = here > num_equal ? 0 : num_equal - here;
    }
}

static double exact_sum_of(const float *weights, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; i++) sum += weights[i];
    return sum;
}

/* Weights whose bits are `low` or more and less than `high`. The bits of positive floats are ordered as they are. */
typedef struct { int32_t low, high; } Bracket;

/* What a look at weights from one edge on tells. */
typedef struct {
    double sum;          /* of the weights at the edge or above */
    int32_t at_or_above; /* the smallest of their bits */
    int32_t below;       /* the largest bits of the others, or -1 */
} Look;

/* Looks at every `step`th block; where it is not every one, sums of blocks are rounded to fp32. */
INLINE Look look_at(const float *weights, int64_t count, int32_t edge, int64_t step) {
    double sum = 0;
    int32_t at_or_above = INT32_MAX, below = -1;
    for (int64_t start = 0; start < count; start += BLOCK * step) {
        int64_t size = block_size(start, count);
        float here = 0;
        for (int64_t i = start; i < start + size; i++) {
            int32_t bits = bits_of(weights[i]);
            int32_t is_above = -(bits >= edge); /* all bits or none */
            if (step == 1) sum += with_bits(bits & is_above);
            else here += with_bits(bits & is_above);
            int32_t high = bits | (~is_above & INT32_MAX), low = bits | is_above;
            at_or_above = high < at_or_above ? high : at_or_above;
            below = low > below ? low : below;
        }
        sum += here;
    }
    return (Look){sum, at_or_above, below};
}

/* Half of a bracket, or less. What is in it or heavier weighs more than the limit, what is heavier does not: so it stays.
 * Where there is nothing, rounding has made less than nothing of the limit. */
INLINE Bracket half_of(Bracket cut, const float *weights, int64_t count, double limit, int64_t step) {
    Look found = look_at(weights, count, cut.low + (cut.high - cut.low) / 2, step);
    if (found.sum > limit && found.sum > 0) return (Bracket){found.at_or_above, cut.high};
    return (Bracket){cut.low, found.below > cut.low ? found.below + 1 : cut.low + 1};
}

/* What is above a bracket, and what is in it. */
typedef struct { double sum_above, sum_within; int64_t num_above, num_within; } Split;

/* Copies what is in the bracket to `within`, which has room for LANES numbers more and may be where the weights are. */
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
    found.sum_above = _mm512_reduce_add_pd(_mm512_add_pd(first_sums, second_sums));
#endif
    for (; i < count; i++) {
        int32_t bits = bits_of(weights[i]);
        if (bits >= cut.high) found.sum_above += weights[i], found.num_above++;
        else if (bits >= cut.low) within[found.num_within++] = weights[i];
    }
    found.sum_within = exact_sum_of(within, found.num_within);
    return found;
}

/* Where the cut is likely to be is guessed from every 16th block, so far on both sides. */
enum { SAMPLED = 16, GUESSED_BITS = 1 << 19 };

/* A bracket that holds the cut, and what is in it and above. */
static Bracket find_bracket(Split *found, float *room, const float *weights, int64_t count, double total, double limit) {
    /* All that is lighter than this weighs less than total - limit together. */
    Bracket all = {bits_of((float)((total - limit) / count / 2)), bits_of(1.0f) + 1};
    double sampled_limit = limit / total * look_at(weights, count, 0, SAMPLED).sum;
    Bracket guess = all;
    while (guess.high - guess.low > GUESSED_BITS / 4) guess = half_of(guess, weights, count, sampled_limit, SAMPLED);
    int64_t width = GUESSED_BITS, low = guess.low - width, high = guess.low + width;
    for (;; width *= 4) {
        Bracket cut = {(int32_t)(low > all.low ? low : all.low), (int32_t)(high < all.high ? high : all.high)};
        *found = split(room, weights, count, cut);
        if (found->sum_above > limit && cut.high < all.high) {
            low = cut.high;
            high = low + width * 4;
        } else if (found->sum_above + found->sum_within <= limit && cut.low > all.low) {
            high = cut.low;
            low = high - width * 4;
        } else {
            return cut;
        }
    }
}

/* Zeroes the weights [count] in [0, 1] outside of the nucleus; returns how many are kept. `room` is [count + LANES]. */
int64_t keep_nucleus(float *weights, int64_t count, double top_p, float *room) {
    double total = exact_sum_of(weights, count), limit = (top_p + TOP_P_SLACK) * total;
    if (limit >= total) return count_above((Logits){weights, count, 0}, 0);
    Split found;
    Bracket cut = find_bracket(&found, room, weights, count, total, limit);
    while (cut.high - cut.low > 1) { /* until it holds one value, the lightest that is kept or the heaviest that is not */
        cut = half_of(cut, room, found.num_within, limit - found.sum_above, 1);
        Split inner = split(room, room, found.num_within, cut);
        found = (Split){found.sum_above + inner.sum_above, inner.sum_within, found.num_above + inner.num_above,
                        inner.num_within};
    }
    float value = with_bits(cut.low);
    int64_t num_equal = 0;
    for (double sum = found.sum_above + value; num_equal < found.num_within && sum <= limit; sum += value) num_equal++;
    if (found.num_above + num_equal == 0) num_equal = 1; /* the first exceeds top_p alone */
    cut_below(weights, count, value, num_equal);
    return found.num_above + num_equal;
}

/* The token that the number points at among weights [count] with this total. */
static int64_t draw(const float *weights, int64_t count, double total, double uniform) {
    double target = uniform * total, before = 0, after = 0;
    int64_t block = 0;
    /* Not beyond the last block, or token, that weighs anything: rounding may point there. */
    for (int64_t start = 0; start < count && after <= target; start += BLOCK) {
        double sum = sum_of(weights + start, block_size(start, count));
        if (sum == 0) continue;
        block = start;
        before = after;
        after += sum;
    }
    int64_t chosen = block, end = block + block_size(block, count);
    for (int64_t i = block; i < end && before <= target; i++) {
        if (weights[i] == 0) continue;
        chosen = i;
        before += weights[i];
    }
    return chosen;
}

/* The k largest of x, equal ones by id, the largest first. */
INLINE void take_best(int32_t *ids, float *values, int64_t k, Logits x) {
    float block[BLOCK];
    int64_t found = 0;
    for (int64_t start = 0; start < x.count && k > 0; start += BLOCK) {
        int64_t size = load_block(block, x, start);
        if (found == k && !(largest_of(block, size) > values[k - 1])) continue;
        for (int64_t i = 0; i < size; i++) {
            if (found == k && !(block[i] > values[k - 1])) continue;
            int64_t place = found < k ? found++ : k - 1;
            for (; place > 0 && values[place - 1] < block[i]; place--) {
                values[place] = values[place - 1];
                ids[place] = ids[place - 1];
            }
            values[place] = block[i];
            ids[place] = (int32_t)(start + i);
        }
    }
}

/* What a row asks for; a temperature of 0 is greedy, and a top_p of 1 or more keeps everything. */
typedef struct { double temperature, top_p, uniform; } Asked;

/* What is said of its choice; COLUMNS of choices.py. */
typedef struct { double token_id, logprob, sampling_logprob, entropy, rank, kept; } Chosen;

INLINE Chosen choose(Logits x, Asked asked, int64_t k, int32_t *best_ids, float *best, float *weights,
                     float *room) {
    int64_t token_id, rank = 1, kept = 1;
    float largest = largest_logit(x, &token_id), block[BLOCK];
    double total = 0, weighted = 0; /* of exp(x - largest), and of that times x - largest */
    for (int64_t start = 0; start < x.count; start += BLOCK) {
        int64_t size = load_block(block, x, start);
        float sum = 0, product = 0;
        for (int64_t i = 0; i < size; i++) {
            float exponent = block[i] - largest;
            float weight = exp_of_negative(exponent);
            block[i] = exponent < SMALLEST_EXPONENT ? 0.0f : weight;
            exponent = exponent < SMALLEST_EXPONENT ? 0.0f : exponent;
            sum += weight;
            product += weight * exponent;
        }
        total += sum;
        weighted += product;
        /* What `weigh` would make of them. */
        if (asked.temperature == 1) memcpy(weights + start, block, sizeof(float) * size);
    }
    double sampling_logprob = 0, log_total = log(total);
    if (asked.temperature > 0) { /* not greedy */
        if (asked.temperature != 1) weigh(weights, x, largest, (float)asked.temperature);
        kept = asked.top_p < 1 ? keep_nucleus(weights, x.count, asked.top_p, room)
                               : count_above((Logits){weights, x.count, 0}, 0);
        double drawable = sum_of(weights, x.count);
        token_id = draw(weights, x.count, drawable, asked.uniform);
        sampling_logprob = log(weights[token_id]) - log(drawable);
        rank += count_above(x, logit_of(x, token_id));
    }
    take_best(best_ids, best, k, x);
    for (int64_t i = 0; i < k; i++) best[i] = (float)((double)best[i] - largest - log_total);
    return (Chosen){
        .token_id = token_id,
        .logprob = (double)logit_of(x, token_id) - largest - log_total,
        .sampling_logprob = sampling_logprob,
        .entropy = log_total - weighted / total,
        .rank = rank,
        .kept = kept,
    };
}

/* Logits [rows, vocab] and what each row asks for; writes what was chosen [rows] and the k best of each row [rows, k]
 * with their logprobs. Returns 0, or 1 where memory ran out. */
INLINE int choose_all(Chosen *chosen, int32_t *best_ids, float *best, const void *logits, const Asked *asked,
                      int64_t num_rows, int64_t vocab, int64_t k, int is_bf16) {
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        float *weights = malloc(sizeof(float) * vocab), *room = malloc(sizeof(float) * (vocab + LANES));
        failed = !weights || !room;
#pragma omp for schedule(dynamic, 1)
        for (int64_t row = 0; row < num_rows; row++)
            if (!failed)
                chosen[row] = choose((Logits){at(logits, row * vocab, is_bf16), vocab, is_bf16}, asked[row], k,
                                     best_ids + row * k, best + row * k, weights, room);
        free(weights), free(room);
    }
    return failed;
}

int sample_bf16(Chosen *chosen, int32_t *best_ids, float *best, const void *logits, const Asked *asked, int64_t num_rows,
                int64_t vocab, int64_t k) {
    return choose_all(chosen, best_ids, best, logits, asked, num_rows, vocab, k, 1);
}

int sample_f32(Chosen *chosen, int32_t *best_ids, float *best, const void *logits, const Asked *asked, int64_t num_rows,
               int64_t vocab, int64_t k) {
    return choose_all(chosen, best_ids, best, logits, asked, num_rows, vocab, k, 0);
}
