/* What the kernels share: bfloat16 and float32 in AVX-512 registers, and products of blocks.

   A block is 32 rows by 2 x 16 columns. Its right factor comes in columns of 16, for every 32 terms
   of the sum one tile: in bfloat16 16 pairs of terms by 16 columns of two, as both AMX and AVX-512
   BF16 read it, in float32 32 terms by 16 columns. Every element of a product is one sum, in the
   order of its terms: it depends on its own row and column, and not on how many there are. */

#ifndef SUMZERO_VECTOR_H
#define SUMZERO_VECTOR_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;

enum { AVX512 = 1, AVX512_BF16 = 2, AMX = 3 };

#define STEP 32    /* terms of a sum that a tile holds */
#define COLUMNS 16 /* of a tile */
#define TILE_ELEMENTS (STEP * COLUMNS)
#define EXPORT __attribute__((visibility("default")))

static inline __m512 widen(__m256i x)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

static inline __m512 load_bf16(const bf16 *from)
{
    return widen(_mm256_loadu_si256((const __m256i *)from));
}

static inline __m512 load_some_bf16(const bf16 *from, __mmask16 some)
{
    return widen(_mm256_maskz_loadu_epi16(some, from));
}

static inline __m256i narrow(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

/* Stores return what they stored: x, rounded. */
static inline __m512 store_bf16(bf16 *to, __m512 x)
{
    __m256i rounded = narrow(x);
    _mm256_storeu_si256((__m256i *)to, rounded);
    return widen(rounded);
}

static inline void store_some_bf16(bf16 *to, __m512 x, __mmask16 some)
{
    _mm256_mask_storeu_epi16(to, some, narrow(x));
}

static inline __m512 round_bf16(__m512 x) { return widen(narrow(x)); }

static inline __m512 load_f32(const float *from) { return _mm512_loadu_ps(from); }

static inline __m512 load_some_f32(const float *from, __mmask16 some)
{
    return _mm512_maskz_loadu_ps(some, from);
}

static inline __m512 store_f32(float *to, __m512 x)
{
    _mm512_storeu_ps(to, x);
    return x;
}

static inline void store_some_f32(float *to, __m512 x, __mmask16 some)
{
    _mm512_mask_storeu_ps(to, some, x);
}

static inline __m512 round_f32(__m512 x) { return x; }

static inline __mmask16 first(long count)
{
    return count >= 16 ? 0xffff : count <= 0 ? 0 : (__mmask16)((1u << count) - 1);
}

/* 2^x to 2 ulp; 0 for what is below 2^-126, -infinity included. */
static inline __m512 exponential2(__m512 x)
{
    __mmask16 tiny = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.0f), _CMP_LT_OQ);
    __m512 n = _mm512_roundscale_ps(x, 8), r = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(1.535336188319500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.339887440266574e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.618437357674640e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.550332471162809e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.402264791363012e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.931472028550421e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_mask_mov_ps(_mm512_scalef_ps(p, n), tiny, _mm512_setzero_ps());
}

#define LOG2_E 1.44269504f

/* e^x; the rounding of x log2 e costs |x| / 2 ulp more. */
static inline __m512 exponential(__m512 x)
{
    return exponential2(_mm512_mul_ps(x, _mm512_set1_ps(LOG2_E)));
}

