/* Attention on AMX over paged bf16 keys, of decoding rows and of prompts alike.
 *
 * A pack is as many rows as have up to 16 query heads for a key head; each of these heads is a lane. Keys are taken in
 * chunks from place 0 on: as they lie in the cache they are multiplied with the pack's queries, which gives scores
 * [keys, lanes], so the softmax goes down the keys in all lanes at once. Each weight, as the sum of two bf16, then
 * meets the values in a second product. Rows that see the same blocks share both products, and neighbouring packs the
 * values as they are laid out for them. What a lane gets depends on its own keys and their places alone; all sums are
 * fp32.
 */
#define _GNU_SOURCE

#ifdef __GNUC__
/* A loop that the compiler makes twice must add in the same order both times. */
#pragma GCC optimize("no-associative-math")
#endif

#include <omp.h>
#include <string.h>

#include "gemm_amx.h"
#include "attention.h"

#ifdef HAS_AMX

/* Keys whose weights are one tile, keys of a chunk; packs that a thread takes at once, and how many times each
 * thread should. */
enum { STEP = 32, CHUNK = 128, MAX_PACKS = 16, TASKS = 4 };

/* Words of a tile, and numbers of a line of bf16. */
enum { TILE_WORDS = SIDE * SIDE, PART = LINE / 2 };

/* The compiler does not know that tiles are loaded from memory. */
#define WRITTEN() __asm__ volatile("" ::: "memory")

typedef struct {
    const int32_t *blocks;
    int64_t num_keys, first, end; /* in the cache, and of them those that the row sees */
} Row;

/* What a call is about. */
typedef struct {
    void *output;
    const void *query, *keys, *values;
    const Row *rows;
    int64_t num_rows, group, rows_of_pack;
    Shape s;
} Call;

typedef struct {
    int64_t first_row, num_rows, first_key, end; /* keys that one of its rows sees */
    __m512i firsts, ends;                        /* of each lane */
} Pack;

/* Rows of a pack that find the same keys in a chunk, and how many of these. */
typedef struct {
    const Row *row;
    int64_t count;
    int first_lane, num_lanes;
} Group;

/* Of a pack and one key head. */
typedef struct {
    __m512 largest, total; /* scores, in powers of two, and sums of weights */
    uint32_t *queries;     /* [dim / 32, 16 words, lanes] */
    float *sums;           /* [lanes, value_dim] */
} Lanes;

/* A chunk's values of one key head as second factors, and whose they are. */
typedef struct {
    Row row;
    int64_t start;
    uint32_t *pairs; /* [CHUNK / STEP, value_dim / 16, 16 pairs of keys, 16 values] */
} Values;

/* What a thread works with. */
typedef struct {
    __m512 scores[CHUNK], others[CHUNK];
    uint32_t weights[2][CHUNK / STEP][TILE_WORDS]; /* high and low part, [lane][pair of keys] */
    float added[SIDE * MAX_TILES * SIDE];               /* [lanes, MAX_TILES tiles' values] */
    Pack packs[MAX_PACKS];
    Lanes *lanes;   /* [packs, key heads] */
    Values *values; /* [key heads] */
    char *copies;   /* of keys or values that do not lie one after the other */
} Room;

/* Turns 16 rows of 16 words. */
INLINE void turn(__m512i x[SIDE]) {
    __m512i y[SIDE];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        y[2 * i] = _mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
        y[2 * i + 1] = _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        x[4 * i] = _mm512_unpacklo_epi64(y[4 * i], y[4 * i + 2]);
        x[4 * i + 1] = _mm512_unpackhi_epi64(y[4 * i], y[4 * i + 2]);
        x[4 * i + 2] = _mm512_unpacklo_epi64(y[4 * i + 1], y[4 * i + 3]);
        x[4 * i + 3] = _mm512_unpackhi_epi64(y[4 * i + 1], y[4 * i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        y[i] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88);
        y[i + 4] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd);
        y[i + 8] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
        y[i + 12] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        x[i] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0x88);
        x[i + 8] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0xdd);
    }
}

