/* The sizes that both attention kernels take. */
#ifndef NOCTURNE_ATTENTION_H
#define NOCTURNE_ATTENTION_H

#include <stdint.h>

typedef struct {
    int64_t num_heads, num_kv_heads, dim, value_dim, block_size, max_blocks;
    int64_t window;       /* keys that a row sees, itself included; 0 for all */
    int64_t chunk;        /* keys of a chunk, of which a row sees its own alone; 0 for all */
    int64_t query_stride; /* elements from one row's query to the next */
    float scale;
    const float *sinks; /* a score of each query head that has no value; NULL for none */
} AttentionShape;

/* The first key that a row sees whose last one is `end_key - 1`. */
static inline int64_t first_key_of(int64_t end_key, AttentionShape s) {
    int64_t in_window = s.window > 0 && end_key > s.window ? end_key - s.window : 0;
    int64_t in_chunk = s.chunk > 0 ? (end_key - 1) / s.chunk * s.chunk : 0;
    return in_window > in_chunk ? in_window : in_chunk;
}

#endif
