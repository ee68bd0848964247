/* Gated DeltaNet (Yang et al. 2024) between its two projections: a causal convolution, the gated delta rule in place on
 * each sequence's state, and a gated RMS norm.
 *
 * A thread takes a key head of a sequence with the value heads that share it. Each number is added up in an order of
 * its own token's past alone, so that neither the batch nor the pieces of a prompt change it.
 */
#include "../vecmath.h"

#include <omp.h>
#include <string.h>

typedef struct {
    int64_t num_key_heads, num_value_heads, key_dim, value_dim, kernel_size, row_size;
    float eps;
    const float *conv_weight, *conv_bias;     /* [kernel_size, channels], oldest input first; [channels] or NULL */
    const float *decay_rates, *dt_bias;       /* [num_value_heads] */
    const float *norm_weight;                 /* [value_dim] */
} DeltaNet;

/* Rows of a step, sequence by sequence: those of sequence i are rows[cu_seqlens[i]] … rows[cu_seqlens[i + 1] - 1]. */
typedef struct {
    int64_t num_sequences;
    const int64_t *rows, *cu_seqlens, *states;
    const uint8_t *begins; /* its state is empty */
} SequenceRows;

/* Tokens of a sequence that are convolved together, and columns of a state that are updated together: whole rows of most
 * models' states, so that memory is read as one stream. */
enum { TOKENS = 64, COLUMNS = 128 };

typedef float Lanes __attribute__((vector_size(LINE), aligned(4), may_alias));

INLINE float sigmoid(float x) {
    float z = exp_of_negative(-fabsf(x));
    return (x < 0 ? z : 1.0f) / (1.0f + z);
}

INLINE float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

/* A tile of a sequence's tokens, for one key head and its value heads. */
typedef struct {
    int64_t group;       /* channels: of the query, the key and the values, in this order */
    int64_t starts[3], sizes[3]; /* of those in a row */
    float *window;       /* [kernel_size - 1 + TOKENS, group] inputs of the convolution */
    float *mixed;        /* [TOKENS, group] its outputs */
    float *core;         /* [TOKENS, value_dim] */
    float beta[TOKENS], decay[TOKENS];
    int64_t ahead;       /* numbers from a state to the one that the thread updates next; 0 for none */
} Tile;

INLINE void load_channels(float *to, const Tile *tile, const void *row, int is_bf16) {
    for (int part = 0; part < 3; part++) {
        load(to, at(row, tile->starts[part], is_bf16), tile->sizes[part], is_bf16);
        to += tile->sizes[part];
    }
}

INLINE void store_channels(void *row, const Tile *tile, const float *from, int is_bf16) {
    for (int part = 0; part < 3; part++) {
        store((void *)at(row, tile->starts[part], is_bf16), from, tile->sizes[part], is_bf16);
        from += tile->sizes[part];
    }
}

/* swish of the convolution, its inputs added from the oldest on. */
INLINE void convolve(const DeltaNet *net, Tile *tile, int64_t token) {
    int64_t channels = 2 * net->num_key_heads * net->key_dim + net->num_value_heads * net->value_dim;
    const float *inputs = tile->window + token * tile->group;
    float *output = tile->mixed + token * tile->group;
    for (int part = 0; part < 3; part++) {
        const float *weight = net->conv_weight + tile->starts[part];
        const float *bias = net->conv_bias ? net->conv_bias + tile->starts[part] : NULL;
        int64_t size = tile->sizes[part];
        for (int64_t i = 0; i < size; i++) output[i] = weight[i] * inputs[i];
        for (int64_t tap = 1; tap < net->kernel_size; tap++)
            for (int64_t i = 0; i < size; i++) output[i] += weight[tap * channels + i] * inputs[tap * tile->group + i];
        if (bias)
            for (int64_t i = 0; i < size; i++) output[i] += bias[i];
        for (int64_t i = 0; i < size; i++) output[i] *= sigmoid(output[i]);
        inputs += size, output += size;
    }
}