/* Of the row's `num_keys` those in the chunk. */
INLINE int64_t count_of(const Row *row, int64_t start) {
    return row->num_keys - start < CHUNK ? row->num_keys - start : CHUNK;
}

/* Whether two rows, of which each has keys there, find the same ones in the chunk. */
static int share_keys(const Row *a, const Row *b, int64_t start, Shape s) {
    int64_t count = count_of(a, start), block = start / s.block_size;
    if (count != count_of(b, start)) return 0;
    int64_t num_blocks = (start + count - 1) / s.block_size - block + 1;
    return a->blocks == b->blocks || memcmp(a->blocks + block, b->blocks + block, sizeof(int32_t) * num_blocks) == 0;
}

/* Puts a pack's rows with keys among the chunk's first `wanted` into groups; returns how many. */
static int find_groups(Group *groups, const Pack *pack, int64_t start, int64_t wanted, const Call *call) {
    int num_groups = 0;
    const Row *last = NULL;
    for (int64_t i = 0; i < pack->num_rows; i++) {
        const Row *row = &call->rows[pack->first_row + i];
        if (row->num_keys <= start) {
            last = NULL; /* a group's lanes stand side by side */
            continue;
        }
        if (last == NULL || !share_keys(last, row, start, call->s)) {
            int64_t count = count_of(row, start);
            groups[num_groups++] = (Group){row, count < wanted ? count : wanted, (int)(i * call->group), 0};
        }
        groups[num_groups - 1].num_lanes += (int)call->group;
        last = row;
    }
    return num_groups;
}

/* Where SIDE keys or values from `place` on lie, of which `count` exist, and how many bytes apart. What lies in several
 * blocks is put together first. */
INLINE const char *find_tile(int64_t *stride, char *copies, const void *pool, const Row *row, int64_t place,
                             int64_t count, int64_t kv_head, Shape s, int64_t size) {
    int64_t block = place / s.block_size, offset = place % s.block_size, bytes = size * 2;
    const char *first = (const char *)pool + kv_head * bytes;
    *stride = s.num_kv_heads * bytes;
    if (s.block_size % SIDE == 0) return first + (row->blocks[block] * s.block_size + offset) * *stride;
    for (int64_t key = 0; key < (count < SIDE ? count : SIDE); key++) {
        memcpy(copies + key * bytes, first + (row->blocks[block] * s.block_size + offset) * *stride, bytes);
        if (++offset == s.block_size) block++, offset = 0;
    }
    *stride = bytes;
    return copies;
}

/* A pack's query heads of one key head as the second factor of a product. */
static void load_queries(uint32_t *to, const Pack *pack, int64_t kv_head, const Call *call) {
    for (int64_t part = 0; part < call->s.dim / PART; part++) {
        __m512i words[SIDE];
        for (int lane = 0; lane < SIDE; lane++) words[lane] = _mm512_setzero_si512();
        for (int64_t row = 0; row < pack->num_rows; row++)
            for (int64_t head = 0; head < call->group; head++)
                words[row * call->group + head] = _mm512_loadu_si512(
                    (const uint16_t *)call->query + (pack->first_row + row) * call->s.query_stride +
                    (kv_head * call->group + head) * call->s.dim + part * PART);
        turn(words);
        for (int i = 0; i < SIDE; i++) _mm512_store_si512(to + part * TILE_WORDS + i * SIDE, words[i]);
    }
}

/* Registers: 0 to 3 are sums; 4 and 5 the factor that several products share; 6 and 7 the other one. */
#define SCORE_TILE(tile, register)                                                                                     \
    if (tile < num_tiles) {                                                                                            \
        _tile_loadd(register, tiles[tile] + part * LINE, stride);                                                      \
        _tile_dpbf16ps(tile, register, 4);                                                                             \
    }
