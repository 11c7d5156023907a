/* What attention.c, linear.c and rows.c offer to each other and to layer.c. */

#ifndef SUMZERO_KERNELS_H
#define SUMZERO_KERNELS_H

#include "vector.h"

typedef struct {
    const void *query, *key, *value;
    void *out;
    long query_row, query_head, key_row, key_head, value_row, value_head, out_row, out_head;
    long heads, key_heads, dim;
    /* The tiles of the batch: first row, and number of rows. */
    const int32_t *tile_rows, *tile_lengths;
    long tiles;
    /* The tasks: first query row, rows, position of the first, and the tiles whose keys they see
       (from chain_starts[t] on in chains), chain_keys[t] keys altogether. */
    const int32_t *task_rows, *task_counts, *task_positions, *chain_starts, *chain_keys, *chains;
    long tasks;
    long causal, window, stacked;
    float scale, softcap;
    void *packed; /* key_heads * tiles * 2 * 64 * (dim rounded up to 32) */
    long threads, isa;
} Attention;

#define DECLARE(ELEMENT, name)                                                                     \
    EXPORT void rms_norm_##name(const ELEMENT *x, const ELEMENT *weight, ELEMENT *out, long rows,  \
                                long dim, float epsilon, long threads);                            \
    EXPORT void layer_norm_##name(const ELEMENT *x, const ELEMENT *weight, const ELEMENT *bias,    \
                                  ELEMENT *out, long rows, long dim, float epsilon, long threads); \
    EXPORT void rotate_##name(ELEMENT *x, const ELEMENT *cosine, const ELEMENT *sine, long rows,   \
                              long heads, long dim, long threads);                                 \
    EXPORT void attention_##name(const Attention *a);                                              \
    EXPORT void linear_##name(const ELEMENT *x, long x_row, const ELEMENT *packed,                 \
                              const ELEMENT *bias, const ELEMENT *residual, long curved,           \
                              ELEMENT *out, long rows, long outer, long inner, long threads,       \
                              long isa);                                                           \
    EXPORT void gated_linear_##name(const ELEMENT *x, long x_row, const ELEMENT *packed_g,         \
                                    const ELEMENT *packed_u, ELEMENT *out, long rows, long outer,  \
                                    long inner, long threads, long isa);

DECLARE(bf16, bf16)
DECLARE(float, f32)

#endif
