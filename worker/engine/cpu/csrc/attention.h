/* The sizes that both attention kernels take. */
#ifndef NOCTURNE_ATTENTION_H
#define NOCTURNE_ATTENTION_H

#include <stdint.h>

typedef struct {
    int64_t num_heads, num_kv_heads, dim, value_dim, block_size, max_blocks;
    int64_t window;       /* keys that a row sees, itself included; 0 for all */
    int64_t query_stride; /* elements from one row's query to the next */
    float scale;
} AttentionShape;

#endif
