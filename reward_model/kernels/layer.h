/* The kernels of layer.c for one type of ELEMENT. */

/* out = x . w^T + bias, + residual. */
static void OF(project)(const Layer *l, const Projection *by, const ELEMENT *x, long inner,
                        const ELEMENT *residual, int curved, ELEMENT *out, long outer)
{
    const Attention *a = l->attention;
    OF(linear)(x, inner, by->weight, by->bias, residual, curved, out, l->rows, outer, inner,
               a->threads, a->isa);
}

static void OF(turn)(const Layer *l, const Norm *norm, ELEMENT *heads, long count)
{
    long dim = l->attention->dim, threads = l->attention->threads;
    if (norm->weight)
        OF(rms_norm)(heads, norm->weight, heads, l->rows * count, dim, norm->epsilon, threads);
    if (l->cosine)
        OF(rotate)(heads, l->cosine, l->sine, l->rows, count, dim, threads);
}

/* Projections of x, rotated, and attention; gives [rows, heads, dim] in scratch of that and
   [rows, heads + 2 key heads, dim]. */
static ELEMENT *OF(attend_all)(const Layer *l, const ELEMENT *x, ELEMENT *scratch)
{
    Attention a = *l->attention;
    long wide = a.heads * a.dim, narrow = a.key_heads * a.dim;
    ELEMENT *query = scratch, *key = query + l->rows * wide, *value = key + l->rows * narrow;
    ELEMENT *context = value + l->rows * narrow;
    OF(project)(l, &l->query, x, l->width, 0, 0, query, wide);
    OF(project)(l, &l->key, x, l->width, 0, 0, key, narrow);
    OF(project)(l, &l->value, x, l->width, 0, 0, value, narrow);
    OF(turn)(l, &l->query_norm, query, a.heads);
    OF(turn)(l, &l->key_norm, key, a.key_heads);
    a.query = query;
    a.key = key;
    a.value = value;
    a.out = context;
    a.query_row = a.out_row = wide;
    a.key_row = a.value_row = narrow;
    a.query_head = a.key_head = a.value_head = a.out_head = a.dim;
    OF(attention)(&a);
    memset(context + l->attended * wide, 0, sizeof(ELEMENT) * (l->rows - l->attended) * wide);
    return context;
}

/* y = x + attention(before(x)), out = y + down(silu(gate(after(y))) * up(after(y))). */
EXPORT void OF(decoder_layer)(const Layer *l)
{
    const Attention *a = l->attention;
    const ELEMENT *x = l->x;
    ELEMENT *normed = l->scratch, *y = normed + l->rows * l->width, *more = y + l->rows * l->width;
    OF(rms_norm)(x, l->before.weight, normed, l->rows, l->width, l->before.epsilon, a->threads);
    const ELEMENT *context = OF(attend_all)(l, normed, more);
    OF(project)(l, &l->context, context, a->heads * a->dim, x, 0, y, l->width);
    OF(rms_norm)(y, l->after.weight, normed, l->rows, l->width, l->after.epsilon, a->threads);
    OF(gated_linear)(normed, l->width, l->gate.weight, l->up.weight, more, l->rows, l->inner,
                     l->width, a->threads, a->isa);
    OF(project)(l, &l->down, more, l->inner, y, 0, l->out, l->width);
}

/* y = before(x + attention(x)), out = after(y + down(gelu(up(y)))). */
EXPORT void OF(encoder_layer)(const Layer *l)
{
    const Attention *a = l->attention;
    const ELEMENT *x = l->x;
    ELEMENT *sum = l->scratch, *y = sum + l->rows * l->width, *more = y + l->rows * l->width;
    const ELEMENT *context = OF(attend_all)(l, x, more);
    OF(project)(l, &l->context, context, a->heads * a->dim, x, 0, sum, l->width);
    OF(layer_norm)(sum, l->before.weight, l->before.bias, y, l->rows, l->width, l->before.epsilon,
                   a->threads);
    OF(project)(l, &l->up, y, l->width, 0, 1, more, l->inner);
    OF(project)(l, &l->down, more, l->inner, y, 0, sum, l->width);
    OF(layer_norm)(sum, l->after.weight, l->after.bias, l->out, l->rows, l->width, l->after.epsilon,
                   a->threads);
}
