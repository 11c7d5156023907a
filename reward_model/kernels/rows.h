/* The kernels of rows.c for one type of ELEMENT. */

/* out = weight * (x / sqrt(mean x^2 + epsilon)); dim a multiple of 16. */
EXPORT void OF(rms_norm)(const ELEMENT *x, const ELEMENT *weight, ELEMENT *out, long rows, long dim,
                         float epsilon, long threads)
{
#pragma omp parallel for num_threads(threads) schedule(dynamic, ROWS_AT_ONCE)
    for (long r = 0; r < rows; r++) {
        const ELEMENT *from = x + r * dim;
        ELEMENT *to = out + r * dim;
        __m512 squares = _mm512_setzero_ps();
        for (long d = 0; d < dim; d += 16) {
            __m512 y = OF(load)(from + d);
            squares = _mm512_fmadd_ps(y, y, squares);
        }
        float mean = _mm512_reduce_add_ps(squares) / (float)dim;
        __m512 scale = _mm512_set1_ps(1.0f / sqrtf(mean + epsilon));
        for (long d = 0; d < dim; d += 16) {
            __m512 y = OF(round)((_mm512_mul_ps(OF(load)(from + d), scale)));
            OF(store)(to + d, _mm512_mul_ps(y, OF(load)(weight + d)));
        }
    }
}

/* out = weight * (x - mean x) / sqrt(variance of x + epsilon) + bias; bias may be NULL. */
EXPORT void OF(layer_norm)(const ELEMENT *x, const ELEMENT *weight, const ELEMENT *bias,
                           ELEMENT *out, long rows, long dim, float epsilon, long threads)
{
#pragma omp parallel for num_threads(threads) schedule(dynamic, ROWS_AT_ONCE)
    for (long r = 0; r < rows; r++) {
        const ELEMENT *from = x + r * dim;
        ELEMENT *to = out + r * dim;
        __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
        for (long d = 0; d < dim; d += 16)
            sum = _mm512_add_ps(sum, OF(load)(from + d));
        __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / (float)dim);
        for (long d = 0; d < dim; d += 16) {
            __m512 y = _mm512_sub_ps(OF(load)(from + d), mean);
            squares = _mm512_fmadd_ps(y, y, squares);
        }
        float variance = _mm512_reduce_add_ps(squares) / (float)dim;
        __m512 scale = _mm512_set1_ps(1.0f / sqrtf(variance + epsilon));
        for (long d = 0; d < dim; d += 16) {
            __m512 y = _mm512_mul_ps(_mm512_sub_ps(OF(load)(from + d), mean), scale);
            __m512 shift = bias ? OF(load)(bias + d) : _mm512_setzero_ps();
            OF(store)(to + d, _mm512_fmadd_ps(y, OF(load)(weight + d), shift));
        }
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
            __m512 c0 = OF(load)(c), c1 = OF(load)(c + half);
            __m512 s0 = OF(load)(s), s1 = OF(load)(s + half);
            for (long h = 0; h < heads; h++) {
                ELEMENT *own = x + (r * heads + h) * dim + d;
                __m512 low = OF(load)(own), high = OF(load)(own + half);
                OF(store)(own, _mm512_fmsub_ps(low, c0, _mm512_mul_ps(high, s0)));
                OF(store)(own + half, _mm512_fmadd_ps(high, c1, _mm512_mul_ps(low, s1)));
            }
        }
}

/* gate = silu(gate) * up, in place. */
EXPORT void OF(gate)(ELEMENT *gate, const ELEMENT *up, long count, long threads)
{
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1024)
    for (long i = 0; i < count; i += 16) {
        __mmask16 some = first(count - i);
        __m512 x = OF(load_some)(gate + i, some);
        __m512 y = OF(round)((_mm512_mul_ps(x, sigmoid(x))));
        OF(store_some)(gate + i, _mm512_mul_ps(y, OF(load_some)(up + i, some)), some);
    }
}
