/* Samples a token in each row of logits, with its trace. One thread computes a row, always in the same order.
 *
 * The rules are those of nucleus.py and draw.py, which are the reference: a token is drawn by inverting the cumulative
 * distribution, that is, tokens lie on a line in the order of their ids, each as long as its weight, and a number in
 * [0, 1) points at one of them.
 */
#if defined(__x86_64__) && defined(__GNUC__)
/* Whole vectors, of which GCC uses half on Intel's processors: faster here, and slower in gemm.c. */
#pragma GCC target("prefer-vector-width=512")
#endif

#include <string.h>

#include "sampling.h"

INLINE float logit_of(Logits x, int64_t token_id) {
    float logit;
    load(&logit, at(x.data, token_id, x.is_bf16), 1, x.is_bf16);
    return logit;
}

/* The largest logit, and its first token. */
INLINE float find_max_logit(Logits x, int64_t *token_id) {
    float block[BLOCK], max_logit = -INFINITY;
    int64_t found = 0;
    for (int64_t start = 0; start < x.count; start += BLOCK) {
        float block_max = max_of(block, load_block(block, x, start));
        if (block_max > max_logit) max_logit = block_max, found = start;
    }
    while (found + 1 < x.count && logit_of(x, found) != max_logit) found++;
    *token_id = found;
    return max_logit;
}

static double blocked_sum(const float *x, int64_t count) {
    double total = 0;
    for (int64_t start = 0; start < count; start += BLOCK) {
        int64_t size = block_size(start, count);
        float sum = 0;
        for (int64_t i = 0; i < size; i++) sum += x[start + i];
        total += sum;
    }
    return total;
}

/* Weights exp((x - max_logit) / temperature); those of -inf and of exponents below MIN_EXPONENT are 0. */
INLINE void exp_scores(float *weights, Logits x, float max_logit, float temperature) {
    float block[BLOCK];
    for (int64_t start = 0; start < x.count; start += BLOCK) {
        int64_t size = load_block(block, x, start);
        for (int64_t i = 0; i < size; i++) {
            float exponent = (block[i] - max_logit) / temperature;
            float weight = exp_of_negative(exponent);
            weights[start + i] = exponent < MIN_EXPONENT ? 0.0f : weight;
        }
    }
}

/* The sums of exp(x - max_logit), and of that times x - max_logit. */
typedef struct { double exp, weighted; } Sums;

/* The sums of a row at temperature 1, and its weights unless they are NULL: the same as of `exp_scores`. */
INLINE Sums sum_scores(float *weights, Logits x, float max_logit) {
    float block[BLOCK];
    Sums sums = {0, 0};
    for (int64_t start = 0; start < x.count; start += BLOCK) {
        int64_t size = load_block(block, x, start);
        float sum = 0, weighted = 0;
        for (int64_t i = 0; i < size; i++) {
            float exponent = block[i] - max_logit;
            float weight = exp_of_negative(exponent);
            block[i] = exponent < MIN_EXPONENT ? 0.0f : weight;
            exponent = exponent < MIN_EXPONENT ? 0.0f : exponent;
            sum += weight;
            weighted += weight * exponent;
        }
        sums.exp += sum;
        sums.weighted += weighted;
        if (weights) memcpy(weights + start, block, sizeof(float) * size);
    }
    return sums;
}

/* The token that the uniform number points at among weights [count] with this total. */
static int64_t draw(const float *weights, int64_t count, double total, double uniform) {
    double target = uniform * total, before = 0, after = 0;
    int64_t block = 0;
    /* Not beyond the last block, or token, with a positive weight: rounding may point there. */
    for (int64_t start = 0; start < count && after <= target; start += BLOCK) {
        double sum = blocked_sum(weights + start, block_size(start, count));
        if (sum == 0) continue;
        block = start;
        before = after;
        after += sum;
    }
    int64_t drawn = block, end = block + block_size(block, count);
    for (int64_t i = block; i < end && before <= target; i++) {
        if (weights[i] == 0) continue;
        drawn = i;
        before += weights[i];
    }
    return drawn;
}