#define STORE_SCORES(tile) _tile_stored(tile, scores + key + tile * SIDE, LINE)

/* Products [keys, lanes] of a row's keys in the chunk with the queries of all lanes. */
static void score_keys(__m512 *scores, const Group *group, int64_t start, const uint32_t *queries, int64_t kv_head,
                       char *copies, const Call *call) {
    int64_t dim = call->s.dim, stride = 0;
    for (int64_t key = 0; key < group->count; key += MAX_TILES * SIDE) {
        const char *tiles[MAX_TILES];
        int64_t left = (group->count - key + SIDE - 1) / SIDE;
        int num_tiles = (int)(left < MAX_TILES ? left : MAX_TILES);
        for (int64_t i = 0; i < num_tiles; i++)
            tiles[i] = find_tile(&stride, copies + i * SIDE * dim * 2, call->keys, group->row, start + key + i * SIDE,
                                 group->count - key - i * SIDE, kv_head, call->s, dim);
        WRITTEN();
        FOR_SUMS(_tile_zero)
        for (int64_t part = 0; part < dim / PART; part++) {
            _tile_loadd(4, queries + part * TILE_WORDS, LINE);
            SCORE_TILE(0, 6)
            SCORE_TILE(1, 7)
            SCORE_TILE(2, 6)
            SCORE_TILE(3, 7)
        }
        FOR_SUMS(STORE_SCORES)
    }
    WRITTEN();
}

/* Scores of a chunk, each lane with the keys of its own rows. Those of a lane that has none are not set. */
static void score_chunk(Room *room, const Group *groups, int num_groups, int64_t start, const uint32_t *queries,
                        int64_t kv_head, const Call *call) {
    for (int i = 0; i < num_groups; i++) {
        const Group *group = &groups[i];
        score_keys(i == 0 ? room->scores : room->others, group, start, queries, kv_head, room->copies, call);
        __mmask16 mine = (__mmask16)(((1u << group->num_lanes) - 1) << group->first_lane);
        for (int64_t key = 0; i > 0 && key < group->count; key++)
            room->scores[key] = _mm512_mask_mov_ps(room->scores[key], mine, room->others[key]);
    }
}

/* Makes weights of `count` scores, a multiple of STEP; returns what each lane's earlier sums are to be multiplied
 * with. */
static __m512 weigh(__m512 *scores, Lanes *lanes, const Pack *pack, int64_t start, int64_t count, float scale) {
    const __m512 lowest = _mm512_set1_ps(-INFINITY), to_power = _mm512_set1_ps(scale * LOG2_E);
    __m512 largest[4] = {lowest, lowest, lowest, lowest}, totals[4] = {{0}};
    int is_edge = _mm512_cmpgt_epi32_mask(pack->firsts, _mm512_set1_epi32((int32_t)start)) != 0 ||
                  _mm512_cmplt_epi32_mask(pack->ends, _mm512_set1_epi32((int32_t)(start + count))) != 0;
    for (int64_t key = 0; key < count; key += 4)
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            if (is_edge) {
                __m512i place = _mm512_set1_epi32((int32_t)(start + key + i));
                __mmask16 is_seen =
                    _mm512_cmpgt_epi32_mask(pack->ends, place) & _mm512_cmple_epi32_mask(pack->firsts, place);
                scores[key + i] = _mm512_mask_mov_ps(lowest, is_seen, scores[key + i]);
            }
            largest[i] = _mm512_max_ps(largest[i], scores[key + i]);
        }
    __m512 most = _mm512_max_ps(_mm512_max_ps(largest[0], largest[1]), _mm512_max_ps(largest[2], largest[3]));
    most = _mm512_max_ps(lanes->largest, _mm512_mul_ps(most, to_power));
    /* A lane that has seen no key yet has nothing to multiply, and no difference of infinities is taken. */
    __m512 lowered = _mm512_max_ps(_mm512_set1_ps(-200), _mm512_sub_ps(lanes->largest, most));
    __mmask16 is_larger = _mm512_cmp_ps_mask(most, lanes->largest, _CMP_GT_OQ);
    __m512 factor = _mm512_mask_mov_ps(_mm512_set1_ps(1), is_larger, power_of_two(lowered));
    for (int64_t key = 0; key < count; key += 4)
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            __m512 weight = power_of_two(_mm512_fmsub_ps(scores[key + i], to_power, most));
            if (is_edge) {
                __mmask16 is_seen = _mm512_cmp_ps_mask(scores[key + i], lowest, _CMP_NEQ_UQ);
                weight = _mm512_maskz_mov_ps(is_seen, weight);
            }
            scores[key + i] = weight;
            totals[i] = _mm512_add_ps(totals[i], weight);
        }
    __m512 total = _mm512_add_ps(_mm512_add_ps(totals[0], totals[1]), _mm512_add_ps(totals[2], totals[3]));
    lanes->total = _mm512_fmadd_ps(lanes->total, factor, total);
    lanes->largest = most;
    return factor;
}

