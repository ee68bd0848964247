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

/* The largest logit, and its first token; writes the maximum of each block. */
INLINE float find_max_logit(Logits x, float *block_max, int64_t *token_id) {
    float block[BLOCK], max_logit = -INFINITY;
    int64_t found = 0;
    for (int64_t start = 0; start < x.count; start += BLOCK) {
        float max = block_max[start / BLOCK] = max_of(block, load_block(block, x, start));
        if (max > max_logit) max_logit = max, found = start;
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

/* A row's alternatives and their logprobs, of which it has no more than it asks for: as many as a row beside it asks
 * for would be others, where logits differ and their logprobs round to the same. */
INLINE void find_alternatives(int32_t *ids, float *logprobs, int64_t wanted, int64_t k, Logits x,
                              float max_logit, double log_sum) {
    int64_t found = wanted < k ? wanted : k;
    find_top_k(ids, logprobs, found, x);
    for (int64_t i = 0; i < k; i++) {
        logprobs[i] = i < found ? (float)((double)logprobs[i] - max_logit - log_sum) : -INFINITY;
        if (i >= found) ids[i] = -1;
    }
}

/* The sampled token and its trace; COLUMNS of choices.py. Where there is nothing to draw from, because a logit is NaN
 * or infinite or because every token is banned, the logprob that this leaves unknown is NaN. */
typedef struct { double token_id, logprob, sampling_logprob, entropy, rank, kept; } Choice;

/* Memory of a thread. */
typedef struct { float *weights, *scratch, *scores, *block_max; int32_t *ids; Edits edits; } Workspace;

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

/* Draws among weights [count]; `token_id` is a place among them. */
INLINE Draw draw_likely(float *weights, int64_t count, const RowParams *params, float *scratch) {
    int64_t kept = keep_likely(weights, count, params, scratch);
    double drawable = blocked_sum(weights, count);
    int64_t place = draw(weights, count, drawable, params->uniform);
    return (Draw){place, kept, log(weights[place]) - log(drawable)};
}

/* A row after its edits; the logits themselves, with edits beside them, or a copy with all written into it. */
typedef struct { Logits x; float max; int has_copy; } Scores;

/* Draws from scores at or above the k-th largest; NaN where `gather_top_k` does not find them. */
INLINE Draw draw_top_k(Scores scores, const RowParams *params, Workspace *work) {
    Edits none = {0}, *edits = scores.has_copy ? &none : &work->edits;
    int64_t count = gather_top_k(work->weights, work->ids, scores.x, edits, params->top_k, work->scratch);
    if (count < 0) return (Draw){0, 0, NAN};
    exp_scores(work->weights, (Logits){work->weights, count, 0}, scores.max, (float)params->temperature);
    Draw drawn = draw_likely(work->weights, count, params, work->scratch);
    drawn.token_id = work->ids[drawn.token_id];
    return drawn;
}

/* Draws from all scores; the weights in the workspace are the logits' already where `has_weights`. */
INLINE Draw draw_from_all(Scores scores, const RowParams *params, int has_weights, Workspace *work) {
    if (!has_weights) exp_scores(work->weights, scores.x, scores.max, (float)params->temperature);
    for (int64_t i = 0; !scores.has_copy && i < work->edits.num_ids; i++) {
        float exponent = (work->edits.scores[i] - scores.max) / (float)params->temperature;
        work->weights[work->edits.ids[i]] = exponent < MIN_EXPONENT ? 0.0f : exp_of_negative(exponent);
    }
    return draw_likely(work->weights, scores.x.count, params, work->scratch);
}

INLINE Scores copy_scores(Logits x, float max, const RowParams *params, Workspace *work) {
    apply_edits(work->scores, x, &work->edits, params->allowed);
    return (Scores){{work->scores, x.count, 0}, max, 1};
}

INLINE Choice sample_row(Logits x, const RowParams *params, int64_t k, int32_t *top_ids, float *top_logprobs,
                         Workspace *work) {
    Draw drawn = {0, 1, 0};
    float max_logit = find_max_logit(x, work->block_max, &drawn.token_id);
    Scores scores = {x, max_logit, 0};
    make_edits(&work->edits, x, params);
    if (params->allowed) {
        scores = copy_scores(x, max_logit, params, work);
        scores.max = find_max_logit(scores.x, work->block_max, &drawn.token_id);
    } else if (work->edits.num_ids) {
        scores.max = edited_max(&work->edits, x, work->block_max, &drawn.token_id);
    }
    int is_greedy = params->temperature == 0, is_cut = params->top_k > 0 && params->top_k < x.count;
    int is_edited = scores.has_copy || work->edits.num_ids;
    int has_weights = params->temperature == 1 && !is_cut && !scores.has_copy && scores.max == max_logit;
    Sums sums = sum_scores(has_weights ? work->weights : NULL, x, max_logit);
    if (isnan(sums.exp) || scores.max == -INFINITY) {
        drawn = (Draw){0, 0, NAN};
    } else if (!is_greedy && is_cut) {
        drawn = draw_top_k(scores, params, work);
        if (isnan(drawn.logprob)) drawn = draw_top_k(copy_scores(x, scores.max, params, work), params, work);
    } else if (!is_greedy) {
        drawn = draw_from_all(scores, params, has_weights, work);
    }
    double log_sum = log(sums.exp);
    find_alternatives(top_ids, top_logprobs, params->num_alternatives, k, x, max_logit, log_sum);
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
    size_t size = sizeof(float) * (vocab + LANES), num_blocks = ceil_div(vocab, BLOCK);
    Edits edits = {malloc(size), malloc(size), malloc(size), malloc(4 * size + 64 * sizeof(float)),
                   malloc(num_blocks * sizeof(int32_t)), malloc(size), 0, 0};
    *work = (Workspace){malloc(size), malloc(size), malloc(size), malloc(num_blocks * sizeof(float)), malloc(size), edits};
    return work->weights && work->scratch && work->scores && work->block_max && work->ids && edits.scores &&
           edits.ids && edits.counts && edits.table && edits.heads && edits.next;
}

static void release(Workspace *work) {
    free(work->weights), free(work->scratch), free(work->scores), free(work->block_max), free(work->ids);
    free(work->edits.scores), free(work->edits.ids), free(work->edits.counts), free(work->edits.table);
    free(work->edits.heads), free(work->edits.next);
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
                                          top_ids + row * k, top_logprobs + row * k, &work);
        release(&work);
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
