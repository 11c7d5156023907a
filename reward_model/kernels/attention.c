/* Attention over a packed batch, with sums and softmax in float32.

   A task is some query rows that see the same keys: a tile of 64 rows and one head, or (stacked)
   one row and all heads that share a key head. Its keys are the rows of a chain of tiles, in blocks
   of 512, with a running maximum. So what a row gives depends on its own chain and on nothing else.
 */

#include "kernels.h"
#include "vector.h"

#define TILE 64
#define BLOCK_TILES 8
#define BLOCK (BLOCK_TILES * TILE)
#define HALF 32          /* query rows of a block */
#define ROW (BLOCK + 16) /* of scratch: no power of two, so that rows share no cache set */
#define MINUS_INFINITY (-__builtin_inff())

static long wide(const Attention *a) { return (a->dim + STEP - 1) / STEP * STEP; }

typedef struct {
    long start, stop;
} Range;

/* The keys that row i of a task sees. */
static Range seen(const Attention *a, long task, long i)
{
    long keys = a->chain_keys[task], at = a->task_positions[task] + (a->stacked ? 0 : i);
    Range range = {0, a->causal ? at + 1 : keys};
    if (a->window && at - a->window + 1 > 0)
        range.start = at - a->window + 1;
    if (a->window && at + a->window < range.stop)
        range.stop = at + a->window;
    return range;
}

static void scale_row(float *row, long width, float by)
{
    for (long d = 0; d < width; d += 16)
        store_f32(row + d, multiply(load_f32(row + d), each(by)));
}

/* tanh(x by) */
static void cap_row(float *row, long width, float by)
{
    for (long n = 0; n < width; n += 16) {
        floats x = multiply(load_f32(row + n), each(by));
        store_f32(row + n, hyperbolic_tangent(x));
    }
}

#define ELEMENT bf16
#define OF(name) name##_bf16
#include "attention.h"
#undef ELEMENT
#undef OF
#define ELEMENT float
#define OF(name) name##_f32
#include "attention.h"
