/* Linear layers of one kind of ELEMENT. */

/* w [outer, inner] as columns of 16, each [inner / 32] tiles. */
EXPORT void OF(pack_weight)(const ELEMENT *w, long outer, long inner, ELEMENT *to, long threads)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long n = 0; n < outer; n += COLUMNS)
        OF(pack_rows)(w + n * inner, inner, outer - n, inner, to + n * inner);
}

typedef struct {
    const ELEMENT *x;
    long x_row;
    const ELEMENT *first, *second; /* packed: the two halves of a block's columns */
    const ELEMENT *bias, *residual;
    ELEMENT *out;
    long out_row, rows, outer, inner;
    int gated, curved, isa; /* silu and a product of halves; gelu */
} OF(Product);

/* Rows [skip, 32) of a block's sums, c, which starts at row and column. What they become is told by
   constants, so that the loop decides nothing. */
static inline __attribute__((always_inline)) void OF(finish_as)(const OF(Product) * p,
                                                                const float *c, long row, long skip,
                                                                long column, int gated, int curved,
                                                                int adds)
{
    floats b0 = each(0), b1 = each(0);
    if (p->bias) {
        b0 = OF(load)(p->bias + column);
        b1 = OF(load)(p->bias + column + 16);
    }
    ELEMENT *to = p->out + (row + skip) * p->out_row + column;
    const ELEMENT *more = adds ? p->residual + (row + skip) * p->out_row + column : 0;
    for (long r = skip; r < ROWS; r++) {
        floats left = load_f32(c + r * 32), right = load_f32(c + r * 32 + 16);
        if (gated) {
            OF(store)(to, multiply(multiply(left, sigmoid(left)), right));
        } else {
            left = add(left, b0);
            right = add(right, b1);
            if (curved) {
                left = gelu(left);
                right = gelu(right);
            }
            if (adds) {
                left = add(left, OF(load)(more));
                right = add(right, OF(load)(more + 16));
                more += p->out_row;
            }
            OF(store)(to, left);
            OF(store)(to + 16, right);
        }
        to += p->out_row;
    }
}

static void OF(finish)(const OF(Product) * p, const float *c, long row, long skip, long column)
{
    if (p->gated)
        OF(finish_as)(p, c, row, skip, column, 1, 0, 0);
    else if (p->curved)
        OF(finish_as)(p, c, row, skip, column, 0, 1, p->residual != 0);
    else if (p->residual)
        OF(finish_as)(p, c, row, skip, column, 0, 0, 1);
    else
        OF(finish_as)(p, c, row, skip, column, 0, 0, 0);
}

/* Rows [from, to) by columns [first, last). The last block starts early enough to be whole. */
static void OF(part)(const OF(Product) * p, long from, long to, long first, long last)
{
    float c[ROWS * 32] __attribute__((aligned(64)));
    long width = p->gated ? 16 : 32, terms = OF(terms_at_once)(p->inner);
    long group = GROUP_BYTES / ((long)sizeof(ELEMENT) * 32 * p->inner) * width;
    group = group < width ? width : group;
    for (long begin = first; begin < last; begin += group) {
        long end = begin + group < last ? begin + group : last;
        for (long row = from; row < to; row += ROWS) {
            long start = row + ROWS <= p->rows ? row : p->rows - ROWS, x_row = 0;
            const OF(factor) *x = 0;
            for (long n = begin; n < end; n += width) {
                const ELEMENT *b0 = p->first + n * p->inner;
                const ELEMENT *b1 = p->gated ? p->second + n * p->inner : b0 + COLUMNS * p->inner;
                for (long k = 0; k < p->inner; k += terms) {
                    long some = k + terms < p->inner ? terms : p->inner - k;
                    if (n == begin || terms < p->inner) {
                        x_row = p->x_row;
                        x = OF(factor_of)(p->x + start * x_row + k, &x_row, some);
                    }
                    OF(block)(p->isa, ROWS, x, x_row, b0 + k * COLUMNS, b1 + k * COLUMNS,
                              some / STEP, c, 32, k > 0);
                }
                OF(finish)(p, c, start, row - start, n);
            }
        }
    }
}

/* The output in rectangles, which threads take one after another: one that has to wait for its core
   (a server has other work, too) holds up no other. Towards the end they become smaller, so that no
   thread waits long for the last. */
static void OF(run)(const OF(Product) * p, long threads)
{
    long down = (p->rows + ROWS - 1) / ROWS, width = p->gated ? 16 : 32;
    long columns = p->outer / width, across = down < threads ? (2 * threads + down - 1) / down : 2;
    across = across < columns ? across : columns;
    long next = 0;
#pragma omp parallel num_threads(threads)
    {
        take_tiles(p->isa);
        long count;
        for (long i; (i = take(&next, down * across, across, threads, &count)) >= 0;) {
            long y = i / across, x = i % across, to = (y + (count + across - 1) / across) * ROWS;
            OF(part)(p, y * ROWS, to < p->rows ? to : p->rows, columns * x / across * width,
                     columns * (count < across ? x + 1 : across) / across * width);
        }
        give_tiles_back(p->isa);
    }
}

/* out [rows, outer] = f(x [rows, inner] . w^T + bias) + residual, f being gelu or nothing; outer
   and inner multiples of 32, at least 32 rows. out and residual are dense. */
EXPORT void OF(linear)(const ELEMENT *x, long x_row, const ELEMENT *packed, const ELEMENT *bias,
                       const ELEMENT *residual, long curved, ELEMENT *out, long rows, long outer,
                       long inner, long threads, long isa)
{
    OF(Product)
    p = {.x = x,
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
    OF(run)(&p, threads);
}

/* out [rows, outer] = silu(x . g^T) * (x . u^T). */
EXPORT void OF(gated_linear)(const ELEMENT *x, long x_row, const ELEMENT *packed_g,
                             const ELEMENT *packed_u, ELEMENT *out, long rows, long outer,
                             long inner, long threads, long isa)
{
    OF(Product)
    p = {.x = x,
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
    OF(run)(&p, threads);
}
