/* A layer of a transformer in one call: the kernels of the other files, one after another.

   Between two calls from Python 40 to 90 microseconds pass, and longer where another thread holds
   the interpreter; there are ten or more to a layer. */

#include "kernels.h"
#include "vector.h"

typedef struct {
    const void *weight, *bias; /* packed; bias may be NULL */
} Projection;

typedef struct {
    const void *weight, *bias;
    float epsilon;
} Norm;

typedef struct {
    const void *x; /* [rows, width] */
    void *out, *scratch;
    const Attention *attention; /* without what it reads and writes */
    const void *cosine, *sine;
    long rows, width, inner;
    long attended; /* the rows after these belong to no sequence */
    Projection query, key, value, context, gate, up, down;
    Norm before, after, query_norm, key_norm;
} Layer;

#define ELEMENT bf16
#define OF(name) name##_bf16
#include "layer.h"
#undef ELEMENT
#undef OF
#define ELEMENT float
#define OF(name) name##_f32
#include "layer.h"
