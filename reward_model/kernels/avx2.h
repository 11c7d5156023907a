/* The words of vector.h in AVX2 registers, two to sixteen float32.

   Products in bfloat16 are those of float32: a bfloat16 is the upper half of one, and both factors
   are widened before. */

typedef struct {
    __m256 low, high;
} floats;
typedef floats lanes; /* all bits of a lane, or none */

static inline floats of(__m256 low, __m256 high)
{
    floats x = {low, high};
    return x;
}

static inline floats each(float x) { return of(_mm256_set1_ps(x), _mm256_set1_ps(x)); }

static inline floats add(floats x, floats y)
{
    return of(_mm256_add_ps(x.low, y.low), _mm256_add_ps(x.high, y.high));
}

static inline floats subtract(floats x, floats y)
{
    return of(_mm256_sub_ps(x.low, y.low), _mm256_sub_ps(x.high, y.high));
}

static inline floats multiply(floats x, floats y)
{
    return of(_mm256_mul_ps(x.low, y.low), _mm256_mul_ps(x.high, y.high));
}

static inline floats divide(floats x, floats y)
{
    return of(_mm256_div_ps(x.low, y.low), _mm256_div_ps(x.high, y.high));
}

/* x y + z, x y - z */
static inline floats multiply_add(floats x, floats y, floats z)
{
    return of(_mm256_fmadd_ps(x.low, y.low, z.low), _mm256_fmadd_ps(x.high, y.high, z.high));
}

static inline floats multiply_subtract(floats x, floats y, floats z)
{
    return of(_mm256_fmsub_ps(x.low, y.low, z.low), _mm256_fmsub_ps(x.high, y.high, z.high));
}

/* y where one of them is no number */
static inline floats smaller(floats x, floats y)
{
    return of(_mm256_min_ps(x.low, y.low), _mm256_min_ps(x.high, y.high));
}

static inline floats larger(floats x, floats y)
{
    return of(_mm256_max_ps(x.low, y.low), _mm256_max_ps(x.high, y.high));
}

static inline float first_of(floats x) { return _mm256_cvtss_f32(x.low); }

static inline float sum_of(floats x)
{
    __m256 y = _mm256_add_ps(x.low, x.high);
    __m128 z = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    z = _mm_add_ps(z, _mm_movehl_ps(z, z));
    return _mm_cvtss_f32(_mm_add_ss(z, _mm_movehdup_ps(z)));
}

static inline float largest_of(floats x)
{
    __m256 y = _mm256_max_ps(x.low, x.high);
    __m128 z = _mm_max_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    z = _mm_max_ps(z, _mm_movehl_ps(z, z));
    return _mm_cvtss_f32(_mm_max_ss(z, _mm_movehdup_ps(z)));
}

/* The lanes before count, and those from start to stop. */
static inline lanes first(long count)
{
    __m256i before = _mm256_set1_epi32(count > 16 ? 16 : count < 0 ? 0 : (int)count);
    __m256i low = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i high = _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15);
    return of(_mm256_castsi256_ps(_mm256_cmpgt_epi32(before, low)),
              _mm256_castsi256_ps(_mm256_cmpgt_epi32(before, high)));
}

static inline lanes between(long start, long stop)
{
    lanes before = first(start), within = first(stop);
    return of(_mm256_andnot_ps(before.low, within.low), _mm256_andnot_ps(before.high, within.high));
}

static inline lanes less(floats x, floats y)
{
    return of(_mm256_cmp_ps(x.low, y.low, _CMP_LT_OQ), _mm256_cmp_ps(x.high, y.high, _CMP_LT_OQ));
}

/* y in some lanes, x in the others */
static inline floats replace(floats x, lanes some, floats y)
{
    return of(_mm256_blendv_ps(x.low, y.low, some.low),
              _mm256_blendv_ps(x.high, y.high, some.high));
}

/* The larger one in some lanes, x in the others. */
static inline floats larger_some(floats x, lanes some, floats y)
{
    return replace(x, some, larger(x, y));
}