/* x / sqrt(sum of squares + 1e-6) * scale */
INLINE void normalize(float *x, int64_t size, float scale) {
    float squares = 0;
    for (int64_t i = 0; i < size; i++) squares += x[i] * x[i];
    scale /= sqrtf(squares + 1e-6f);
    for (int64_t i = 0; i < size; i++) x[i] *= scale;
}

/* Brings memory into the L2 cache, while something else is computed. */
INLINE void fetch(const Lanes *lines, const int count) {
#pragma GCC unroll 4
    for (int i = 0; i < count; i++) __builtin_prefetch(lines + i, 0, 2);
}

/* The delta rule on some columns of a head's state [key_dim, value_dim], token by token: the state decays, forgets what
 * it says for the key, learns the value, and is read by the query. `num_lanes` vectors of columns. */
INLINE void update_columns(float *state, int64_t key_dim, int64_t value_dim, const Tile *tile, const float *values,
                           float *output, int64_t num_tokens, const int num_lanes) {
    for (int64_t token = 0; token < num_tokens; token++) {
        const float *query = tile->mixed + token * tile->group, *key = query + key_dim;
        float decay = tile->decay[token], beta = tile->beta[token];
        Lanes known[COLUMNS / LANES], read[COLUMNS / LANES];
#pragma GCC unroll 8
        for (int i = 0; i < num_lanes; i++) known[i] = read[i] = (Lanes){0};
        for (int64_t row = 0; row < key_dim; row++) {
            const Lanes *old = (const Lanes *)(state + row * value_dim);
            fetch(old + tile->ahead / LANES, num_lanes / 2);
#pragma GCC unroll 8
            for (int i = 0; i < num_lanes; i++) known[i] += old[i] * key[row];
        }
        const Lanes *value = (const Lanes *)(values + token * tile->group);
#pragma GCC unroll 8
        for (int i = 0; i < num_lanes; i++) known[i] = (value[i] - known[i] * decay) * beta;
        for (int64_t row = 0; row < key_dim; row++) {
            Lanes *kept = (Lanes *)(state + row * value_dim);
            fetch(kept + tile->ahead / LANES + num_lanes / 2, num_lanes / 2);
#pragma GCC unroll 8
            for (int i = 0; i < num_lanes; i++) {
                Lanes updated = kept[i] * decay + known[i] * key[row];
                kept[i] = updated;
                read[i] += updated * query[row];
            }
        }
        Lanes *to = (Lanes *)(output + token * value_dim);
#pragma GCC unroll 8
        for (int i = 0; i < num_lanes; i++) to[i] = read[i];
    }
}

/* `update_columns` for a single column. */
INLINE void update_column(float *state, int64_t key_dim, int64_t value_dim, const Tile *tile, const float *values,
                          float *output, int64_t num_tokens) {
    for (int64_t token = 0; token < num_tokens; token++) {
        const float *query = tile->mixed + token * tile->group, *key = query + key_dim;
        float known = 0, read = 0;
        for (int64_t row = 0; row < key_dim; row++) known += state[row * value_dim] * key[row];
        known = (values[token * tile->group] - known * tile->decay[token]) * tile->beta[token];
        for (int64_t row = 0; row < key_dim; row++) {
            float updated = state[row * value_dim] * tile->decay[token] + known * key[row];
            state[row * value_dim] = updated;
            read += updated * query[row];
        }
        output[token * value_dim] = read;
    }
}

