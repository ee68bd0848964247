/* Attention on AMX over paged bf16 keys, of decoding rows and of prompts alike: packs, threads and memory.
 *
 * Rows are packed until their query heads for a key head fill the 16 lanes of a tile. A thread takes several packs and
 * goes through the keys from position 0 on, chunk by chunk (attention_amx.h). Rows with the same blocks share both
 * matmuls of a chunk, and adjacent packs share its packed values.
 *
 *                     keys 0 .. 127   128 .. 255   256 ..
 *        pack 0       [ chunk 0 ]     [ chunk 3 ]  ...          in this order, so that packs with the same prefix
 *        pack 1       [ chunk 1 ]     [ chunk 4 ]               meet its values while they are packed
 *        pack 2       [ chunk 2 ]     ...
 *
 * Batch-invariant: a lane's result depends on its own keys and their positions alone. Accumulators are fp32.
 */
#define _GNU_SOURCE

#ifdef __GNUC__
/* A loop that the compiler makes twice must add in the same order both times. */
#pragma GCC optimize("no-associative-math")
#endif

#include <omp.h>

#include "attention_amx.h"

#ifdef HAS_AMX

/* Tasks that each thread should get, so that none waits long for the others at the end. */
enum { TASKS_PER_THREAD = 4 };

/* Sets up a pack from its first row on. */
static void init_pack(Pack *pack, int64_t first_row, const AttentionArgs *args) {
    int64_t left = args->num_rows - first_row;
    int32_t first_keys[TILE_DIM], end_keys[TILE_DIM];
    pack->first_row = first_row, pack->num_rows = left < args->rows_per_pack ? left : args->rows_per_pack;
    pack->first_key = INT64_MAX, pack->end_key = 0;
    for (int64_t i = 0; i < pack->num_rows; i++) {
        const QueryRow *row = &args->rows[first_row + i];
        if (row->first_key < pack->first_key) pack->first_key = row->first_key;
        if (row->end_key > pack->end_key) pack->end_key = row->end_key;
        /* Unused lanes see what the last row does. */
        for (int64_t lane = i * args->group; lane < (i + 1 < pack->num_rows ? (i + 1) * args->group : TILE_DIM); lane++)
            first_keys[lane] = (int32_t)row->first_key, end_keys[lane] = (int32_t)row->end_key;
    }
    pack->first_keys = _mm512_loadu_si512(first_keys), pack->end_keys = _mm512_loadu_si512(end_keys);
}

/* Packs the query heads of one key head in VNNI layout, as the second factor of the scores. */
static void pack_queries(uint32_t *to, const Pack *pack, int64_t kv_head, const AttentionArgs *args) {
    for (int64_t part = 0; part < args->s.dim / LINE_BF16; part++) {
        __m512i x[TILE_DIM];
        for (int lane = 0; lane < TILE_DIM; lane++) x[lane] = _mm512_setzero_si512();
        for (int64_t row = 0; row < pack->num_rows; row++)
            for (int64_t head = 0; head < args->group; head++)
                x[row * args->group + head] = _mm512_loadu_si512(
                    (const uint16_t *)args->query + (pack->first_row + row) * args->s.query_stride +
                    (kv_head * args->group + head) * args->s.dim + part * LINE_BF16);
        transpose_16x16(x);
        for (int i = 0; i < TILE_DIM; i++) _mm512_store_si512(to + part * TILE_SIZE + i * TILE_DIM, x[i]);
    }
}

/* Groups a pack's rows that have keys among the chunk's first `max_seqlen_k`; returns the number of groups. */
static int find_key_groups(KeyGroup *groups, const Pack *pack, int64_t start, int64_t max_seqlen_k,
                           const AttentionArgs *args) {
    int num_groups = 0;
    const QueryRow *last = NULL;
    for (int64_t i = 0; i < pack->num_rows; i++) {
        const QueryRow *row = &args->rows[pack->first_row + i];
        if (row->seqused_k <= start) {
            last = NULL; /* a group's lanes are adjacent */
            continue;
        }
        if (last == NULL || !share_keys(last, row, start, args->s)) {
            int64_t cached = num_keys_in_chunk(row, start), seqlen_k = cached < max_seqlen_k ? cached : max_seqlen_k;
            groups[num_groups++] = (KeyGroup){row, seqlen_k, (int)(i * args->group), 0};
        }
        groups[num_groups - 1].num_lanes += (int)args->group;
        last = row;
    }
    return num_groups;
}

