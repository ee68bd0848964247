/* Samples a token in each row of logits, with its trace. One thread computes a row, always in the same order.
 *
 * The rules are those of row_sampler.py, which is the reference: a token is drawn by inverting the cumulative
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

/* The sampled token and its trace; COLUMNS of choices.py. Where there is nothing to draw from, because a logit is NaN
 * or infinite or because every token is banned, the logprob that this leaves unknown is NaN. */
typedef struct { double token_id, logprob, sampling_logprob, entropy, rank, kept; } Choice;

/* Memory of a thread; `counts` is zero between two rows. */
typedef struct { float *weights, *scratch, *scores; int32_t *ids, *counts; } Workspace;

/* Zeroes the weights below min_p, the heaviest being 1; returns how many are kept. */
static int64_t keep_min_p(float *weights, int64_t count, float min_p) {
    int64_t kept = 0;
    for (int64_t start = 0; start < count; start += BLOCK) {
        int64_t size = block_size(start, count);
        int32_t in_block = 0;
        for (int64_t i = start; i < start + size; i++) {
            weights[i] = weights[i] < min_p ? 0.0f : weights[i];
            in_block += weights[i] > 0;
        }
        kept += in_block;
    }
    return kept;
}

/* Zeroes the weights [count] that the row's parameters leave out; returns how many are kept. */
static int64_t keep_likely(float *weights, int64_t count, const RowParams *params, float *scratch) {
    int64_t kept;
    if (params->nucleus_p < 1) kept = keep_nucleus(weights, count, params->nucleus_p, scratch);
    else if (params->top_p < 1) kept = keep_top_p(weights, count, params->top_p, scratch);
    else kept = count_above((Logits){weights, count, 0}, 0);
    return params->min_p > 0 ? keep_min_p(weights, count, (float)params->min_p) : kept;
}

typedef struct { int64_t token_id, kept; double logprob; } Draw;

/* Draws from scores; the weights in the workspace are theirs already where `has_weights`. */
INLINE Draw draw_token(Logits x, float max_score, const RowParams *params, int has_weights, Workspace work) {
    int64_t count = x.count;
    int is_cut = params->top_k > 0 && params->top_k < x.count;
    if (is_cut) {
        count = gather_top_k(work.weights, work.ids, x, params->top_k, work.scratch);
        exp_scores(work.weights, (Logits){work.weights, count, 0}, max_score, (float)params->temperature);
    } else if (!has_weights) {
        exp_scores(work.weights, x, max_score, (float)params->temperature);
    }
    int64_t kept = keep_likely(work.weights, count, params, work.scratch);
    double drawable = blocked_sum(work.weights, count);
    int64_t index = draw(work.weights, count, drawable, params->uniform);
    double logprob = log(work.weights[index]) - log(drawable);
    return (Draw){is_cut ? work.ids[index] : index, kept, logprob};
}

INLINE Choice sample_row(Logits x, const RowParams *params, int64_t k, int32_t *top_ids, float *top_logprobs,
                         Workspace work) {
    Draw drawn = {0, 1, 0};
    int is_edited = has_edits(params), is_greedy = params->temperature == 0;
    float max_logit = find_max_logit(x, &drawn.token_id), max_score = max_logit;
    int has_weights = params->temperature == 1 && !is_edited && !params->top_k;
    Sums sums = sum_scores(has_weights ? work.weights : NULL, x, max_logit);
    Logits scores = x;
    if (is_edited) {
        edit_scores(work.scores, x, params, work.counts);
        scores = (Logits){work.scores, x.count, 0};
        max_score = find_max_logit(scores, &drawn.token_id);
    }
    int is_drawable = !isnan(sums.exp) && max_score > -INFINITY;
    if (!is_drawable) drawn = (Draw){0, 0, NAN};
    else if (!is_greedy) drawn = draw_token(scores, max_score, params, has_weights, work);
    double log_sum = log(sums.exp);
    find_top_k(top_ids, top_logprobs, k, x);
    for (int64_t i = 0; i < k; i++) top_logprobs[i] = (float)((double)top_logprobs[i] - max_logit - log_sum);
    return (Choice){
        .token_id = drawn.token_id,
        .logprob = (double)logit_of(x, drawn.token_id) - max_logit - log_sum,
        .sampling_logprob = drawn.logprob,
        .entropy = log_sum - sums.weighted / sums.exp,
        .rank = 1 + (is_greedy && !is_edited ? 0 : count_above(x, logit_of(x, drawn.token_id))),
        .kept = drawn.kept,
    };
}

static int allocate(Workspace *work, int64_t vocab) {
    size_t size = sizeof(float) * (vocab + LANES);
    *work = (Workspace){malloc(size), malloc(size), malloc(size), malloc(size), calloc(vocab, sizeof(int32_t))};
    return work->weights && work->scratch && work->scores && work->ids && work->counts;
}

static void release(Workspace work) {
    free(work.weights), free(work.scratch), free(work.scores), free(work.ids), free(work.counts);
}

/* Logits [rows, vocab] and the parameters of each row; writes the choices [rows], and ids and logprobs of the k most
 * probable tokens [rows, k]. Returns 0, or 1 where memory ran out. */
INLINE int sample(Choice *choices, int32_t *top_ids, float *top_logprobs, const void *logits, const RowParams *params,
                  int64_t num_rows, int64_t vocab, int64_t k, int is_bf16) {
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        Workspace work;
        failed = !allocate(&work, vocab);
#pragma omp for schedule(dynamic, 1)
        for (int64_t row = 0; row < num_rows; row++)
            if (!failed)
                choices[row] = sample_row((Logits){at(logits, row * vocab, is_bf16), vocab, is_bf16}, params + row, k,
                                          top_ids + row * k, top_logprobs + row * k, work);
        release(work);
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
