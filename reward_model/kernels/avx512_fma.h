/* Products in float32 by AVX-512. Right factors may be bfloat16, which is the upper half of a
   float32: they are widened on the way. */

/* Two terms of 16 columns of a right factor. */
static inline __attribute__((always_inline)) void two_terms(const char *b, int halves,
                                                            __m512 terms[2])
{
    if (halves) {
        __m512i both = _mm512_loadu_si512(b), upper = _mm512_set1_epi32((int)0xffff0000);
        terms[0] = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
        terms[1] = _mm512_castsi512_ps(_mm512_and_si512(both, upper));
    } else {
        terms[0] = _mm512_loadu_ps(b);
        terms[1] = _mm512_loadu_ps(b + 64);
    }
}

#define AHEAD 1024 /* bytes */

/* c [rows, 2 x 16] (+)= a [rows, terms] . b, for at most twelve rows: their sums take 24 of the 32
   registers. Right factors do not stay in the first cache from one call to the next. */
static inline __attribute__((always_inline)) void rows_at_once(int rows, int halves, const float *a,
                                                               long a_row, const char *b0,
                                                               const char *b1, long terms, float *c,
                                                               long c_row, int more)
{
    __m512 sums[12][2];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) {
        sums[r][0] = more ? _mm512_loadu_ps(c + r * c_row) : _mm512_setzero_ps();
        sums[r][1] = more ? _mm512_loadu_ps(c + r * c_row + 16) : _mm512_setzero_ps();
    }
    const float *fourth[3] = {a, a + 4 * a_row, a + 8 * a_row}, *end = a + terms;
    long thrice = 3 * a_row, bytes = halves ? 64 : 128;
    while (fourth[0] < end) {
        /* Or the compiler keeps a pointer to every row, in more registers than there are. */
        __asm__("" : "+r"(fourth[0]), "+r"(fourth[1]), "+r"(fourth[2]), "+r"(thrice));
        __m512 left[2], right[2];
        two_terms(b0, halves, left);
        two_terms(b1, halves, right);
        for (long line = 0; line < bytes; line += 64) {
            _mm_prefetch(b0 + AHEAD + line, _MM_HINT_T0);
            _mm_prefetch(b1 + AHEAD + line, _MM_HINT_T0);
        }
#pragma GCC unroll 2
        for (int term = 0; term < 2; term++)
#pragma GCC unroll 12
            for (int r = 0; r < rows; r++) {
                const float *x = fourth[r / 4] + term;
                long to = r % 4 == 3 ? thrice : r % 4 * a_row;
                __m512 own = _mm512_set1_ps(x[to]);
                sums[r][0] = _mm512_fmadd_ps(own, left[term], sums[r][0]);
                sums[r][1] = _mm512_fmadd_ps(own, right[term], sums[r][1]);
            }
        for (int i = 0; i < 3; i++)
            fourth[i] += 2;
        b0 += bytes;
        b1 += bytes;
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) {
        _mm512_storeu_ps(c + r * c_row, sums[r][0]);
        _mm512_storeu_ps(c + r * c_row + 16, sums[r][1]);
    }
}

static inline __attribute__((always_inline)) void block_of(int halves, long rows, const float *a,
                                                           long a_row, const void *b0,
                                                           const void *b1, long steps, float *c,
                                                           long c_row, int more)
{
    long terms = steps * STEP, r = 0;
    for (; r + 12 <= rows; r += 12)
        rows_at_once(12, halves, a + r * a_row, a_row, b0, b1, terms, c + r * c_row, c_row, more);
    for (; r < rows; r += 8)
        rows_at_once(8, halves, a + r * a_row, a_row, b0, b1, terms, c + r * c_row, c_row, more);
}

static inline void block_f32(int isa, long rows, const float *a, long a_row, const float *b0,
                             const float *b1, long steps, float *c, long c_row, int more)
{
    (void)isa;
    block_of(0, rows, a, a_row, b0, b1, steps, c, c_row, more);
}

#ifndef __AVX512BF16__
static inline void block_bf16(int isa, long rows, const float *a, long a_row, const bf16 *b0,
                              const bf16 *b1, long steps, float *c, long c_row, int more)
{
    (void)isa;
    block_of(1, rows, a, a_row, b0, b1, steps, c, c_row, more);
}
#endif
