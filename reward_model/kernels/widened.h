/* Left factors of products that are made in float32 whatever the type of their elements. */

typedef float factor_bf16;
typedef float factor_f32;

#define WIDENED 2048 /* terms of a left factor at once */

static inline long terms_at_once_f32(long terms) { return terms; }
static inline long terms_at_once_bf16(long terms) { return terms < WIDENED ? terms : WIDENED; }

/* Rows of x as products read them, [ROWS, terms]; row becomes the distance between two. In bfloat16
   they hold until the thread's next call. */
static inline const float *factor_of_f32(const float *x, long *row, long terms)
{
    (void)row, (void)terms;
    return x;
}

static inline const float *factor_of_bf16(const bf16 *x, long *row, long terms)
{
    static _Thread_local float wide[ROWS * (WIDENED + 16)] __attribute__((aligned(64)));
    for (long r = 0; r < ROWS; r++)
        for (long k = 0; k < terms; k += 16)
            store_f32(wide + r * (terms + 16) + k, load_bf16(x + r * *row + k));
    *row = terms + 16;
    return wide;
}

static inline void keep_f32(float *to, const float *from, long count)
{
    memcpy(to, from, sizeof(float) * count);
}

static inline void keep_bf16(float *to, const bf16 *from, long count)
{
    for (long d = 0; d < count; d += 16)
        store_some_f32(to + d, load_some_bf16(from + d, count - d), count - d);
}

static inline floats store_factor_f32(float *to, floats x) { return store_f32(to, x); }
static inline floats store_factor_bf16(float *to, floats x) { return store_f32(to, x); }

static inline void take_tiles(int isa) { (void)isa; }
static inline void give_tiles_back(int isa) { (void)isa; }
