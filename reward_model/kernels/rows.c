/* What a model does row by row between its products. Rounded where transformers rounds, but for the
   rotation, which is rounded once. */

#include <math.h>

#include "kernels.h"
#include "vector.h"

#define ROWS_AT_ONCE 64 /* taken by a thread that has nothing to do */

#define ELEMENT bf16
#define OF(name) name##_bf16
#include "rows.h"
#undef ELEMENT
#undef OF
#define ELEMENT float
#define OF(name) name##_f32
#include "rows.h"

/* Changes with the arguments of any of these functions. */
EXPORT int interface_version(void) { return 5; }

/* Whether the kernel lets this process use AMX; Linux wants to be asked. */
#if defined(__linux__) && defined(__AVX512F__)
#include <sys/syscall.h>
#include <unistd.h>
EXPORT int ask_for_amx(void)
{
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
}
#else
EXPORT int ask_for_amx(void) { return 0; }
#endif