static inline __m512 sigmoid(__m512 x)
{
    __m512 one = _mm512_set1_ps(1.0f);
    return _mm512_div_ps(one,
                         _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

/* To some ulp, near 0 too: odd over even polynomial, as fitted for Eigen. */
static inline __m512 hyperbolic_tangent(__m512 x)
{
    const __m512 limit = _mm512_set1_ps(7.90531110763549805f);
    x = _mm512_min_ps(limit, _mm512_max_ps(_mm512_sub_ps(_mm512_setzero_ps(), limit), x));
    __m512 y = _mm512_mul_ps(x, x), odd = _mm512_set1_ps(-2.76076847742355e-16f);
    odd = _mm512_fmadd_ps(odd, y, _mm512_set1_ps(2.00018790482477e-13f));
    odd = _mm512_fmadd_ps(odd, y, _mm512_set1_ps(-8.60467152213735e-11f));
    odd = _mm512_fmadd_ps(odd, y, _mm512_set1_ps(5.12229709037114e-08f));
    odd = _mm512_fmadd_ps(odd, y, _mm512_set1_ps(1.48572235717979e-05f));
    odd = _mm512_fmadd_ps(odd, y, _mm512_set1_ps(6.37261928875436e-04f));
    odd = _mm512_fmadd_ps(odd, y, _mm512_set1_ps(4.89352455891786e-03f));
    __m512 even = _mm512_set1_ps(1.19825839466702e-06f);
    even = _mm512_fmadd_ps(even, y, _mm512_set1_ps(1.18534705686654e-04f));
    even = _mm512_fmadd_ps(even, y, _mm512_set1_ps(2.26843463243900e-03f));
    even = _mm512_fmadd_ps(even, y, _mm512_set1_ps(4.89352518554385e-03f));
    return _mm512_div_ps(_mm512_mul_ps(x, odd), even);
}

/* x Phi(x), Phi by its fit in Abramowitz and Stegun, 7.1.26, within 1e-7. */
static inline __m512 gelu(__m512 x)
{
    __m512 one = _mm512_set1_ps(1.0f),
           z = _mm512_abs_ps(_mm512_mul_ps(x, _mm512_set1_ps(0.70710678f)));
    __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), one));
    __m512 p = _mm512_set1_ps(1.061405429f);
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-1.453152027f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(1.421413741f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.284496736f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.254829592f));
    __m512 bell = exponential(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_mul_ps(z, z)));
    __m512 half = _mm512_mul_ps(_mm512_mul_ps(p, t), _mm512_mul_ps(bell, _mm512_set1_ps(0.5f)));
    __mmask16 positive = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ);
    return _mm512_mul_ps(x, _mm512_mask_sub_ps(half, positive, one, half));
}

/* AMX: eight tiles of 16 rows by 64 bytes. Configured by every thread that uses them, since others
   (oneDNN) do so too. */
static inline void take_tiles(int isa)
{
    if (isa != AMX)
        return;
    struct {
        uint8_t palette, start;
        uint8_t reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } __attribute__((packed)) shape;
    memset(&shape, 0, sizeof shape);
    shape.palette = 1;
    for (int i = 0; i < 8; i++) {
        shape.bytes[i] = 64;
        shape.rows[i] = 16;
    }
    _tile_loadconfig(&shape);
}

static inline void give_tiles_back(int isa)
{
    if (isa == AMX)
        _tile_release();
}

