"""Matrix products whose rows do not depend on how many rows there are.

On the CPU, what oneDNN does not compute (:mod:`reward_model.linear`) MKL does. It splits the inner
dimension over threads when that is large against the number of rows: with two threads a [M, 1536] ×
[1536, 384] product changed its bits between M = 192 and M = 256. In its strict reproducible mode it
does not; the order of every sum is then fixed. On CUDA, cuBLASLt does
the same (split-K) where it has a workspace to put the parts in, so it gets next to none. In half
precision oneDNN has to be led by other means (:mod:`reward_model.row_cuts`).

Both read the environment at the first product of the process, so it is set when this package is
imported; what the user has set stays.
"""

import os

os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":16:8")
os.environ.setdefault("CUBLASLT_WORKSPACE_SIZE", "1")


def fix_cuda_sums() -> None:
    """Let no CUDA matrix product add up in less than float32, nor by how many rows there are.

    With next to no workspace cuBLASLt gave every row the same bits whatever their number (H200; 17
    shapes of weight, 60 numbers of rows from 64 to 16,384, three dtypes). cuBLAS itself did so in
    half precision, and in float32 not for few rows.
    """
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.preferred_blas_library("cublaslt")
