/* The kernel of attention.c for one type of ELEMENT. */

typedef struct {
    OF(factor) query[TILE * 256] __attribute__((aligned(64)));
    float logits[TILE * ROW] __attribute__((aligned(64))); /* weights in the end */
    float sums[TILE * (256 + 16)] __attribute__((aligned(64)));
    float highest[TILE], total[TILE];
} OF(Scratch);

/* From a row of weights to the next. */
#define WEIGHTS_ROW (ROW * (long)(sizeof(float) / sizeof(OF(factor))))

static ELEMENT *OF(packed_keys)(const Attention *a, long head, long tile)
{
    return (ELEMENT *)a->packed + (head * a->tiles + tile) * 2 * TILE * wide(a);
}

static ELEMENT *OF(packed_values)(const Attention *a, long head, long tile)
{
    return OF(packed_keys)(a, head, tile) + TILE * wide(a);
}

static void OF(pack_tile)(const Attention *a, long head, long tile)
{
    long row = a->tile_rows[tile], length = a->tile_lengths[tile], dim = wide(a);
    const ELEMENT *key = (const ELEMENT *)a->key + row * a->key_row + head * a->key_head;
    const ELEMENT *value = (const ELEMENT *)a->value + row * a->value_row + head * a->value_head;
    ELEMENT *keys = OF(packed_keys)(a, head, tile), *values = OF(packed_values)(a, head, tile);
    for (long n = 0; n < TILE; n += COLUMNS)
        OF(pack_rows)(key + n * a->key_row, a->key_row, length - n, a->dim, keys + n * dim);
    for (long column = 0; column < dim; column += COLUMNS)
        for (long step = 0; step < TILE; step += STEP)
            OF(pack_terms)(value + step * a->value_row + column, a->value_row, length - step,
                           a->dim - column, values + column * TILE + step * COLUMNS);
}

/* The highest of a row's logits in a block of keys, [start, stop) of which are seen, in units of
   log2, goes to ``highest``; returns what earlier sums are to be multiplied with. */
static float OF(reach)(const Attention *a, float *logits, long start, long stop, long width,
                       float unit, float *highest)
{
    floats most = each(MINUS_INFINITY);
    if (a->softcap)
        cap_row(logits, width, a->scale / a->softcap);
    for (long n = start > 0 ? start / 16 * 16 : 0; n < width && n < stop; n += 16) {
        floats x = load_f32(logits + n);
        most = start <= n && n + 16 <= stop ? larger(most, x)
                                            : larger_some(most, between(start - n, stop - n), x);
    }
    float before = *highest, now = largest_of(most) * unit;
    if (!(now > before))
        return 1;
    *highest = now;
    return before == MINUS_INFINITY ? 0 : first_of(exponential2(each(before - now)));
}

/* Logits of the same row to weights in their place, 2^(logit unit - highest), and their sum. */
static float OF(weigh)(float *logits, long start, long stop, long width, float unit, float highest)
{
    OF(factor) *weights = (OF(factor) *)logits;
    if (highest == MINUS_INFINITY) { /* nothing seen yet */
        memset(weights, 0, sizeof *weights * width);
        return 0;
    }
    floats by = each(unit), shift = each(highest), sum = each(0);
    for (long n = 0; n < width; n += 16) {
        floats x = multiply_subtract(load_f32(logits + n), by, shift);
        floats weight = exponential2(x);
        if (n < start || stop < n + 16)
            weight = only(between(start - n, stop - n), weight);
        sum = add(sum, OF(store_factor)(weights + n, weight));
    }
    return sum_of(sum);
}

/* logits [32, width] of query rows q with the keys from base on. */
static void OF(multiply_keys)(const Attention *a, const int32_t *chain, long key_head,
                              const OF(factor) * q, long rows, long base, long width, float *logits)
{
    long dim = wide(a);
    for (long n = 0; n < width; n += STEP) {
        const ELEMENT *keys =
            OF(packed_keys)(a, key_head, chain[(base + n) / TILE]) + n % TILE * dim;
        OF(block)(a->isa, rows, q, dim, keys, keys + COLUMNS * dim, dim / STEP, logits + n, ROW, 0);
    }
}