/* The k largest logits, largest first, equal ones by id. */
INLINE void find_top_k(int32_t *ids, float *values, int64_t k, Logits x) {
    float block[BLOCK];
    int64_t found = 0;
    for (int64_t start = 0; start < x.count && k > 0; start += BLOCK) {
        int64_t size = load_block(block, x, start);
        if (found == k && !(max_of(block, size) > values[k - 1])) continue;
        for (int64_t i = 0; i < size; i++) {
            if (found == k && !(block[i] > values[k - 1])) continue;
            int64_t rank = found < k ? found++ : k - 1;
            for (; rank > 0 && values[rank - 1] < block[i]; rank--) {
                values[rank] = values[rank - 1];
                ids[rank] = ids[rank - 1];
            }
            values[rank] = block[i];
            ids[rank] = (int32_t)(start + i);
        }
    }
}

/* The parameters of a row; a temperature of 0 is greedy, and a top_p of 1 or more keeps everything. */
typedef struct { double temperature, top_p, uniform; } RowParams;

/* The sampled token and its trace; COLUMNS of choices.py. */
typedef struct { double token_id, logprob, sampling_logprob, entropy, rank, kept; } Choice;

INLINE Choice sample_row(Logits x, RowParams params, int64_t k, int32_t *top_ids, float *top_logprobs, float *weights,
                         float *scratch) {
    int64_t token_id, rank = 1, kept = 1;
    float max_logit = find_max_logit(x, &token_id);
    Sums sums = sum_scores(params.temperature == 1 ? weights : NULL, x, max_logit);
    double sampling_logprob = 0, log_sum = log(sums.exp);
    if (params.temperature > 0) { /* not greedy */
        if (params.temperature != 1) exp_scores(weights, x, max_logit, (float)params.temperature);
        kept = params.top_p < 1 ? keep_nucleus(weights, x.count, params.top_p, scratch)
                                : count_above((Logits){weights, x.count, 0}, 0);
        double drawable = blocked_sum(weights, x.count);
        token_id = draw(weights, x.count, drawable, params.uniform);
        sampling_logprob = log(weights[token_id]) - log(drawable);
        rank += count_above(x, logit_of(x, token_id));
    }
    find_top_k(top_ids, top_logprobs, k, x);
    for (int64_t i = 0; i < k; i++) top_logprobs[i] = (float)((double)top_logprobs[i] - max_logit - log_sum);
    return (Choice){
        .token_id = token_id,
        .logprob = (double)logit_of(x, token_id) - max_logit - log_sum,
        .sampling_logprob = sampling_logprob,
        .entropy = log_sum - sums.weighted / sums.exp,
        .rank = rank,
        .kept = kept,
    };
}

/* Logits [rows, vocab] and the parameters of each row; writes the choices [rows], and ids and logprobs of the k most
 * probable tokens [rows, k]. Returns 0, or 1 where memory ran out. */
INLINE int sample(Choice *choices, int32_t *top_ids, float *top_logprobs, const void *logits, const RowParams *params,
                  int64_t num_rows, int64_t vocab, int64_t k, int is_bf16) {
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        float *weights = malloc(sizeof(float) * vocab), *scratch = malloc(sizeof(float) * (vocab + LANES));
        failed = !weights || !scratch;
#pragma omp for schedule(dynamic, 1)
        for (int64_t row = 0; row < num_rows; row++)
            if (!failed)
                choices[row] = sample_row((Logits){at(logits, row * vocab, is_bf16), vocab, is_bf16}, params[row], k,
                                          top_ids + row * k, top_logprobs + row * k, weights, scratch);
        free(weights), free(scratch);
    }
    return failed;
}

int sample_bf16(Choice *choices, int32_t *top_ids, float *top_logprobs, const void *logits, const RowParams *params,
                int64_t num_rows, int64_t vocab, int64_t k) {
    return sample(choices, top_ids, top_logprobs, logits, params, num_rows, vocab, k, 1);
}

int sample_f32(Choice *choices, int32_t *top_ids, float *top_logprobs, const void *logits, const RowParams *params,
               int64_t num_rows, int64_t vocab, int64_t k) {
    return sample(choices, top_ids, top_logprobs, logits, params, num_rows, vocab, k, 0);
}