/* x in some lanes, 0 in the others */
static inline floats only(lanes some, floats x)
{
    return of(_mm256_and_ps(some.low, x.low), _mm256_and_ps(some.high, x.high));
}

/* x to the nearest whole number. */
static inline floats whole_of(floats x)
{
    return of(_mm256_round_ps(x.low, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
              _mm256_round_ps(x.high, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

static inline __m256 scale_eight(__m256 x, __m256 whole)
{
    __m256i bias = _mm256_set1_epi32(127), infinity = _mm256_set1_epi32(0x7f800000);
    __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(whole), bias);
    __m256 scaled = _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
    __m256 over = _mm256_cmp_ps(whole, _mm256_set1_ps(127.0f), _CMP_GT_OQ);
    return _mm256_blendv_ps(scaled, _mm256_castsi256_ps(infinity), over);
}

/* x 2^whole, for whole from -126 on; infinity where whole is 128 or more. */
static inline floats scale_by(floats x, floats whole)
{
    return of(scale_eight(x.low, whole.low), scale_eight(x.high, whole.high));
}

/* Loads and stores. Those of some elements read 0 for the rest; stores return what they stored: x,
   rounded. */
static inline floats load_f32(const float *from)
{
    return of(_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8));
}

static inline floats load_some_f32(const float *from, long count)
{
    if (count >= 16)
        return load_f32(from);
    float own[16] = {0};
    memcpy(own, from, sizeof(float) * (count > 0 ? count : 0));
    return load_f32(own);
}

static inline floats store_f32(float *to, floats x)
{
    _mm256_storeu_ps(to, x.low);
    _mm256_storeu_ps(to + 8, x.high);
    return x;
}

static inline void store_some_f32(float *to, floats x, long count)
{
    if (count >= 16) {
        store_f32(to, x);
        return;
    }
    float own[16];
    store_f32(own, x);
    memcpy(to, own, sizeof(float) * (count > 0 ? count : 0));
}

static inline floats round_f32(floats x) { return x; }

static inline __m256 widen(__m128i x)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}

static inline floats load_bf16(const bf16 *from)
{
    return of(widen(_mm_loadu_si128((const __m128i *)from)),
              widen(_mm_loadu_si128((const __m128i *)(from + 8))));
}

static inline __m256i some_bf16(const bf16 *from, long count)
{
    bf16 own[16] = {0};
    if (count >= 16)
        return _mm256_loadu_si256((const __m256i *)from);
    memcpy(own, from, sizeof(bf16) * (count > 0 ? count : 0));
    return _mm256_loadu_si256((const __m256i *)own);
}

static inline floats load_some_bf16(const bf16 *from, long count)
{
    __m256i some = some_bf16(from, count);
    return of(widen(_mm256_castsi256_si128(some)), widen(_mm256_extracti128_si256(some, 1)));
}

/* x as the nearest bfloat16, the even one of two, in the upper halves; the rest is of no use. */
static inline __m256i round_eight(__m256 x)
{
    __m256i bits = _mm256_castps_si256(x), one = _mm256_set1_epi32(1);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), one);
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    __m256 no_number = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    return _mm256_castps_si256(
        _mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet), no_number));
}

static inline floats round_bf16(floats x)
{
    __m256 upper = _mm256_castsi256_ps(_mm256_set1_epi32((int)0xffff0000));
    return of(_mm256_and_ps(_mm256_castsi256_ps(round_eight(x.low)), upper),
              _mm256_and_ps(_mm256_castsi256_ps(round_eight(x.high)), upper));
}

static inline floats store_bf16(bf16 *to, floats x)
{
    __m256i low = round_eight(x.low), high = round_eight(x.high);
    __m256i mixed = _mm256_packus_epi32(_mm256_srli_epi32(low, 16), _mm256_srli_epi32(high, 16));
    _mm256_storeu_si256((__m256i *)to, _mm256_permute4x64_epi64(mixed, 0xd8));
    __m256i upper = _mm256_set1_epi32((int)0xffff0000);
    return of(_mm256_castsi256_ps(_mm256_and_si256(low, upper)),
              _mm256_castsi256_ps(_mm256_and_si256(high, upper)));
}