/* The upper halves of two keys' weights, side by side. */
INLINE __m512i upper_halves(__m512 even, __m512 odd) {
    __m512i upper = _mm512_set1_epi32((int32_t)0xffff0000);
    return _mm512_or_si512(_mm512_and_si512((__m512i)odd, upper), _mm512_srli_epi32((__m512i)even, 16));
}

/* What the upper half leaves; its own upper half is rounded. */
INLINE __m512 rest_of(__m512 x) {
    __m512 rest = _mm512_sub_ps(x, (__m512)_mm512_and_si512((__m512i)x, _mm512_set1_epi32((int32_t)0xffff0000)));
    return (__m512)_mm512_add_epi32((__m512i)rest, _mm512_set1_epi32(0x8000));
}

/* Weights [count, lanes] as first factors: the sum of two bf16 has 16 of their bits. */
static void split_weights(Room *room, int64_t count) {
    for (int64_t step = 0; step < count / STEP; step++) {
        const __m512 *x = room->scores + step * STEP;
        __m512i high[SIDE], low[SIDE];
#pragma GCC unroll 16
        for (int i = 0; i < SIDE; i++) high[i] = upper_halves(x[2 * i], x[2 * i + 1]);
        turn(high);
        for (int i = 0; i < SIDE; i++) _mm512_store_si512(room->weights[0][step] + i * SIDE, high[i]);
#pragma GCC unroll 16
        for (int i = 0; i < SIDE; i++) low[i] = upper_halves(rest_of(x[2 * i]), rest_of(x[2 * i + 1]));
        turn(low);
        for (int i = 0; i < SIDE; i++) _mm512_store_si512(room->weights[1][step] + i * SIDE, low[i]);
    }
}

/* Lays out a row's values in a chunk, two keys' side by side, unless it is done already. Of PART values these are two
 * tiles, each with every other four of them. Behind the row's keys there are zeros. */
static void pair_values(Values *values, const Row *row, int64_t start, int64_t kv_head, char *copies,
                        const Call *call) {
    int64_t size = call->s.value_dim, stride = 0, count = count_of(row, start);
    if (values->start == start && share_keys(&values->row, row, start, call->s)) return;
    for (int64_t key = 0; key < count; key += STEP)
        for (int64_t half = 0; half < STEP; half += SIDE) {
            int64_t left = count - key - half;
            uint32_t *to = values->pairs + key / STEP * (size / SIDE) * TILE_WORDS + half / 2 * SIDE;
            const char *from = NULL;
            if (left > 0)
                from = find_tile(&stride, copies, call->values, row, start + key + half, left, kv_head, call->s, size);
            for (int64_t i = 0; i < SIDE; i += 2, to += SIDE, from += 2 * stride)
                for (int64_t part = 0; part < size / PART; part++) {
                    __m512i even = _mm512_setzero_si512(), odd = even;
                    if (left > i) even = _mm512_loadu_si512(from + part * LINE);
                    if (left > i + 1) odd = _mm512_loadu_si512(from + stride + part * LINE);
                    _mm512_store_si512(to + 2 * part * TILE_WORDS, _mm512_unpacklo_epi16(even, odd));
                    _mm512_store_si512(to + (2 * part + 1) * TILE_WORDS, _mm512_unpackhi_epi16(even, odd));
                }
        }
    values->row = *row, values->start = start;
}

