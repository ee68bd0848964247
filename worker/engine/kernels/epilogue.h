/* What follows a product, before its one rounding. */
#ifndef NOCTURNE_EPILOGUE_H
#define NOCTURNE_EPILOGUE_H

#include "numbers.h"

enum { NOTHING, SWISH, TIMES, PLUS };

/* Adds the bias to up to 512 columns of a row, if there is one, and stores y, y * sigmoid(y), y * other or y + other.
 * y is overwritten. */
INLINE void finish_columns(void *output, float *y, const float *bias, const void *other, int64_t count, int64_t what,
                           int is_bf16) {
    float z[512];
    if (bias)
        for (int64_t i = 0; i < count; i++) y[i] += bias[i];
    if (what == SWISH) {
        for (int64_t i = 0; i < count; i++) z[i] = exp_of_negative(-fabsf(y[i]));
        for (int64_t i = 0; i < count; i++) y[i] *= (y[i] < 0 ? z[i] : 1.0f) / (1.0f + z[i]);
    } else if (what != NOTHING) {
        load(z, other, count, is_bf16);
        if (what == TIMES)
            for (int64_t i = 0; i < count; i++) y[i] *= z[i];
        else
            for (int64_t i = 0; i < count; i++) y[i] += z[i];
    }
    store(output, y, count, is_bf16);
}

#endif
