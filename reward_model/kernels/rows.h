/* The kernels of rows.c for one type of ELEMENT. */

/* out = weight * (x / sqrt(mean x^2 + epsilon)); dim a multiple of 16. */
EXPORT void OF(rms_norm)(const ELEMENT *x, const ELEMENT *weight, ELEMENT *out, long rows, long dim,
                         float epsilon, long threads)
{
#pragma omp parallel for num_threads(threads) schedule(dynamic, ROWS_AT_ONCE)
    for (long r = 0; r < rows; r++) {
        const ELEMENT *from = x + r * dim;
        ELEMENT *to = out + r * dim;
        floats squares = each(0);
        for (long d = 0; d < dim; d += 16) {
            floats y = OF(load)(from + d);
            squares = multiply_add(y, y, squares);
        }
        float mean = sum_of(squares) / (float)dim;
        floats scale = each(1.0f / sqrtf(mean + epsilon));
        for (long d = 0; d < dim; d += 16) {
            floats y = OF(round)((multiply(OF(load)(from + d), scale)));
            OF(store)(to + d, multiply(y, OF(load)(weight + d)));
        }
    }
}

/* weight * (x - mean x) / sqrt(variance of x + epsilon) + bias; x may be where it goes. */
static void OF(layer_norm_row)(const ELEMENT *x, const ELEMENT *weight, const ELEMENT *bias,
                               ELEMENT *to, long dim, float epsilon)
{
    floats sum = each(0), squares = each(0);
    for (long d = 0; d < dim; d += 16)
        sum = add(sum, OF(load)(x + d));
    floats mean = each(sum_of(sum) / (float)dim);
    for (long d = 0; d < dim; d += 16) {
        floats y = subtract(OF(load)(x + d), mean);
        squares = multiply_add(y, y, squares);
    }
    float variance = sum_of(squares) / (float)dim;
    floats scale = each(1.0f / sqrtf(variance + epsilon));
    for (long d = 0; d < dim; d += 16) {
        floats y = multiply(subtract(OF(load)(x + d), mean), scale);
        floats shift = bias ? OF(load)(bias + d) : each(0);
        OF(store)(to + d, multiply_add(y, OF(load)(weight + d), shift));
    }
}

/* The same for all rows; bias may be NULL. */
EXPORT void OF(layer_norm)(const ELEMENT *x, const ELEMENT *weight, const ELEMENT *bias,
                           ELEMENT *out, long rows, long dim, float epsilon, long threads)
{
#pragma omp parallel for num_threads(threads) schedule(dynamic, ROWS_AT_ONCE)
    for (long r = 0; r < rows; r++)
        OF(layer_norm_row)(x + r * dim, weight, bias, out + r * dim, dim, epsilon);
}

/* The same for words[ids] + types[kinds] + places[positions]. */
EXPORT void OF(embed)(const ELEMENT *words, const ELEMENT *types, const ELEMENT *places,
                      const int64_t *ids, const int64_t *kinds, const int64_t *positions,
                      const ELEMENT *weight, const ELEMENT *bias, ELEMENT *out, long rows, long dim,
                      float epsilon, long threads)
{
#pragma omp parallel for num_threads(threads) schedule(dynamic, ROWS_AT_ONCE)
    for (long r = 0; r < rows; r++) {
        const ELEMENT *word = words + ids[r] * dim, *type = types + kinds[r] * dim;
        const ELEMENT *place = places + positions[r] * dim;
        ELEMENT *to = out + r * dim;
        for (long d = 0; d < dim; d += 16) {
            floats y = OF(round)((add(OF(load)(word + d), OF(load)(type + d))));
            OF(store)(to + d, add(y, OF(load)(place + d)));
        }
        OF(layer_norm_row)(to, weight, bias, to, dim, epsilon);
    }
}

/* x cos + rotate_half(x) sin in place, for heads of dim, a multiple of 32; cosine, sine [rows,
 * dim]. */
EXPORT void OF(rotate)(ELEMENT *x, const ELEMENT *cosine, const ELEMENT *sine, long rows,
                       long heads, long dim, long threads)
{
    long half = dim / 2;
#pragma omp parallel for num_threads(threads) schedule(dynamic, ROWS_AT_ONCE)
    for (long r = 0; r < rows; r++)
        for (long d = 0; d < half; d += 16) {
            const ELEMENT *c = cosine + r * dim + d, *s = sine + r * dim + d;
            floats c0 = OF(load)(c), c1 = OF(load)(c + half);
            floats s0 = OF(load)(s), s1 = OF(load)(s + half);
            for (long h = 0; h < heads; h++) {
                ELEMENT *own = x + (r * heads + h) * dim + d;
                floats low = OF(load)(own), high = OF(load)(own + half);
                OF(store)(own, multiply_subtract(low, c0, multiply(high, s0)));
                OF(store)(own + half, multiply_add(high, c1, multiply(low, s1)));
            }
        }
}

/* gate = silu(gate) * up, in place. */
EXPORT void OF(gate)(ELEMENT *gate, const ELEMENT *up, long count, long threads)
{
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1024)
    for (long i = 0; i < count; i += 16) {
        floats x = OF(load_some)(gate + i, count - i);
        floats y = OF(round)((multiply(x, sigmoid(x))));
        OF(store_some)(gate + i, multiply(y, OF(load_some)(up + i, count - i)), count - i);
    }
}
