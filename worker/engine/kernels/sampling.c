/* The choice of a token in each row of logits, with its trace. Every row is computed by one thread in one order.
 *
 * The rules are those of nucleus.py and draw.py, which are the reference: tokens lie on a line in the order of their
 * ids, each as long as its weight, and a number in [0, 1) points at a place on it.
 */
#if defined(__x86_64__) && defined(__GNUC__)
/* Whole vectors, of which GCC takes half for Intel's processors: faster here, and slower in products.c. */
#pragma GCC target("prefer-vector-width=512")
#endif

#include <string.h>

#include "numbers.h"

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
    for (int64_t i = 0; i < count; i++) weights[i] = weights[i] < value ? 0.0f : weights[i];
    for (int64_t start = 0; start < count; start += BLOCK) {
        int64_t size = block_size(start, count);
        int32_t here = 0;
        for (int64_t i = start; i < start + size; i++) here += weights[i] == value;
        if (here > num_equal)
            for (int64_t i = start, left = num_equal; i < start + size; i++)
                if (weights[i] == value && left-- <= 0) weights[i] = 0;
        num_equal = here > num_equal ? 0 : num_equal - here;
    }
}

/* The cut is guessed from every 16th block, up to 1/32 of its size. */
enum { SAMPLED = 16, GUESSED_BITS = 1 << 18 };

/* Weights are positive, and the bits of positive floats are ordered as the floats are: what a look at an edge tells. */
typedef struct {
    double sum;          /* of the weights at the edge or above */
    int32_t at_or_above; /* the smallest of their bits */
    int32_t below;       /* the largest bits of the others, or -1 */
} Look;

/* Looks at every `step`th block. */
INLINE Look look_at(const float *weights, int64_t count, int32_t edge, int64_t step, int is_exact) {
    double sum = 0;
    int32_t at_or_above = INT32_MAX, below = -1;
    for (int64_t start = 0; start < count; start += BLOCK * step) {
        int64_t size = block_size(start, count);
        float here = 0;
        for (int64_t i = start; i < start + size; i++) {
            int32_t bits = bits_of(weights[i]);
            int32_t is_above = -(bits >= edge); /* all bits or none */
            if (is_exact) sum += with_bits(bits & is_above);
            else here += with_bits(bits & is_above);
            int32_t high = bits | (~is_above & INT32_MAX), low = bits | is_above;
            at_or_above = high < at_or_above ? high : at_or_above;
            below = low > below ? low : below;
        }
        sum += here;
    }
    return (Look){sum, at_or_above, below};
}

typedef struct { int32_t low, high; } Bracket;

/* Looks at an edge within the bracket, which always holds the cut, and makes it smaller. */
INLINE void narrow(Bracket *cut, const float *weights, int64_t count, int32_t edge, double limit, int64_t step,
                   int is_exact) {
    Look found = look_at(weights, count, edge, step, is_exact);
    if (found.sum > limit) cut->low = found.at_or_above;
    else cut->high = found.below > cut->low ? found.below + 1 : cut->low + 1;
}

/* Where the cut is likely to be: the bits of the cut of a part of the weights. */
static int32_t guess_cut(const float *weights, int64_t count, Bracket cut, double share) {
    double limit = share * look_at(weights, count, 0, SAMPLED, 0).sum;
    while (cut.high - cut.low > GUESSED_BITS)
        narrow(&cut, weights, count, cut.low + (cut.high - cut.low) / 2, limit, SAMPLED, 0);
    return cut.low;
}