#define ADD_VALUES(tile, register)                                                                                     \
    if (tile < num_tiles) {                                                                                            \
        _tile_loadd(register, pairs + tile * TILE_WORDS, LINE);                                                        \
        _tile_dpbf16ps(tile, 4, register);                                                                             \
        _tile_dpbf16ps(tile, 5, register);                                                                             \
    }
#define STORE_ADDED(tile) _tile_stored(tile, room->added + tile * SIDE, MAX_TILES * LINE)

/* Adds a chunk's weighted values to the sums of a group's lanes. */
static void add_values(Room *room, float *sums, const Group *group, const Values *values, const float *factors,
                       int64_t size) {
    for (int64_t first = 0; first < size / SIDE; first += MAX_TILES) {
        int64_t left = size / SIDE - first;
        int num_tiles = (int)(left < MAX_TILES ? left : MAX_TILES);
        FOR_SUMS(_tile_zero)
        for (int64_t step = 0; step < (group->count + STEP - 1) / STEP; step++) {
            const uint32_t *pairs = values->pairs + (step * (size / SIDE) + first) * TILE_WORDS;
            _tile_loadd(4, room->weights[0][step], LINE);
            _tile_loadd(5, room->weights[1][step], LINE);
            ADD_VALUES(0, 6)
            ADD_VALUES(1, 7)
            ADD_VALUES(2, 6)
            ADD_VALUES(3, 7)
        }
        FOR_SUMS(STORE_ADDED)
        WRITTEN();
        for (int lane = group->first_lane; lane < group->first_lane + group->num_lanes; lane++)
            for (int tile = 0; tile < num_tiles; tile++) {
                float *sum = sums + lane * size + (first + tile) * SIDE;
                __m512 added = _mm512_load_ps(room->added + (lane * MAX_TILES + tile) * SIDE);
                _mm512_store_ps(sum, _mm512_fmadd_ps(_mm512_load_ps(sum), _mm512_set1_ps(factors[lane]), added));
            }
    }
}

/* A pack's keys in a chunk, for the `num_kv` key heads from `kv_first` on. */
static void attend_chunk(Room *room, int64_t index, int64_t start, int64_t kv_first, int64_t num_kv, const Call *call) {
    const Pack *pack = &room->packs[index];
    Group groups[SIDE];
    int64_t wanted = pack->end - start < CHUNK ? pack->end - start : CHUNK, count = (wanted + STEP - 1) / STEP * STEP;
    int num_groups = find_groups(groups, pack, start, wanted, call);
    for (int64_t kv = 0; kv < num_kv; kv++) {
        Lanes *lanes = &room->lanes[index * num_kv + kv];
        float factors[SIDE];
        score_chunk(room, groups, num_groups, start, lanes->queries, kv_first + kv, call);
        _mm512_storeu_ps(factors, weigh(room->scores, lanes, pack, start, count, call->s.scale));
        split_weights(room, count);
        for (int i = 0; i < num_groups; i++) {
            pair_values(&room->values[kv], groups[i].row, start, kv_first + kv, room->copies, call);
            WRITTEN();
            add_values(room, lanes->sums, &groups[i], &room->values[kv], factors, call->s.value_dim);
        }
    }
}

