"""Kernels of our own for scoring: in C on x86-64 with AVX2, AVX-512 or AMX, in Triton on GPUs.

PyTorch's products around a softmax, and its element-wise operations one after another, took two
thirds of scoring's time on a processor with matrix tiles (AMX), and oneDNN's order of a sum went by
the number of rows there. Here every element of a product is one sum in one order, so a score has
the bits that it has alone by construction, and exactness costs nothing.

The library is built when the package is installed, if there is a C compiler (GCC 11 or newer).
Without it, or on another processor, PyTorch computes everything, more slowly.

On a CPU a layer whose parts are all known is one call (``layer.c``): of a batch of 120 ms Python
took 9 ms between the kernels of nine layers, and takes 5 since.

On a GPU attention, RMSNorm, rotation and gating are computed here (``gpu_attention.py``,
``gpu_rows.py``), and products by cuBLASLt (:func:`reward_model.numerics.fix_cuda_sums`).

The C is compiled three times: for the registers of AVX2 (``avx2.h``), for those of AVX-512
(``avx512.h``), and for the latter with products of bfloat16 and matrix tiles (``avx512_bf16.h``).
Where a processor has no such products, or slow ones (Intel's without tiles), bfloat16 is widened to
float32 and multiplied as that: eight times as fast as oneDNN on an AMD Zen 3, 1.8 times on an Intel
Xeon.

``SUMZERO_KERNELS=none`` (or ``avx2``, ``avx512``, ``avx512_bf16``) does without, to compare.
"""