/* c [32, 2 x 16] (+)= a [32, 32 * steps] . b. */
static inline void amx_block(const bf16 *a, long a_row, const bf16 *b0, const bf16 *b1, long steps,
                             float *c, long c_row, int more)
{
    long a_bytes = a_row * 2, c_bytes = c_row * 4;
    if (more) {
        _tile_loadd(0, c, c_bytes);
        _tile_loadd(1, c + 16, c_bytes);
        _tile_loadd(2, c + 16 * c_row, c_bytes);
        _tile_loadd(3, c + 16 * c_row + 16, c_bytes);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (long s = 0; s < steps; s++) {
        _tile_loadd(4, a + s * STEP, a_bytes);
        _tile_loadd(6, b0 + s * TILE_ELEMENTS, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b1 + s * TILE_ELEMENTS, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a + 16 * a_row + s * STEP, a_bytes);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, c_bytes);
    _tile_stored(1, c + 16, c_bytes);
    _tile_stored(2, c + 16 * c_row, c_bytes);
    _tile_stored(3, c + 16 * c_row + 16, c_bytes);
}

static inline void avx512_block(const bf16 *a, long a_row, const bf16 *b0, const bf16 *b1,
                                long steps, float *c, long c_row, int more)
{
    for (int from = 0; from < 32; from += 8) {
        __m512 sum[8][2];
        for (int r = 0; r < 8; r++) {
            float *own = c + (from + r) * c_row;
            sum[r][0] = more ? _mm512_loadu_ps(own) : _mm512_setzero_ps();
            sum[r][1] = more ? _mm512_loadu_ps(own + 16) : _mm512_setzero_ps();
        }
        for (long s = 0; s < steps; s++)
            for (int pair = 0; pair < 16; pair++) {
                long place = s * TILE_ELEMENTS + pair * 32;
                __m512bh left = (__m512bh)_mm512_loadu_si512(b0 + place);
                __m512bh right = (__m512bh)_mm512_loadu_si512(b1 + place);
#pragma GCC unroll 8
                for (int r = 0; r < 8; r++) {
                    int both;
                    memcpy(&both, a + (from + r) * a_row + s * STEP + pair * 2, 4);
                    __m512bh own = (__m512bh)_mm512_set1_epi32(both);
                    sum[r][0] = _mm512_dpbf16_ps(sum[r][0], own, left);
                    sum[r][1] = _mm512_dpbf16_ps(sum[r][1], own, right);
                }
            }
        for (int r = 0; r < 8; r++) {
            float *own = c + (from + r) * c_row;
            _mm512_storeu_ps(own, sum[r][0]);
            _mm512_storeu_ps(own + 16, sum[r][1]);
        }
    }
}

static inline void block_bf16(int isa, const bf16 *a, long a_row, const bf16 *b0, const bf16 *b1,
                              long steps, float *c, long c_row, int more)
{
    if (isa == AMX)
        amx_block(a, a_row, b0, b1, steps, c, c_row, more);
    else
        avx512_block(a, a_row, b0, b1, steps, c, c_row, more);
}

static inline void block_f32(int isa, const float *a, long a_row, const float *b0, const float *b1,
                             long steps, float *c, long c_row, int more)
{
    (void)isa;
    for (int from = 0; from < 32; from += 8) {
        __m512 sum[8][2];
        for (int r = 0; r < 8; r++) {
            float *own = c + (from + r) * c_row;
            sum[r][0] = more ? _mm512_loadu_ps(own) : _mm512_setzero_ps();
            sum[r][1] = more ? _mm512_loadu_ps(own + 16) : _mm512_setzero_ps();
        }
        for (long term = 0; term < steps * STEP; term++) {
            __m512 left = _mm512_loadu_ps(b0 + term * 16), right = _mm512_loadu_ps(b1 + term * 16);
#pragma GCC unroll 8
            for (int r = 0; r < 8; r++) {
                __m512 own = _mm512_set1_ps(a[(from + r) * a_row + term]);
                sum[r][0] = _mm512_fmadd_ps(own, left, sum[r][0]);
                sum[r][1] = _mm512_fmadd_ps(own, right, sum[r][1]);
            }
        }
        for (int r = 0; r < 8; r++) {
            float *own = c + (from + r) * c_row;
            _mm512_storeu_ps(own, sum[r][0]);
            _mm512_storeu_ps(own + 16, sum[r][1]);
        }
    }
}

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
static inline void pack_terms_bf16(const bf16 *v, long v_row, long count, __mmask16 columns,
                                   bf16 *to)
{
    for (int pair = 0; pair < 16; pair++) {
        __m256i zero = _mm256_setzero_si256();
        __m256i even =
            2 * pair < count ? _mm256_maskz_loadu_epi16(columns, v + 2 * pair * v_row) : zero;
        __m256i odd = 2 * pair + 1 < count
                          ? _mm256_maskz_loadu_epi16(columns, v + (2 * pair + 1) * v_row)
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

static inline void pack_terms_f32(const float *v, long v_row, long count, __mmask16 columns,
                                  float *to)
{
    for (int term = 0; term < STEP; term++)
        _mm512_store_ps(to + term * COLUMNS, term < count
                                                 ? _mm512_maskz_loadu_ps(columns, v + term * v_row)
                                                 : _mm512_setzero_ps());
}

#endif