static void describe(Pack *pack, int64_t first_row, const Call *call) {
    int64_t left = call->num_rows - first_row;
    int32_t firsts[SIDE], ends[SIDE];
    pack->first_row = first_row, pack->num_rows = left < call->rows_of_pack ? left : call->rows_of_pack;
    pack->first_key = INT64_MAX, pack->end = 0;
    for (int64_t i = 0; i < pack->num_rows; i++) {
        const Row *row = &call->rows[first_row + i];
        if (row->first < pack->first_key) pack->first_key = row->first;
        if (row->end > pack->end) pack->end = row->end;
        /* Lanes that nobody uses see what the last row does. */
        for (int64_t lane = i * call->group; lane < (i + 1 < pack->num_rows ? (i + 1) * call->group : SIDE); lane++)
            firsts[lane] = (int32_t)row->first, ends[lane] = (int32_t)row->end;
    }
    pack->firsts = _mm512_loadu_si512(firsts), pack->ends = _mm512_loadu_si512(ends);
}

/* Sums over their weights' totals. */
static void write_output(const Pack *pack, const Lanes *lanes, int64_t kv_head, const Call *call) {
    const __m512i in_order = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0); /* fours of the two tiles in turn */
    float totals[SIDE];
    _mm512_storeu_ps(totals, lanes->total);
    for (int64_t lane = 0; lane < pack->num_rows * call->group; lane++) {
        int64_t row = pack->first_row + lane / call->group, head = kv_head * call->group + lane % call->group;
        uint16_t *to = (uint16_t *)call->output + (row * call->s.num_heads + head) * call->s.value_dim;
        const float *sums = lanes->sums + lane * call->s.value_dim;
        const __m512 total = _mm512_set1_ps(totals[lane]);
        for (int64_t i = 0; i < call->s.value_dim; i += PART) {
            __m512 first = _mm512_div_ps(_mm512_load_ps(sums + i), total);
            __m512 second = _mm512_div_ps(_mm512_load_ps(sums + i + SIDE), total);
            _mm512_storeu_si512(to + i, _mm512_permutexvar_epi64(in_order, as_bf16(first, second)));
        }
    }
}

/* `num_packs` packs from row `first_row` on. Chunk by chunk, so that packs that share values meet them together. */
static void attend_packs(Room *room, int64_t first_row, int64_t num_packs, int64_t kv_first, int64_t num_kv,
                         const Call *call) {
    int64_t first_key = INT64_MAX, end = 0;
    for (int64_t i = 0; i < num_packs; i++) {
        Pack *pack = &room->packs[i];
        describe(pack, first_row + i * call->rows_of_pack, call);
        if (pack->first_key < first_key) first_key = pack->first_key;
        if (pack->end > end) end = pack->end;
        for (int64_t kv = 0; kv < num_kv; kv++) {
            Lanes *lanes = &room->lanes[i * num_kv + kv];
            lanes->largest = _mm512_set1_ps(-INFINITY), lanes->total = _mm512_setzero_ps();
            memset(lanes->sums, 0, sizeof(float) * SIDE * call->s.value_dim);
            load_queries(lanes->queries, pack, kv_first + kv, call);
        }
    }
    for (int64_t kv = 0; kv < num_kv; kv++) room->values[kv].start = -1;
    for (int64_t start = first_key / CHUNK * CHUNK; start < end; start += CHUNK)
        for (int64_t i = 0; i < num_packs; i++)
            if (room->packs[i].first_key < start + CHUNK && start < room->packs[i].end)
                attend_chunk(room, i, start, kv_first, num_kv, call);
    for (int64_t i = 0; i < num_packs * num_kv; i++)
        write_output(&room->packs[i / num_kv], &room->lanes[i], kv_first + i % num_kv, call);
}

/* Whole lines of memory, of which so many bytes are used; without memory they are only counted. */
INLINE void *take(char *memory, int64_t *used, int64_t bytes) {
    char *mine = memory == NULL ? NULL : memory + *used;
    *used += (bytes + LINE - 1) / LINE * LINE;
    return mine;
}