INLINE void update_state(float *state, int64_t key_dim, int64_t value_dim, const Tile *tile, const float *values,
                         int64_t num_tokens) {
    int64_t column = 0;
    for (; column + COLUMNS <= value_dim; column += COLUMNS)
        update_columns(state + column, key_dim, value_dim, tile, values + column, tile->core + column, num_tokens,
                       COLUMNS / LANES);
    for (; column + COLUMNS / 2 <= value_dim; column += COLUMNS / 2)
        update_columns(state + column, key_dim, value_dim, tile, values + column, tile->core + column, num_tokens,
                       COLUMNS / 2 / LANES);
    for (; column + LANES <= value_dim; column += LANES)
        update_columns(state + column, key_dim, value_dim, tile, values + column, tile->core + column, num_tokens, 1);
    for (; column < value_dim; column++)
        update_column(state + column, key_dim, value_dim, tile, values + column, tile->core + column, num_tokens);
}

/* The RMS norm of each token's output, times swish of its gate. */
INLINE void norm_and_gate(const DeltaNet *net, float *core, const void *gates, void *output, int is_bf16) {
    int64_t size = net->value_dim;
    float gate[size], squares = 0;
    load(gate, gates, size, is_bf16);
    for (int64_t i = 0; i < size; i++) squares += core[i] * core[i];
    float scale = 1.0f / sqrtf(squares / size + net->eps);
    for (int64_t i = 0; i < size; i++) core[i] *= scale * net->norm_weight[i] * gate[i] * sigmoid(gate[i]);
    store(output, core, size, is_bf16);
}

/* The tokens of a tile, whose inputs stand in its window, through one value head. */
INLINE void value_head(const DeltaNet *net, Tile *tile, int64_t head, const float *values, float *state,
                       void *output, const void *projected, const int64_t *rows, int64_t num_tokens, int is_bf16) {
    int64_t value_size = net->num_value_heads * net->value_dim;
    int64_t gates = 2 * net->num_key_heads * net->key_dim + value_size, betas = gates + value_size;
    for (int64_t token = 0; token < num_tokens; token++) {
        const void *row = at(projected, rows[token] * net->row_size, is_bf16);
        float b, a;
        load(&b, at(row, betas + head, is_bf16), 1, is_bf16);
        load(&a, at(row, betas + net->num_value_heads + head, is_bf16), 1, is_bf16);
        tile->beta[token] = sigmoid(b);
        tile->decay[token] = expf(net->decay_rates[head] * softplus(a + net->dt_bias[head]));
    }
    update_state(state, net->key_dim, net->value_dim, tile, values, num_tokens);
    for (int64_t token = 0; token < num_tokens; token++) {
        const void *row = at(projected, rows[token] * net->row_size, is_bf16);
        void *to = (void *)at(output, rows[token] * value_size + head * net->value_dim, is_bf16);
        norm_and_gate(net, tile->core + token * net->value_dim, at(row, gates + head * net->value_dim, is_bf16), to,
                      is_bf16);
    }
}

/* One sequence's rows through one key head and its value heads. */
INLINE void key_head(const DeltaNet *net, Tile *tile, int64_t head, void *output, const void *projected,
                     void *conv_state, float *state, int begins, const int64_t *rows, int64_t num_rows, int is_bf16) {
    int64_t kept = net->kernel_size - 1, sharing = net->num_value_heads / net->num_key_heads;
    int64_t key_size = net->num_key_heads * net->key_dim, channels = 2 * key_size + net->num_value_heads * net->value_dim;
    int64_t starts[3] = {head * net->key_dim, key_size + head * net->key_dim,
                         2 * key_size + head * sharing * net->value_dim};
    memcpy(tile->starts, starts, sizeof starts);
    for (int64_t i = 0; i < kept; i++)
        if (begins)
            memset(tile->window + i * tile->group, 0, tile->group * sizeof(float));
        else
            load_channels(tile->window + i * tile->group, tile, at(conv_state, i * channels, is_bf16), is_bf16);
    state += head * sharing * net->key_dim * net->value_dim;
    if (begins) memset(state, 0, sharing * net->key_dim * net->value_dim * sizeof(float));
    for (int64_t first = 0; first < num_rows; first += TOKENS) {
        int64_t num_tokens = num_rows - first < TOKENS ? num_rows - first : TOKENS;
        for (int64_t token = 0; token < num_tokens; token++) {
            load_channels(tile->window + (kept + token) * tile->group, tile,
                          at(projected, rows[first + token] * net->row_size, is_bf16), is_bf16);
            convolve(net, tile, token);
            float *query = tile->mixed + token * tile->group;
            normalize(query, net->key_dim, 1.0f / sqrtf(net->key_dim));
            normalize(query + net->key_dim, net->key_dim, 1.0f);
        }
        for (int64_t i = 0; i < sharing; i++)
            value_head(net, tile, head * sharing + i, tile->mixed + 2 * net->key_dim + i * net->value_dim,
                       state + i * net->key_dim * net->value_dim, output, projected, rows + first, num_tokens, is_bf16);
        memmove(tile->window, tile->window + num_tokens * tile->group, kept * tile->group * sizeof(float));
    }
    for (int64_t i = 0; i < kept; i++)
        store_channels((void *)at(conv_state, i * channels, is_bf16), tile, tile->window + i * tile->group, is_bf16);
}

