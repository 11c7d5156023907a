/* What the kernels share: sixteen float32 at a time, and products of blocks.

   A block is 32 rows by 2 x 16 columns. Its right factor comes in columns of 16, for every 32 terms
   of the sum one tile: in bfloat16 16 pairs of terms by 16 columns of two, in float32 32 terms by
   16 columns. Every element of a product is one sum, in the order of its terms: it depends on its
   own row and column, and not on how many there are. Who wants only the first rows of a block says
   so; others may be computed or not.

   The registers are those of avx512.h or of avx2.h: the kernels are compiled for both. */

#ifndef SUMZERO_VECTOR_H
#define SUMZERO_VECTOR_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;

enum { AVX2 = 1, AVX512 = 2, AVX512_BF16 = 3, AMX = 4 };

#define ROWS 32    /* of a block */
#define STEP 32    /* terms of a sum that a tile holds */
#define COLUMNS 16 /* of a tile */
#define TILE_ELEMENTS (STEP * COLUMNS)
#define EXPORT __attribute__((visibility("default")))

#ifdef __AVX512F__
#include "avx512.h"
#else
#include "avx2.h"
#endif

/* 2^x to 2 ulp; 0 for what is below 2^-126, -infinity included. */
static inline floats exponential2(floats x)
{
    lanes tiny = less(x, each(-126.0f));
    floats n = whole_of(x), r = subtract(x, n);
    floats p = each(1.535336188319500e-4f);
    p = multiply_add(p, r, each(1.339887440266574e-3f));
    p = multiply_add(p, r, each(9.618437357674640e-3f));
    p = multiply_add(p, r, each(5.550332471162809e-2f));
    p = multiply_add(p, r, each(2.402264791363012e-1f));
    p = multiply_add(p, r, each(6.931472028550421e-1f));
    p = multiply_add(p, r, each(1.0f));
    return replace(scale_by(p, n), tiny, each(0));
}

#define LOG2_E 1.44269504f

/* e^x; the rounding of x log2 e costs |x| / 2 ulp more. */
static inline floats exponential(floats x) { return exponential2(multiply(x, each(LOG2_E))); }

static inline floats sigmoid(floats x)
{
    floats one = each(1.0f);
    return divide(one, add(one, exponential(subtract(each(0), x))));
}

/* To some ulp, near 0 too: odd over even polynomial, as fitted for Eigen. */
static inline floats hyperbolic_tangent(floats x)
{
    const floats limit = each(7.90531110763549805f);
    x = smaller(limit, larger(subtract(each(0), limit), x));
    floats y = multiply(x, x), odd = each(-2.76076847742355e-16f);
    odd = multiply_add(odd, y, each(2.00018790482477e-13f));
    odd = multiply_add(odd, y, each(-8.60467152213735e-11f));
    odd = multiply_add(odd, y, each(5.12229709037114e-08f));
    odd = multiply_add(odd, y, each(1.48572235717979e-05f));
    odd = multiply_add(odd, y, each(6.37261928875436e-04f));
    odd = multiply_add(odd, y, each(4.89352455891786e-03f));
    floats even = each(1.19825839466702e-06f);
    even = multiply_add(even, y, each(1.18534705686654e-04f));
    even = multiply_add(even, y, each(2.26843463243900e-03f));
    even = multiply_add(even, y, each(4.89352518554385e-03f));
    return divide(multiply(x, odd), even);
}

/* x Phi(x). Phi(x) - 1/2 is odd: x times a quotient of polynomials in x^2, fitted within 1e-8 up to
   where float32 tells Phi from 0 or 1 no more. */
static inline floats gelu(floats x)
{
    const floats limit = each(5.45f), none = subtract(each(0), limit);
    floats z = smaller(limit, larger(none, x)), y = multiply(z, z);
    floats p = each(2.30637413e-8f), q = each(1.206824436e-6f);
    p = multiply_add(p, y, each(6.354594383e-6f));
    q = multiply_add(q, y, each(7.299960504e-5f));
    p = multiply_add(p, y, each(1.665130557e-4f));
    q = multiply_add(q, y, each(1.871354307e-3f));
    p = multiply_add(p, y, each(4.663634220e-3f));
    q = multiply_add(q, y, each(2.850913354e-2f));
    p = multiply_add(p, y, each(3.360745166e-2f));
    q = multiply_add(q, y, each(2.509073962e-1f));
    p = multiply_add(p, y, each(3.989422403e-1f));
    q = multiply_add(q, y, each(1.0f));
    floats phi = add(divide(multiply(z, p), q), each(0.5f));
    return multiply(x, only(less(none, x), phi));
}

#endif
