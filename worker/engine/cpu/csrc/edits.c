/* The scores that a row's token is drawn from, where they are not the model's: logits after bias, penalties and bans.
 *
 * In Transformers' order, and with its rules: logits_processors.py is the reference.
 */
#include "sampling.h"

int has_edits(const RowParams *params) {
    return params->repetition_penalty != 1 || params->presence_penalty != 0 || params->frequency_penalty != 0 ||
           params->num_biased || params->num_banned || params->allowed;
}

INLINE int is_known(int32_t token_id, int64_t vocab) { return token_id >= 0 && token_id < vocab; }

static void count_tokens(int32_t *counts, int64_t vocab, const int32_t *ids, int64_t num_ids) {
    for (int64_t i = 0; i < num_ids; i++)
        if (is_known(ids[i], vocab)) counts[ids[i]]++;
}

/* Divides each counted score once, or multiplies it where it is negative; forgets the counts. */
static void penalize_repetition(float *scores, int64_t vocab, int32_t *counts, const int32_t *ids, int64_t num_ids,
                                float penalty) {
    for (int64_t i = 0; i < num_ids; i++) {
        int32_t id = ids[i];
        if (!is_known(id, vocab) || !counts[id]) continue;
        counts[id] = 0;
        scores[id] = scores[id] < 0 ? scores[id] * penalty : scores[id] / penalty;
    }
}

/* Subtracts once per token, and per occurrence; forgets the counts. */
static void penalize_presence(float *scores, int64_t vocab, int32_t *counts, const RowParams *params) {
    for (int64_t i = 0; i < params->num_token_ids; i++) {
        int32_t id = params->token_ids[i];
        if (!is_known(id, vocab) || !counts[id]) continue;
        scores[id] -= (float)params->presence_penalty + (float)params->frequency_penalty * (float)counts[id];
        counts[id] = 0;
    }
}

static void ban_others(float *scores, int64_t vocab, const uint32_t *allowed) {
    for (int64_t word = 0; word < ceil_div(vocab, 32); word++) {
        if (allowed[word] == UINT32_MAX) continue;
        for (int64_t id = word * 32; id < vocab && id < word * 32 + 32; id++)
            if (!(allowed[word] >> (id % 32) & 1)) scores[id] = -INFINITY;
    }
}

void edit_scores(float *scores, Logits x, const RowParams *params, int32_t *counts) {
    load(scores, x.data, x.count, x.is_bf16);
    for (int64_t i = 0; i < params->num_biased; i++)
        if (is_known(params->biased_ids[i], x.count)) scores[params->biased_ids[i]] += params->biases[i];
    if (params->repetition_penalty != 1) {
        float penalty = (float)params->repetition_penalty;
        count_tokens(counts, x.count, params->prompt_ids, params->num_prompt_ids);
        count_tokens(counts, x.count, params->token_ids, params->num_token_ids);
        penalize_repetition(scores, x.count, counts, params->prompt_ids, params->num_prompt_ids, penalty);
        penalize_repetition(scores, x.count, counts, params->token_ids, params->num_token_ids, penalty);
    }
    if (params->presence_penalty != 0 || params->frequency_penalty != 0) {
        count_tokens(counts, x.count, params->token_ids, params->num_token_ids);
        penalize_presence(scores, x.count, counts, params);
    }
    for (int64_t i = 0; i < params->num_banned; i++)
        if (is_known(params->banned_ids[i], x.count)) scores[params->banned_ids[i]] = -INFINITY;
    if (params->allowed) ban_others(scores, x.count, params->allowed);
}
