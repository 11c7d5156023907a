/* Linear layers in bfloat16: x . w^T + bias, and silu(x . g^T) * (x . u^T). */

#include "vector.h"

#define ROWS 32
#define ROWS_AT_ONCE 128
#define GROUP_BYTES (1 << 20) /* of a packed weight that stay in a core's cache at once */

/* w [outer, inner] as columns of 16, each [inner / 32] tiles. */
EXPORT void pack_weight_bf16(const bf16 *w, long outer, long inner, bf16 *to, long threads)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long n = 0; n < outer; n += COLUMNS)
        pack_rows_bf16(w + n * inner, inner, outer - n, inner, to + n * inner);
}

typedef struct {
    const bf16 *x;
    long x_row;
    const bf16 *first, *second; /* packed: the two halves of a block's columns */
    const bf16 *bias, *residual;
    bf16 *out;
    long out_row, rows, outer, inner;
    int gated, curved, isa; /* silu and a product of halves; gelu */
} Product;

/* Rows [skip, 32) of a block's sums, c, which starts at row and column. */
static void finish(const Product *p, const float *c, long row, long skip, long column)
{
    for (long r = skip; r < ROWS; r++) {
        __m512 left = _mm512_load_ps(c + r * 32), right = _mm512_load_ps(c + r * 32 + 16);
        bf16 *to = p->out + (row + r) * p->out_row + column;
        if (p->gated) {
            store_bf16(to, _mm512_mul_ps(_mm512_mul_ps(left, sigmoid(left)), right));
            continue;
        }
        if (p->bias) {
            left = _mm512_add_ps(left, load_bf16(p->bias + column));
            right = _mm512_add_ps(right, load_bf16(p->bias + column + 16));
        }
        if (p->curved) {
            left = gelu(left);
            right = gelu(right);
        }
        if (p->residual) {
            const bf16 *more = p->residual + (row + r) * p->out_row + column;
            left = _mm512_add_ps(left, load_bf16(more));
            right = _mm512_add_ps(right, load_bf16(more + 16));
        }
        store_bf16(to, left);
        store_bf16(to + 16, right);
    }
}

/* Rows [from, to) by columns [first, last). The last block starts early enough to be whole. */
static void part(const Product *p, long from, long to, long first, long last)
{
    float c[ROWS * 32] __attribute__((aligned(64)));
    long width = p->gated ? 16 : 32, steps = p->inner / STEP;
    long group = GROUP_BYTES / (2 * 32 * p->inner) * width;
    group = group < width ? width : group;
    for (long begin = first; begin < last; begin += group) {
        long end = begin + group < last ? begin + group : last;
        for (long row = from; row < to; row += ROWS) {
            long start = row + ROWS <= p->rows ? row : p->rows - ROWS;
            for (long n = begin; n < end; n += width) {
                const bf16 *b0 = p->first + n * p->inner;
                const bf16 *b1 = p->gated ? p->second + n * p->inner : b0 + COLUMNS * p->inner;
                block_bf16(p->isa, p->x + start * p->x_row, p->x_row, b0, b1, steps, c, 32, 0);
                finish(p, c, start, row - start, n);
            }
        }
    }
}

/* The output in rectangles, which threads take one after another: one that has to wait for its core
   (a server has other work, too) holds up no other. */
static void run(const Product *p, long threads)
{
    long blocks = (p->rows + ROWS - 1) / ROWS, width = p->gated ? 16 : 32;
    long columns = p->outer / width;
    long down = (blocks + ROWS_AT_ONCE / ROWS - 1) / (ROWS_AT_ONCE / ROWS);
    long across = down < threads ? (threads + down - 1) / down : 1;
    across = across < columns ? across : columns;
#pragma omp parallel num_threads(threads)
    {
        take_tiles(p->isa);
#pragma omp for schedule(dynamic)
        for (long i = 0; i < down * across; i++) {
            long y = i % down, x = i / down;
            long from = blocks * y / down * ROWS, to = blocks * (y + 1) / down * ROWS;
            part(p, from, to < p->rows ? to : p->rows, columns * x / across * width,
                 columns * (x + 1) / across * width);
        }
        give_tiles_back(p->isa);
    }
}

/* out [rows, outer] = f(x [rows, inner] . w^T + bias) + residual, f being gelu or nothing; outer
   and inner multiples of 32, at least 32 rows. out and residual are dense. */
EXPORT void linear_bf16(const bf16 *x, long x_row, const bf16 *packed, const bf16 *bias,
                        const bf16 *residual, long curved, bf16 *out, long rows, long outer,
                        long inner, long threads, long isa)
{
    Product p = {.x = x,
                 .x_row = x_row,
                 .first = packed,
                 .bias = bias,
                 .residual = residual,
                 .out = out,
                 .out_row = outer,
                 .rows = rows,
                 .outer = outer,
                 .inner = inner,
                 .curved = curved,
                 .isa = isa};
    run(&p, threads);
}

/* out [rows, outer] = silu(x . g^T) * (x . u^T). */
EXPORT void gated_linear_bf16(const bf16 *x, long x_row, const bf16 *packed_g, const bf16 *packed_u,
                              bf16 *out, long rows, long outer, long inner, long threads, long isa)
{
    Product p = {.x = x,
                 .x_row = x_row,
                 .first = packed_g,
                 .second = packed_u,
                 .out = out,
                 .out_row = outer,
                 .rows = rows,
                 .outer = outer,
                 .inner = inner,
                 .gated = 1,
                 .isa = isa};
    run(&p, threads);
}