/* Writes the rows of output [rows, num_value_heads * value_dim] that belong to a sequence. Rows of `projected` have
 * queries, keys, values, gates, then two numbers a value head: of the learning rate, and of the decay. conv_states are
 * [states, kernel_size - 1, channels], states [states, num_value_heads, key_dim, value_dim]. Returns 1 without memory. */
INLINE int delta_net(void *output, const void *projected, void *conv_states, float *states, const DeltaNet *net,
                     const SequenceRows *sequences, int is_bf16) {
    int64_t group = 2 * net->key_dim + net->num_value_heads / net->num_key_heads * net->value_dim;
    int64_t kept = net->kernel_size - 1, state_size = net->num_value_heads * net->key_dim * net->value_dim;
    int64_t channels = 2 * net->num_key_heads * net->key_dim + net->num_value_heads * net->value_dim;
    int64_t num_heads = net->num_key_heads, failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        int64_t size = (kept + 2 * TOKENS) * group + TOKENS * net->value_dim;
        float *memory = malloc(size * sizeof(float));
        failed |= !memory;
        Tile tile = {group, {0}, {net->key_dim, net->key_dim, group - 2 * net->key_dim}};
        tile.window = memory, tile.mixed = memory + (kept + TOKENS) * group, tile.core = tile.mixed + TOKENS * group;
        int64_t num_items = sequences->num_sequences * num_heads, num_threads = omp_get_num_threads();
        /* In turns: a thread knows which state comes next, and the heads of a prompt are divided evenly. */
#pragma omp for schedule(static, 1)
        for (int64_t item = 0; item < num_items; item++) {
            if (!memory) continue;
            int64_t sequence = item / num_heads, first = sequences->cu_seqlens[sequence];
            int64_t index = sequences->states[sequence], next = item + num_threads;
            tile.ahead = 0;
            if (next < num_items && sequences->cu_seqlens[sequence + 1] == first + 1)
                tile.ahead = (sequences->states[next / num_heads] - index) * state_size +
                             (next % num_heads - item % num_heads) * (state_size / num_heads);
            key_head(net, &tile, item % num_heads, output, projected,
                     (void *)at(conv_states, index * kept * channels, is_bf16), states + index * state_size,
                     sequences->begins[sequence], sequences->rows + first,
                     sequences->cu_seqlens[sequence + 1] - first, is_bf16);
        }
        free(memory);
    }
    return failed != 0;
}

int delta_net_bf16(void *output, const void *projected, void *conv_states, float *states, const DeltaNet *net,
                   const SequenceRows *sequences) {
    return delta_net(output, projected, conv_states, states, net, sequences, 1);
}

int delta_net_f32(void *output, const void *projected, void *conv_states, float *states, const DeltaNet *net,
                  const SequenceRows *sequences) {
    return delta_net(output, projected, conv_states, states, net, sequences, 0);
}
