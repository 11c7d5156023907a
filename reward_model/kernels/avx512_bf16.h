/* Products in bfloat16 by AVX-512 BF16 and by AMX. */

/* Left factors of a product are read as they are. */
typedef bf16 factor_bf16;
typedef float factor_f32;

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
