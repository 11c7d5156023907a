/* Linear layers: x . w^T + bias, and silu(x . g^T) * (x . u^T). */

#include "kernels.h"
#include "vector.h"

#define ROWS 32
#define ROWS_AT_ONCE 128
#define GROUP_BYTES (1 << 20) /* of a packed weight that stay in a core's cache at once */

#define ELEMENT bf16
#define OF(name) name##_bf16
#include "linear.h"
#undef ELEMENT
#undef OF
#define ELEMENT float
#define OF(name) name##_f32
#include "linear.h"