/* Adds a chunk of keys to a pack, for the `num_kv` key heads from `kv_first` on. */
static void attend_chunk(Workspace *workspace, int64_t index, int64_t start, int64_t kv_first, int64_t num_kv,
                         const AttentionArgs *args) {
    const Pack *pack = &workspace->packs[index];
    KeyGroup groups[TILE_DIM];
    int64_t seqlen_k = pack->end_key - start < CHUNK ? pack->end_key - start : CHUNK;
    int64_t num_scores = ceil_div(seqlen_k, KEYS_PER_TILE) * KEYS_PER_TILE;
    int num_groups = find_key_groups(groups, pack, start, seqlen_k, args);
    for (int64_t kv = 0; kv < num_kv; kv++) {
        SoftmaxState *state = &workspace->states[index * num_kv + kv];
        ValueTiles *values = &workspace->values[kv];
        float rescale[TILE_DIM];
        score_chunk(workspace, groups, num_groups, start, state->queries, kv_first + kv, args);
        _mm512_storeu_ps(rescale, exp_scores(workspace->scores, state, pack, start, num_scores, args->s.scale));
        split_probs(workspace, num_scores);
        for (int i = 0; i < num_groups; i++) {
            pack_values(values, groups[i].row, start, kv_first + kv, workspace->copies, args);
            COMPILER_FENCE();
            add_values(workspace, state->acc, &groups[i], values, rescale, args->s.value_dim);
        }
    }
}

/* Writes accumulators divided by row_sum. */
static void write_output(const Pack *pack, const SoftmaxState *state, int64_t kv_head, const AttentionArgs *args) {
    const __m512i in_order = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0); /* the two tiles have fours of values in turn */
    float row_sums[TILE_DIM];
    _mm512_storeu_ps(row_sums, state->row_sum);
    for (int64_t lane = 0; lane < pack->num_rows * args->group; lane++) {
        int64_t row = pack->first_row + lane / args->group, head = kv_head * args->group + lane % args->group;
        uint16_t *to = (uint16_t *)args->output + (row * args->s.num_heads + head) * args->s.value_dim;
        const float *acc = state->acc + lane * args->s.value_dim;
        const __m512 row_sum = _mm512_set1_ps(row_sums[lane]);
        for (int64_t i = 0; i < args->s.value_dim; i += LINE_BF16) {
            __m512 first = _mm512_div_ps(_mm512_load_ps(acc + i), row_sum);
            __m512 second = _mm512_div_ps(_mm512_load_ps(acc + i + TILE_DIM), row_sum);
            _mm512_storeu_si512(to + i, _mm512_permutexvar_epi64(in_order, pack_bf16(first, second)));
        }
    }
}

/* The softmax before its first key: nothing, or each lane's sink, whose exponential is 1 beside itself. */
static void init_softmax(SoftmaxState *state, int64_t kv_head, const AttentionArgs *args) {
    float row_max[TILE_DIM];
    state->row_max = _mm512_set1_ps(-INFINITY), state->row_sum = _mm512_setzero_ps();
    if (args->s.sinks == NULL) return;
    for (int64_t lane = 0; lane < TILE_DIM; lane++)
        row_max[lane] = args->s.sinks[kv_head * args->group + lane % args->group] * LOG2_E;
    state->row_max = _mm512_loadu_ps(row_max), state->row_sum = _mm512_set1_ps(1);
}

/* Attention of `num_packs` packs from row `first_row` on; each chunk of all of them before the next chunk. */
static void attend_packs(Workspace *workspace, int64_t first_row, int64_t num_packs, int64_t kv_first, int64_t num_kv,
                         const AttentionArgs *args) {
    int64_t first_key = INT64_MAX, end_key = 0;
    for (int64_t i = 0; i < num_packs; i++) {
        Pack *pack = &workspace->packs[i];
        init_pack(pack, first_row + i * args->rows_per_pack, args);
        if (pack->first_key < first_key) first_key = pack->first_key;
        if (pack->end_key > end_key) end_key = pack->end_key;
        for (int64_t kv = 0; kv < num_kv; kv++) {
            SoftmaxState *state = &workspace->states[i * num_kv + kv];
            init_softmax(state, kv_first + kv, args);
            memset(state->acc, 0, sizeof(float) * TILE_DIM * args->s.value_dim);
            pack_queries(state->queries, pack, kv_first + kv, args);
        }
    }
    for (int64_t kv = 0; kv < num_kv; kv++) workspace->values[kv].start = -1;
    for (int64_t start = first_key / CHUNK * CHUNK; start < end_key; start += CHUNK)
        for (int64_t i = 0; i < num_packs; i++)
            if (workspace->packs[i].first_key < start + CHUNK && start < workspace->packs[i].end_key)
                attend_chunk(workspace, i, start, kv_first, num_kv, args);
    for (int64_t i = 0; i < num_packs * num_kv; i++)
        write_output(&workspace->packs[i / num_kv], &workspace->states[i], kv_first + i % num_kv, args);
}

