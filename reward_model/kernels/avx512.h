/* The words of vector.h in AVX-512 registers.

   In bfloat16 a tile of a right factor is 16 pairs of terms by 16 columns of two, as AMX and
   AVX-512 BF16 read it, in float32 32 terms by 16 columns. Products in bfloat16 are those of
   avx512_bf16.h or of avx512_fma.h: this is compiled for both. */

typedef __m512 floats;
typedef __mmask16 lanes;

static inline floats each(float x) { return _mm512_set1_ps(x); }
static inline floats add(floats x, floats y) { return _mm512_add_ps(x, y); }
static inline floats subtract(floats x, floats y) { return _mm512_sub_ps(x, y); }
static inline floats multiply(floats x, floats y) { return _mm512_mul_ps(x, y); }
static inline floats divide(floats x, floats y) { return _mm512_div_ps(x, y); }
/* x y + z, x y - z */
static inline floats multiply_add(floats x, floats y, floats z) { return _mm512_fmadd_ps(x, y, z); }
static inline floats multiply_subtract(floats x, floats y, floats z)
{
    return _mm512_fmsub_ps(x, y, z);
}
/* y where one of them is no number */
static inline floats smaller(floats x, floats y) { return _mm512_min_ps(x, y); }
static inline floats larger(floats x, floats y) { return _mm512_max_ps(x, y); }
static inline float first_of(floats x) { return _mm512_cvtss_f32(x); }
static inline float sum_of(floats x) { return _mm512_reduce_add_ps(x); }
static inline float largest_of(floats x) { return _mm512_reduce_max_ps(x); }

/* The lanes before count, and those from start to stop. */
static inline lanes first(long count)
{
    return count >= 16 ? 0xffff : count <= 0 ? 0 : (__mmask16)((1u << count) - 1);
}

static inline lanes between(long start, long stop) { return first(stop) & ~first(start); }
static inline lanes less(floats x, floats y) { return _mm512_cmp_ps_mask(x, y, _CMP_LT_OQ); }

/* y in some lanes, x in the others */
static inline floats replace(floats x, lanes some, floats y)
{
    return _mm512_mask_mov_ps(x, some, y);
}

/* The larger one in some lanes, x in the others. */
static inline floats larger_some(floats x, lanes some, floats y)
{
    return _mm512_mask_max_ps(x, some, x, y);
}

/* x in some lanes, 0 in the others */
static inline floats only(lanes some, floats x) { return _mm512_maskz_mov_ps(some, x); }

/* x to the nearest whole number, and x 2^whole. */
static inline floats whole_of(floats x) { return _mm512_roundscale_ps(x, 8); }
static inline floats scale_by(floats x, floats whole) { return _mm512_scalef_ps(x, whole); }

static inline floats widen(__m256i x)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

static inline floats load_bf16(const bf16 *from)
{
    return widen(_mm256_loadu_si256((const __m256i *)from));
}

static inline floats load_some_bf16(const bf16 *from, long count)
{
    return widen(_mm256_maskz_loadu_epi16(first(count), from));
}

/* x as the nearest bfloat16, the even one of two. */
#ifdef __AVX512BF16__
static inline __m256i narrow(floats x) { return (__m256i)_mm512_cvtneps_pbh(x); }
#else
static inline __m256i narrow(floats x)
{
    __m512i bits = _mm512_castps_si512(x), one = _mm512_set1_epi32(1);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    __mmask16 no_number = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    rounded = _mm512_mask_mov_epi32(rounded, no_number, quiet);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}
#endif

/* Stores return what they stored: x, rounded. */
static inline floats store_bf16(bf16 *to, floats x)
{
    __m256i rounded = narrow(x);
    _mm256_storeu_si256((__m256i *)to, rounded);
    return widen(rounded);
}

static inline void store_some_bf16(bf16 *to, floats x, long count)
{
    _mm256_mask_storeu_epi16(to, first(count), narrow(x));
}

static inline floats round_bf16(floats x) { return widen(narrow(x)); }

static inline floats load_f32(const float *from) { return _mm512_loadu_ps(from); }

static inline floats load_some_f32(const float *from, long count)
{
    return _mm512_maskz_loadu_ps(first(count), from);
}

static inline floats store_f32(float *to, floats x)
{
    _mm512_storeu_ps(to, x);
    return x;
}

static inline void store_some_f32(float *to, floats x, long count)
{
    _mm512_mask_storeu_ps(to, first(count), x);
}

static inline floats round_f32(floats x) { return x; }

#include "avx512_fma.h"
#ifdef __AVX512BF16__
#include "avx512_bf16.h"
#else
#include "widened.h"
#endif

/* 16 x 16 words, transposed. */
static inline void transpose(__m512i x[16])
{
    __m512i y[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 4) {
        x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
        x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
        x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
        x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 4; i++) {
        y[i] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88);
        y[i + 4] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd);
        y[i + 8] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
        y[i + 12] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 8; i++) {
        x[i] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0x88);
        x[i + 8] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0xdd);
    }
}

/* Columns of 16 of a right factor whose columns are the rows of w [count <= 16, terms]. What is
   missing up to 16 and up to the next 32 terms is 0. */
static inline void pack_rows_bf16(const bf16 *w, long w_row, long count, long terms, bf16 *to)
{
    for (long s = 0; s < terms; s += STEP) {
        __mmask32 some = terms - s >= STEP ? 0xffffffff : (__mmask32)((1u << (terms - s)) - 1);
        __m512i x[16];
#pragma GCC unroll 16
        for (int n = 0; n < 16; n++)
            x[n] = n < count ? _mm512_maskz_loadu_epi16(some, w + n * w_row + s)
                             : _mm512_setzero_si512();
        transpose(x);
#pragma GCC unroll 16
        for (int pair = 0; pair < 16; pair++)
            _mm512_store_si512(to + s * COLUMNS + pair * 32, x[pair]);
    }
}

/* The same for a factor whose terms are the rows of v [count <= 32, 16 columns], one step. */
static inline void pack_terms_bf16(const bf16 *v, long v_row, long count, long columns, bf16 *to)
{
    __mmask16 some = first(columns);
    for (int pair = 0; pair < 16; pair++) {
        __m256i zero = _mm256_setzero_si256();
        __m256i even =
            2 * pair < count ? _mm256_maskz_loadu_epi16(some, v + 2 * pair * v_row) : zero;
        __m256i odd = 2 * pair + 1 < count
                          ? _mm256_maskz_loadu_epi16(some, v + (2 * pair + 1) * v_row)
                          : zero;
        __m512i words = _mm512_or_si512(_mm512_cvtepu16_epi32(even),
                                        _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
        _mm512_store_si512(to + pair * 32, words);
    }
}

static inline void pack_rows_f32(const float *w, long w_row, long count, long terms, float *to)
{
    for (long s = 0; s < (terms + STEP - 1) / STEP * STEP; s += 16) {
        __m512i x[16];
#pragma GCC unroll 16
        for (int n = 0; n < 16; n++)
            x[n] = n < count ? _mm512_maskz_loadu_epi32(first(terms - s), w + n * w_row + s)
                             : _mm512_setzero_si512();
        transpose(x);
#pragma GCC unroll 16
        for (int term = 0; term < 16; term++)
            _mm512_store_si512(to + (s + term) * COLUMNS, x[term]);
    }
}

static inline void pack_terms_f32(const float *v, long v_row, long count, long columns, float *to)
{
    for (int term = 0; term < STEP; term++)
        store_f32(to + term * COLUMNS,
                  term < count ? load_some_f32(v + term * v_row, columns) : each(0));
}