/* The bits of the largest weight that does not fit below the limit any more with all that is as heavy and heavier. */
INLINE int32_t find_cut(const float *weights, int64_t count, double total, double limit, int is_exact) {
    /* All that is lighter than this weighs less than total - limit together. */
    Bracket cut = {bits_of((float)((total - limit) / count / 2)), bits_of(1.0f) + 1};
    int32_t guess = guess_cut(weights, count, cut, limit / total);
    int32_t edges[] = {guess - GUESSED_BITS, guess + 2 * GUESSED_BITS};
    for (int i = 0; i < 2; i++)
        if (edges[i] > cut.low && edges[i] < cut.high) narrow(&cut, weights, count, edges[i], limit, 1, is_exact);
    while (cut.high - cut.low > 1)
        narrow(&cut, weights, count, cut.low + (cut.high - cut.low) / 2, limit, 1, is_exact);
    return cut.low;
}

typedef struct { double sum; int64_t num_above, num_equal; } Tally;

/* What weighs more than `value`, exactly, and how many do, or weigh the same. */
static Tally tally(const float *weights, int64_t count, float value) {
    Tally all = {0, 0, 0};
    for (int64_t start = 0; start < count; start += BLOCK) {
        int64_t size = block_size(start, count);
        int32_t num_above = 0, num_equal = 0;
        double sum = 0;
        for (int64_t i = start; i < start + size; i++) {
            num_above += weights[i] > value;
            num_equal += weights[i] == value;
            sum += weights[i] > value ? weights[i] : 0.0f;
        }
        all = (Tally){all.sum + sum, all.num_above + num_above, all.num_equal + num_equal};
    }
    return all;
}

/* Zeroes the weights [count] in [0, 1] outside of the nucleus; returns how many are kept. */
int64_t keep_nucleus(float *weights, int64_t count, double top_p) {
    Tally all = tally(weights, count, 0);
    double limit = (top_p + TOP_P_SLACK) * all.sum;
    if (limit >= all.sum) return all.num_above;
    for (int is_exact = 0;; is_exact++) { /* sums in fp32 first; where they were not good enough, once more */
        float value = with_bits(is_exact ? find_cut(weights, count, all.sum, limit, 1)
                                         : find_cut(weights, count, all.sum, limit, 0));
        Tally heavier = tally(weights, count, value);
        int is_right = heavier.num_above == 0 || heavier.sum <= limit;
        int64_t num_within = 0;
        for (double sum = heavier.sum + value; num_within < heavier.num_equal && sum <= limit; sum += value) num_within++;
        if ((!is_right || num_within == heavier.num_equal) && !is_exact) continue;
        if (heavier.num_above + num_within == 0) num_within = 1; /* the first exceeds top_p alone */
        cut_below(weights, count, num_within ? value : nextafterf(value, INFINITY), num_within ? num_within : count);
        return heavier.num_above + num_within;
    }
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

/* What is said of its choice; COLUMNS of batched_sampler.py. */
typedef struct { double token_id, logprob, sampling_logprob, entropy, rank, kept; } Chosen;

INLINE Chosen choose(Logits x, Asked asked, int64_t k, int32_t *best_ids, float *best, float *weights) {
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
        kept = asked.top_p < 1 ? keep_nucleus(weights, x.count, asked.top_p)
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
        float *weights = malloc(sizeof(float) * vocab);
        failed = !weights;
#pragma omp for schedule(dynamic, 1)
        for (int64_t row = 0; row < num_rows; row++)
            if (!failed)
                chosen[row] = choose((Logits){at(logits, row * vocab, is_bf16), vocab, is_bf16}, asked[row], k,
                                     best_ids + row * k, best + row * k, weights);
        free(weights);
    }
    return failed;
}

int choose_bf16(Chosen *chosen, int32_t *best_ids, float *best, const void *logits, const Asked *asked, int64_t num_rows,
                int64_t vocab, int64_t k) {
    return choose_all(chosen, best_ids, best, logits, asked, num_rows, vocab, k, 1);
}

int choose_f32(Chosen *chosen, int32_t *best_ids, float *best, const void *logits, const Asked *asked, int64_t num_rows,
               int64_t vocab, int64_t k) {
    return choose_all(chosen, best_ids, best, logits, asked, num_rows, vocab, k, 0);
}