/* The next `bytes` of the memory, in whole cache lines; without memory they are only counted. */
INLINE void *carve(char *memory, int64_t *used, int64_t bytes) {
    char *carved = memory == NULL ? NULL : memory + *used;
    *used += ceil_div(bytes, LINE) * LINE;
    return carved;
}

/* Divides the memory among the workspace's arrays; returns how many bytes they take. */
static int64_t carve_workspace(Workspace *workspace, char *memory, int64_t num_packs, int64_t num_kv,
                               AttentionShape s) {
    int64_t used = 0;
    SoftmaxState *states = carve(memory, &used, sizeof(SoftmaxState) * num_packs * num_kv);
    ValueTiles *values = carve(memory, &used, sizeof(ValueTiles) * num_kv);
    char *copies = carve(memory, &used, MAX_ROW_TILES * TILE_DIM * (s.dim > s.value_dim ? s.dim : s.value_dim) * 2);
    for (int64_t i = 0; i < num_packs * num_kv; i++) {
        uint32_t *queries = carve(memory, &used, s.dim / LINE_BF16 * TILE_SIZE * VNNI);
        float *acc = carve(memory, &used, TILE_DIM * s.value_dim * 4);
        if (memory != NULL) states[i].queries = queries, states[i].acc = acc;
    }
    for (int64_t kv = 0; kv < num_kv; kv++) {
        uint32_t *packed = carve(memory, &used, CHUNK / 2 * s.value_dim * VNNI);
        if (memory != NULL) values[kv].packed = packed;
    }
    workspace->states = states, workspace->values = values, workspace->copies = copies;
    return used;
}

/* Divides the packs, and where there are few their key heads, among the threads. */
static int attend_all(const AttentionArgs *args) {
    int64_t all_packs = ceil_div(args->num_rows, args->rows_per_pack), failed = 0;
    int64_t num_threads = omp_get_max_threads(), num_packs = all_packs / (TASKS_PER_THREAD * num_threads);
    num_packs = num_packs < 1 ? 1 : num_packs < MAX_PACKS ? num_packs : MAX_PACKS;
    int64_t num_slices = ceil_div(all_packs, num_packs);
    int64_t num_parts = num_slices < num_threads ? args->s.num_kv_heads : 1, num_kv = args->s.num_kv_heads / num_parts;
#pragma omp parallel reduction(| : failed)
    {
        Workspace workspace;
        int64_t bytes = carve_workspace(&workspace, NULL, num_packs, num_kv, args->s);
        char *memory = aligned_alloc(LINE, bytes);
        failed = memory == NULL;
        if (!failed) {
            carve_workspace(&workspace, memory, num_packs, num_kv, args->s);
            load_tile_config(TILE_DIM);
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < num_slices * num_parts; task++) {
            int64_t first = task / num_parts * num_packs, left = all_packs - first;
            if (memory != NULL)
                attend_packs(&workspace, first * args->rows_per_pack, left < num_packs ? left : num_packs,
                             task % num_parts * num_kv, num_kv, args);
        }
        if (memory != NULL) release_tiles();
        free(memory);
    }
    return (int)failed;
}

/* Query [rows, heads, dim], keys [slots, kv_heads, dim], values [slots, kv_heads, value_dim]; of each sequence
 * block_table [sequences, max_blocks], seqused_k [sequences] keys in the cache, the last row's own included, and
 * cu_seqlens_q [sequences + 1], where its rows begin; writes output [rows, heads, value_dim]. At most 16 query heads
 * may share a key head, and dim and value_dim are multiples of 32. Returns 0, or 1 where memory ran out. */
int varlen_attention_amx(void *output, const void *query, const void *keys, const void *values,
                         const int32_t *block_table, const int32_t *seqused_k, const int32_t *cu_seqlens_q,
                         int64_t num_sequences, const AttentionShape *shape) {
    int64_t group = shape->num_heads / shape->num_kv_heads, num_rows = cu_seqlens_q[num_sequences];
    QueryRow *rows = malloc(sizeof(QueryRow) * num_rows);
    if (rows == NULL) return 1;
    for (int64_t i = 0; i < num_sequences; i++)
        for (int64_t row = cu_seqlens_q[i]; row < cu_seqlens_q[i + 1]; row++) {
            int64_t end_key = seqused_k[i] - (cu_seqlens_q[i + 1] - 1 - row);
            rows[row] = (QueryRow){block_table + i * shape->max_blocks, seqused_k[i], first_key_of(end_key, *shape),
                                   end_key};
        }
    const AttentionArgs args = {output, query, keys, values, rows, num_rows, group, TILE_DIM / group, *shape};
    int failed = attend_all(&args);
    free(rows);
    return failed;
}

#endif