/* Gives the room its memory, and returns how many bytes that is. */
static int64_t furnish(Room *room, char *memory, int64_t num_packs, int64_t num_kv, Shape s) {
    int64_t used = 0;
    Lanes *lanes = take(memory, &used, sizeof(Lanes) * num_packs * num_kv);
    Values *values = take(memory, &used, sizeof(Values) * num_kv);
    char *copies = take(memory, &used, MAX_TILES * SIDE * (s.dim > s.value_dim ? s.dim : s.value_dim) * 2);
    for (int64_t i = 0; i < num_packs * num_kv; i++) {
        uint32_t *queries = take(memory, &used, s.dim / PART * TILE_WORDS * WORD);
        float *sums = take(memory, &used, SIDE * s.value_dim * WORD);
        if (memory != NULL) lanes[i].queries = queries, lanes[i].sums = sums;
    }
    for (int64_t kv = 0; kv < num_kv; kv++) {
        uint32_t *pairs = take(memory, &used, CHUNK / 2 * s.value_dim * WORD);
        if (memory != NULL) values[kv].pairs = pairs;
    }
    room->lanes = lanes, room->values = values, room->copies = copies;
    return used;
}

static int attend_all(const Call *call) {
    int64_t all_packs = (call->num_rows + call->rows_of_pack - 1) / call->rows_of_pack, failed = 0;
    int64_t num_threads = omp_get_max_threads(), num_packs = all_packs / (TASKS * num_threads);
    num_packs = num_packs < 1 ? 1 : num_packs < MAX_PACKS ? num_packs : MAX_PACKS;
    int64_t num_slices = (all_packs + num_packs - 1) / num_packs;
    /* With few packs the threads share each one's key heads. */
    int64_t num_parts = num_slices < num_threads ? call->s.num_kv_heads : 1, num_kv = call->s.num_kv_heads / num_parts;
#pragma omp parallel reduction(| : failed)
    {
        Room room;
        int64_t bytes = furnish(&room, NULL, num_packs, num_kv, call->s);
        char *memory = aligned_alloc(LINE, bytes);
        failed = memory == NULL;
        if (!failed) {
            furnish(&room, memory, num_packs, num_kv, call->s);
            shape_tiles(SIDE);
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < num_slices * num_parts; task++) {
            int64_t first = task / num_parts * num_packs, left = all_packs - first;
            if (memory != NULL)
                attend_packs(&room, first * call->rows_of_pack, left < num_packs ? left : num_packs,
                             task % num_parts * num_kv, num_kv, call);
        }
        if (memory != NULL) release_tiles();
        free(memory);
    }
    return (int)failed;
}

/* Query [rows, heads, dim], keys [slots, kv_heads, dim], values [slots, kv_heads, value_dim]; of each run of a
 * sequence's rows blocks [runs, max_blocks], num_keys [runs] in the cache, the last row's own included, and first_rows
 * [runs + 1]; writes output [rows, heads, value_dim]. At most 16 heads may share a key head, and dim and value_dim are
 * multiples of 32. Returns 0, or 1 where memory ran out. */
int varlen_attention_amx(void *output, const void *query, const void *keys, const void *values, const int32_t *blocks,
                    const int32_t *num_keys, const int32_t *first_rows, int64_t num_runs, const Shape *shape) {
    int64_t group = shape->num_heads / shape->num_kv_heads, num_rows = first_rows[num_runs];
    Row *rows = malloc(sizeof(Row) * num_rows);
    if (rows == NULL) return 1;
    for (int64_t run = 0; run < num_runs; run++)
        for (int64_t row = first_rows[run]; row < first_rows[run + 1]; row++) {
            int64_t end = num_keys[run] - (first_rows[run + 1] - 1 - row);
            int64_t first = shape->window > 0 && end > shape->window ? end - shape->window : 0;
            rows[row] = (Row){blocks + run * shape->max_blocks, num_keys[run], first, end};
        }
    const Call call = {output, query, keys, values, rows, num_rows, group, SIDE / group, *shape};
    int failed = attend_all(&call);
    free(rows);
    return failed;
}

#endif
