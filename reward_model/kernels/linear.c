/* Linear layers: x . w^T + bias, and silu(x . g^T) * (x . u^T). */

#include "kernels.h"
#include "vector.h"

#define BLOCKS_AT_ONCE 4
#define GROUP_BYTES (1 << 20) /* of a packed weight that stay in a core's cache at once */

/* The first of the units that a thread is to compute, count of them; -1 where none is left. Many at
   first, and whole lines of them, one at a time in the end. */
static long take(long *next, long units, long line, long threads, long *count)
{
    long from = __atomic_load_n(next, __ATOMIC_RELAXED);
    do {
        if (from >= units)
            return -1;
        long lines = (units - from) / (2 * threads) / line;
        lines = lines < BLOCKS_AT_ONCE ? lines : BLOCKS_AT_ONCE;
        *count = lines ? lines * line : 1;
    } while (!__atomic_compare_exchange_n(next, &from, from + *count, 1, __ATOMIC_RELAXED,
                                          __ATOMIC_RELAXED));
    return from;
}

#define ELEMENT bf16
#define OF(name) name##_bf16
#include "linear.h"
#undef ELEMENT
#undef OF
#define ELEMENT float
#define OF(name) name##_f32
#include "linear.h"