static inline void store_some_bf16(bf16 *to, floats x, long count)
{
    bf16 own[16];
    store_bf16(count >= 16 ? to : own, x);
    if (count < 16)
        memcpy(to, own, sizeof(bf16) * (count > 0 ? count : 0));
}

#include "widened.h"

/* c [rows, 16] (+)= a [rows, terms] . b, for at most six rows: their sums take twelve of the
   sixteen registers. */
static inline __attribute__((always_inline)) void rows_f32(int rows, const float *a, long a_row,
                                                           const float *b, long terms, float *c,
                                                           long c_row, int more)
{
    __m256 sums[6][2];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        sums[r][0] = more ? _mm256_loadu_ps(c + r * c_row) : _mm256_setzero_ps();
        sums[r][1] = more ? _mm256_loadu_ps(c + r * c_row + 8) : _mm256_setzero_ps();
    }
#pragma GCC unroll 4
    for (long k = 0; k < terms; k++) {
        __m256 left = _mm256_loadu_ps(b + k * COLUMNS),
               right = _mm256_loadu_ps(b + k * COLUMNS + 8);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            __m256 own = _mm256_broadcast_ss(a + r * a_row + k);
            sums[r][0] = _mm256_fmadd_ps(own, left, sums[r][0]);
            sums[r][1] = _mm256_fmadd_ps(own, right, sums[r][1]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        _mm256_storeu_ps(c + r * c_row, sums[r][0]);
        _mm256_storeu_ps(c + r * c_row + 8, sums[r][1]);
    }
}

/* c [32, 2 x 16] (+)= a [32, 32 * steps] . b, by as many terms as stay in the first cache. */
#define TERMS 256

static inline void rows_at_once(const float *a, long a_row, const float *b, long terms, float *c,
                                long c_row, int more)
{
    long r = 0;
    for (; r < 12; r += 6)
        rows_f32(6, a + r * a_row, a_row, b, terms, c + r * c_row, c_row, more);
    for (; r < ROWS; r += 5)
        rows_f32(5, a + r * a_row, a_row, b, terms, c + r * c_row, c_row, more);
}

static inline void block_f32(int isa, long rows, const float *a, long a_row, const float *b0,
                             const float *b1, long steps, float *c, long c_row, int more)
{
    (void)isa, (void)rows;
    for (long from = 0; from < steps * STEP; from += TERMS) {
        long rest = steps * STEP - from, terms = rest < TERMS ? rest : TERMS;
        for (int half = 0; half < 2; half++)
            rows_at_once(a + from, a_row, (half ? b1 : b0) + from * COLUMNS, terms,
                         c + half * COLUMNS, c_row, more || from);
    }
}

static inline void block_bf16(int isa, long rows, const float *a, long a_row, const bf16 *b0,
                              const bf16 *b1, long steps, float *c, long c_row, int more)
{
    (void)isa, (void)rows;
    float wide[TERMS * COLUMNS] __attribute__((aligned(64)));
    __m256 odd = _mm256_castsi256_ps(_mm256_set1_epi32((int)0xffff0000));
    for (long from = 0; from < steps * STEP; from += TERMS) {
        long rest = steps * STEP - from, terms = rest < TERMS ? rest : TERMS;
        for (int half = 0; half < 2; half++) {
            const __m256i *b = (const __m256i *)((half ? b1 : b0) + from * COLUMNS);
            for (long pair = 0; pair < terms; pair += 2, b += 2) {
                __m256i left = _mm256_loadu_si256(b), right = _mm256_loadu_si256(b + 1);
                float *to = wide + pair * COLUMNS;
                _mm256_store_ps(to, _mm256_castsi256_ps(_mm256_slli_epi32(left, 16)));
                _mm256_store_ps(to + 8, _mm256_castsi256_ps(_mm256_slli_epi32(right, 16)));
                _mm256_store_ps(to + 16, _mm256_and_ps(odd, _mm256_castsi256_ps(left)));
                _mm256_store_ps(to + 24, _mm256_and_ps(odd, _mm256_castsi256_ps(right)));
            }
            rows_at_once(a + from, a_row, wide, terms, c + half * COLUMNS, c_row, more || from);
        }
    }
}

