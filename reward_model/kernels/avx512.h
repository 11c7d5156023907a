/* The words of vector.h in AVX-512 registers, AVX-512 BF16 and AMX.

   In bfloat16 a tile of a right factor is 16 pairs of terms by 16 columns of two, as both AMX and
   AVX-512 BF16 read it, in float32 32 terms by 16 columns. */

typedef __m512 floats;
typedef __mmask16 lanes;

/* Left factors of a product. */
typedef bf16 factor_bf16;
typedef float factor_f32;

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

static inline __m256i narrow(floats x) { return (__m256i)_mm512_cvtneps_pbh(x); }

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

/* Left factors are read as they are. */
static inline long terms_at_once_bf16(long terms) { return terms; }
static inline long terms_at_once_f32(long terms) { return terms; }

static inline const bf16 *factor_of_bf16(const bf16 *x, long *row, long terms)
{
    (void)row, (void)terms;
    return x;
}

static inline const float *factor_of_f32(const float *x, long *row, long terms)
{
    (void)row, (void)terms;
    return x;
}

static inline void keep_bf16(factor_bf16 *to, const bf16 *from, long count)
{
    memcpy(to, from, sizeof(bf16) * count);
}

static inline void keep_f32(factor_f32 *to, const float *from, long count)
{
    memcpy(to, from, sizeof(float) * count);
}

static inline floats store_factor_bf16(factor_bf16 *to, floats x) { return store_bf16(to, x); }
static inline floats store_factor_f32(factor_f32 *to, floats x) { return store_f32(to, x); }

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

static inline void avx512_block(long rows, const bf16 *a, long a_row, const bf16 *b0,
                                const bf16 *b1, long steps, float *c, long c_row, int more)
{
    for (long from = 0; from < rows; from += 8) {
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

static inline void block_bf16(int isa, long rows, const bf16 *a, long a_row, const bf16 *b0,
                              const bf16 *b1, long steps, float *c, long c_row, int more)
{
    if (isa == AMX)
        amx_block(a, a_row, b0, b1, steps, c, c_row, more);
    else
        avx512_block(rows, a, a_row, b0, b1, steps, c, c_row, more);
}

static inline void block_f32(int isa, long rows, const float *a, long a_row, const float *b0,
                             const float *b1, long steps, float *c, long c_row, int more)
{
    (void)isa;
    for (long from = 0; from < rows; from += 8) {
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
