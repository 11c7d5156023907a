"""The GPU's row kernels against transformers: on a GPU, or in Triton's interpreter."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm, apply_rotary_pos_emb

from tests.reward_model.conftest import GPU

gpu_rows = pytest.importorskip("reward_model.kernels.gpu_rows")

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def drawn(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype).to(GPU)


def assert_close(found: Tensor, wanted: Tensor) -> None:
    assert found.dtype == wanted.dtype
    tolerance = TOLERANCE[found.dtype]
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance)


@DTYPES
@pytest.mark.parametrize("width", [32, 96, 640])
@torch.no_grad()
def test_rms_norm(width: int, dtype: torch.dtype) -> None:
    norm = Qwen3RMSNorm(width, eps=1e-5)
    norm.weight.copy_(drawn(width, dtype=torch.float32, seed=1))
    norm = norm.to(GPU, dtype)
    input = drawn(1, 70, 2, width, dtype=dtype)
    whole = gpu_rows.rms_norm(input, norm.weight, 1e-5)
    assert_close(whole, norm(input))
    assert torch.equal(gpu_rows.rms_norm(input[:, 5:6], norm.weight, 1e-5), whole[:, 5:6])


@DTYPES
@pytest.mark.parametrize(("heads", "dim"), [(4, 64), (3, 32), (1, 96)])
@torch.no_grad()
def test_rotate(heads: int, dim: int, dtype: torch.dtype) -> None:
    x = drawn(1, 66, heads, dim, dtype=dtype)
    angle = drawn(1, 66, dim // 2, dtype=torch.float32, seed=2)
    angles = torch.cat([angle, angle], dim=-1)
    cosine, sine = angles.cos().to(dtype), angles.sin().to(dtype)
    wanted, _ = apply_rotary_pos_emb(x.transpose(1, 2), x.transpose(1, 2), cosine, sine)
    found = gpu_rows.rotate(x.clone(), cosine, sine)
    assert_close(found, wanted.transpose(1, 2).contiguous())
    one = gpu_rows.rotate(x[:, 7:8].clone(), cosine[:, 7:8], sine[:, 7:8])
    assert torch.equal(one, found[:, 7:8])


@DTYPES
@torch.no_grad()
def test_gate(dtype: torch.dtype) -> None:
    gate, up = drawn(70, 96, dtype=dtype), drawn(70, 96, dtype=dtype, seed=3)
    wanted = F.silu(gate.float()) * up.float()
    found = gpu_rows.gate(gate.clone(), up)
    assert_close(found, wanted.to(dtype))
