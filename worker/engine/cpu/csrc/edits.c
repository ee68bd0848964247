/* Edits of a row's logits: bias, penalties and bans, in Transformers' order and with its rules.
 *
 * logits_processors.py is the reference. Few tokens are edited, so that a row is never copied for them: their scores
 * stand beside it, and whoever reads the row looks them up.
 */
#include <string.h>

#include "sampling.h"

/* The place in the table of an id, or where it would be. */
static int64_t place_of(const Edits *edits, int32_t id) {
    int64_t place = (uint32_t)id * 2654435769u & edits->mask; /* 2^32 over the golden ratio (Knuth) spreads the ids */
    while (edits->table[place] >= 0 && edits->ids[edits->table[place]] != id) place = (place + 1) & edits->mask;
    return place;
}

int32_t find_edit(const Edits *edits, int32_t id) { return edits->table[place_of(edits, id)]; }

/* The edit of a token, a new one if it has none; -1 for an id beyond the vocabulary. */
static int32_t edit_of(Edits *edits, Logits x, int32_t id) {
    if (id < 0 || id >= x.count) return -1;
    int64_t place = place_of(edits, id);
    int32_t found = edits->table[place];
    if (found >= 0) return found;
    found = edits->table[place] = (int32_t)edits->num_ids++;
    edits->ids[found] = id;
    edits->scores[found] = logit_of(x, id);
    edits->counts[found] = 0;
    edits->next[found] = edits->heads[id / BLOCK];
    edits->heads[id / BLOCK] = found;
    return found;
}

/* Divides a score once, or multiplies it where it is negative; `counts` tells which are done. */
static void penalize_repetition(Edits *edits, Logits x, const int32_t *ids, int64_t num_ids, float penalty) {
    for (int64_t i = 0; i < num_ids; i++) {
        int32_t found = edit_of(edits, x, ids[i]);
        if (found < 0 || edits->counts[found]++) continue;
        float *score = edits->scores + found;
        *score = *score < 0 ? *score * penalty : *score / penalty;
    }
}

/* Subtracts once per token, and per occurrence. */
static void penalize_presence(Edits *edits, Logits x, const RowParams *params) {
    memset(edits->counts, 0, sizeof(int32_t) * edits->num_ids);
    for (int64_t i = 0; i < params->num_token_ids; i++) {
        int32_t found = edit_of(edits, x, params->token_ids[i]);
        if (found >= 0) edits->counts[found]++;
    }
    for (int64_t i = 0; i < edits->num_ids; i++) {
        float penalty = (float)params->presence_penalty + (float)params->frequency_penalty * (float)edits->counts[i];
        if (edits->counts[i]) edits->scores[i] -= penalty;
    }
}

/* Empties the table, whose size is a power of two, and large enough for so many ids. */
static void clear(Edits *edits, int64_t vocab, int64_t num_ids) {
    int64_t size = 64;
    while (size < 2 * (num_ids < vocab ? num_ids : vocab)) size *= 2;
    edits->num_ids = 0;
    edits->mask = size - 1;
    memset(edits->table, -1, sizeof(int32_t) * size);
    memset(edits->heads, -1, sizeof(int32_t) * ceil_div(vocab, BLOCK));
}

void make_edits(Edits *edits, Logits x, const RowParams *params) {
    int has_presence = params->presence_penalty != 0 || params->frequency_penalty != 0;
    int64_t most = params->num_biased + params->num_banned;
    if (params->repetition_penalty != 1) most += params->num_prompt_ids + params->num_token_ids;
    else if (has_presence) most += params->num_token_ids;
    edits->num_ids = 0;
    if (!most) return;
    clear(edits, x.count, most);
    for (int64_t i = 0; i < params->num_biased; i++) {
        int32_t found = edit_of(edits, x, params->biased_ids[i]);
        if (found >= 0) edits->scores[found] += params->biases[i];
    }
    if (params->repetition_penalty != 1) {
        float penalty = (float)params->repetition_penalty;
        penalize_repetition(edits, x, params->prompt_ids, params->num_prompt_ids, penalty);
        penalize_repetition(edits, x, params->token_ids, params->num_token_ids, penalty);
    }
    if (has_presence) penalize_presence(edits, x, params);
    for (int64_t i = 0; i < params->num_banned; i++) {
        int32_t found = edit_of(edits, x, params->banned_ids[i]);
        if (found >= 0) edits->scores[found] = -INFINITY;
    }
}

static int64_t load_edited_block(float *block, Logits x, const Edits *edits, int64_t start) {
    int64_t size = load_block(block, x, start);
    for (int32_t i = edits->heads[start / BLOCK]; i >= 0; i = edits->next[i])
        block[edits->ids[i] - start] = edits->scores[i];
    return size;
}

float edited_max(const Edits *edits, Logits x, const float *block_max, int64_t *token_id) {
    float block[BLOCK], max_score = -INFINITY;
    for (int64_t start = 0, found = -1; start < x.count; start += BLOCK) {
        float max = block_max[start / BLOCK];
        if (edits->heads[start / BLOCK] >= 0) max = max_of(block, load_edited_block(block, x, edits, start));
        if (max > max_score || found < 0) max_score = max, found = *token_id = start;
    }
    for (int64_t size = load_edited_block(block, x, edits, *token_id), i = 0; i < size; i++)
        if (block[i] == max_score) return *token_id += i, max_score;
    return max_score;
}

void apply_edits(float *scores, Logits x, const Edits *edits, const uint32_t *allowed) {
    load(scores, x.data, x.count, x.is_bf16);
    for (int64_t i = 0; i < edits->num_ids; i++) scores[edits->ids[i]] = edits->scores[i];
    for (int64_t word = 0; allowed && word < ceil_div(x.count, 32); word++) {
        if (allowed[word] == UINT32_MAX) continue;
        for (int64_t id = word * 32; id < x.count && id < word * 32 + 32; id++)
            if (!(allowed[word] >> (id % 32) & 1)) scores[id] = -INFINITY;
    }
}