/* 8 x 8 words from rows that are some bytes apart, transposed, to rows of 16. */
static inline void transpose(const char *from, long bytes, uint32_t *to)
{
    __m256 x[8], y[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        x[i] = _mm256_loadu_ps((const float *)(from + i * bytes));
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        y[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
        y[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) {
            x[i + 2 * j] = _mm256_shuffle_ps(y[i + j], y[i + 2 + j], 0x44);
            x[i + 2 * j + 1] = _mm256_shuffle_ps(y[i + j], y[i + 2 + j], 0xee);
        }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        _mm256_storeu_ps((float *)to + i * 16, _mm256_permute2f128_ps(x[i], x[i + 4], 0x20));
        _mm256_storeu_ps((float *)to + (i + 4) * 16, _mm256_permute2f128_ps(x[i], x[i + 4], 0x31));
    }
}

/* 16 words of each of 16 rows, of which count and wide bytes are there, to 16 columns. */
static inline void pack_words(const void *rows, long bytes, long count, long wide, void *to)
{
    const char *from = rows;
    uint32_t own[16][16];
    if (count < 16 || wide < 64) {
        memset(own, 0, sizeof own);
        for (long n = 0; n < count && n < 16; n++)
            memcpy(own[n], from + n * bytes, wide < 0 ? 0 : wide < 64 ? wide : 64);
        from = (const char *)own;
        bytes = 64;
    }
    for (int n = 0; n < 16; n += 8)
        for (int word = 0; word < 16; word += 8)
            transpose(from + n * bytes + word * 4, bytes, (uint32_t *)to + word * 16 + n);
}

/* Columns of 16 of a right factor whose columns are the rows of w [count <= 16, terms]. What is
   missing up to 16 and up to the next 32 terms is 0. */
static inline void pack_rows_bf16(const bf16 *w, long w_row, long count, long terms, bf16 *to)
{
    for (long s = 0; s < terms; s += STEP)
        pack_words(w + s, w_row * 2, count, (terms - s) * 2, to + s * COLUMNS);
}

static inline void pack_rows_f32(const float *w, long w_row, long count, long terms, float *to)
{
    for (long s = 0; s < (terms + STEP - 1) / STEP * STEP; s += 16)
        pack_words(w + s, w_row * 4, count, (terms - s) * 4, to + s * COLUMNS);
}

/* The same for a factor whose terms are the rows of v [count <= 32, columns <= 16], one step. */
static inline void pack_terms_bf16(const bf16 *v, long v_row, long count, long columns, bf16 *to)
{
    for (int term = 0; term < STEP; term += 2) {
        __m256i even = some_bf16(v + term * v_row, term < count ? columns : 0);
        __m256i odd = some_bf16(v + (term + 1) * v_row, term + 1 < count ? columns : 0);
        __m256i low = _mm256_unpacklo_epi16(even, odd), high = _mm256_unpackhi_epi16(even, odd);
        __m256i *pairs = (__m256i *)(to + term * COLUMNS);
        _mm256_storeu_si256(pairs, _mm256_permute2x128_si256(low, high, 0x20));
        _mm256_storeu_si256(pairs + 1, _mm256_permute2x128_si256(low, high, 0x31));
    }
}

static inline void pack_terms_f32(const float *v, long v_row, long count, long columns, float *to)
{
    for (int term = 0; term < STEP; term++)
        store_f32(to + term * COLUMNS, load_some_f32(v + term * v_row, term < count ? columns : 0));
}