/* sums [32, dim] (+)= weights [32, width] . the values from base on. */
static void OF(add_values)(const Attention *a, const int32_t *chain, long key_head,
                           const OF(factor) * weights, long rows, long base, long width,
                           float *sums, int more)
{
    for (long d = 0; d < wide(a); d += 2 * COLUMNS)
        for (long n = 0; n < width; n += TILE) {
            const ELEMENT *values =
                OF(packed_values)(a, key_head, chain[(base + n) / TILE]) + d * TILE;
            OF(block)(a->isa, rows, weights + n, WEIGHTS_ROW, values, values + COLUMNS * TILE,
                      width - n > STEP ? 2 : 1, sums + d, wide(a) + 16, more || n);
        }
}

static void OF(attend)(const Attention *a, long task, long unit, OF(Scratch) * own)
{
    long group = a->heads / a->key_heads, dim = wide(a), sums_row = dim + 16;
    long rows = a->stacked ? group : a->task_counts[task];
    long key_head = a->stacked ? unit : unit / group, head = a->stacked ? unit * group : unit;
    long query_step = a->stacked ? a->query_head : a->query_row;
    long out_step = a->stacked ? a->out_head : a->out_row;
    const int32_t *chain = a->chains + a->chain_starts[task];
    const ELEMENT *query = a->query;
    ELEMENT *out = a->out;
    query += a->task_rows[task] * a->query_row + head * a->query_head;
    out += a->task_rows[task] * a->out_row + head * a->out_head;

    memset(own->query, 0, sizeof *own->query * (rows > HALF ? TILE : HALF) * dim);
    for (long i = 0; i < rows; i++) {
        OF(keep)(own->query + i * dim, query + i * query_step, a->dim);
        own->highest[i] = MINUS_INFINITY;
        own->total[i] = 0;
    }
    int more = 0;
    float by = (a->softcap ? a->softcap : a->scale) * LOG2_E;
    long last = seen(a, task, rows - 1).stop;
    for (long base = seen(a, task, 0).start / BLOCK * BLOCK; base < last; base += BLOCK) {
        for (long begin = 0; begin < rows; begin += HALF) {
            long end = begin + HALF < rows ? begin + HALF : rows;
            long keys = seen(a, task, end - 1).stop - base;
            long width = keys < BLOCK ? (keys + STEP - 1) / STEP * STEP : BLOCK;
            if (width <= 0)
                continue;
            OF(multiply_keys)(a, chain, key_head, own->query + begin * dim, end - begin, base,
                              width, own->logits + begin * ROW);
            for (long i = begin; i < end; i++) {
                Range range = seen(a, task, i);
                float again = OF(reach)(a, own->logits + i * ROW, range.start - base,
                                        range.stop - base, width, by, own->highest + i);
                if (again != 1) {
                    own->total[i] *= again;
                    if (more)
                        scale_row(own->sums + i * sums_row, dim, again);
                }
            }
            for (long i = begin; i < end; i++) {
                Range range = seen(a, task, i);
                own->total[i] += OF(weigh)(own->logits + i * ROW, range.start - base,
                                           range.stop - base, width, by, own->highest[i]);
            }
            OF(add_values)(a, chain, key_head, (OF(factor) *)(own->logits + begin * ROW),
                           end - begin, base, width, own->sums + begin * sums_row, more);
        }
        more = 1;
    }
    /* From here on the inverse: a row has many elements to divide. */
    for (long i = 0; i < rows; i += 16)
        store_f32(own->total + i, divide(each(1), load_f32(own->total + i)));
    for (long i = 0; i < rows; i++)
        for (long d = 0; d < a->dim; d += 16) {
            floats sums = load_f32(own->sums + i * sums_row + d);
            OF(store_some)(out + i * out_step + d, multiply(sums, each(own->total[i])), a->dim - d);
        }
}

EXPORT void OF(attention)(const Attention *a)
{
    long units = a->stacked ? a->key_heads : a->heads;
#pragma omp parallel num_threads(a->threads)
    {
        static _Thread_local OF(Scratch) own;
        take_tiles(a->isa);
#pragma omp for schedule(dynamic)
        for (long i = 0; i < a->key_heads * a->tiles; i++)
            OF(pack_tile)(a, i / a->tiles, i % a->tiles);
#pragma omp for schedule(dynamic)
        for (long i = 0; i < a->tasks * units; i++)
            OF(attend)(a, i / units, i % units, &own);
        give_tiles_back(a->isa);
    }
}
#undef WEIGHTS_ROW
