"""What a model does row by row, against transformers."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEmbeddings
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm, apply_rotary_pos_emb

from reward_model.kernels import rows
from reward_model.kernels.library import Isa, isa
from tests.reward_model.conftest import LEVELS_AND_DTYPES

pytestmark = [
    pytest.mark.skipif(isa() is Isa.NONE, reason="no kernels on this machine"),
    pytest.mark.usefixtures("kernels"),
    pytest.mark.parametrize(("kernels", "dtype"), LEVELS_AND_DTYPES, indirect=["kernels"], ids=str),
]


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


def close(found: Tensor, wanted: Tensor, units: int = 1) -> None:
    """Within so many units in the last place."""
    bits = 2.0**-7 if found.dtype is torch.bfloat16 else 2.0**-21
    torch.testing.assert_close(found, wanted, atol=units * bits, rtol=units * bits)


@pytest.mark.parametrize("dim", [16, 64, 512, 1040])
@torch.no_grad()
def test_rms_norm(dim: int, dtype: torch.dtype) -> None:
    norm = Qwen2RMSNorm(dim, eps=1e-6)
    norm.weight.copy_(random(dim, dtype=dtype))
    norm.to(dtype)
    x = 3 * random(2, 33, dim, dtype=dtype)
    close(rows.rms_norm(x, norm.weight, 1e-6), norm(x))
    zeros = torch.zeros(1, dim, dtype=dtype)
    assert torch.equal(rows.rms_norm(zeros, norm.weight, 1e-6), zeros)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("dim", [16, 384, 1040])
@torch.no_grad()
def test_layer_norm(dim: int, biased: bool, dtype: torch.dtype) -> None:
    norm = torch.nn.LayerNorm(dim, bias=biased)
    for parameter in norm.parameters():
        parameter.copy_(random(dim, dtype=dtype))
    norm.to(dtype)
    x = 5 + 3 * random(2, 33, dim, dtype=dtype)
    close(rows.layer_norm(x, norm.weight, norm.bias, norm.eps), norm(x), units=4)


@pytest.mark.parametrize("dim", [16, 384, 1040])
@torch.no_grad()
def test_embeddings(dim: int, dtype: torch.dtype) -> None:
    config = BertConfig(
        vocab_size=50, hidden_size=dim, max_position_embeddings=40, num_attention_heads=1
    )
    theirs = BertEmbeddings(config).eval().to(dtype)
    for parameter in theirs.parameters():
        parameter.copy_(random(*parameter.shape, dtype=dtype))
    tables = [theirs.word_embeddings, theirs.token_type_embeddings, theirs.position_embeddings]
    weights = [table.weight for table in tables]
    ids = [torch.randint(len(weight), (1, 33)) for weight in weights]
    norm = theirs.LayerNorm
    found = rows.embed(weights, ids, norm.weight, norm.bias, norm.eps)
    close(found, theirs(ids[0], ids[1], ids[2]), units=4)
    for row in (-1, 50):
        ids[0][0, 7] = row
        with pytest.raises(IndexError, match="an embedding that has 50"):
            rows.embed(weights, ids, norm.weight, norm.bias, norm.eps)


@pytest.mark.parametrize("dim", [32, 64, 96])
@torch.no_grad()
def test_rotation(dim: int, dtype: torch.dtype) -> None:
    x = random(1, 70, 3, dim, dtype=dtype)
    angles = torch.arange(70)[:, None] / 100 ** torch.linspace(0, 1, dim // 2)
    angles = torch.cat([angles, angles], dim=-1)[None]
    cosine, sine = angles.cos().to(dtype), angles.sin().to(dtype)
    wanted, _ = apply_rotary_pos_emb(x.double(), x.double(), cosine.double(), sine.double(), 2)
    close(rows.rotate(x.clone(), cosine, sine), wanted.to(dtype))


@pytest.mark.parametrize("count", [1, 15, 16, 1000])
@torch.no_grad()
def test_gate(count: int, dtype: torch.dtype) -> None:
    gate, up = 10 * random(count, dtype=dtype), random(count, 1, dtype=dtype)[:, 0]
    wanted = F.silu(gate) * up
    close(rows.gate(gate.clone(), up), wanted)


@torch.no_grad()
def test_gate_of_what_is_far_away(dtype: torch.dtype) -> None:
    gate = torch.tensor([-torch.inf, -1e4, -90.0, 90.0, 1e4, torch.nan] * 3, dtype=dtype)
    found = rows.gate(gate.clone(), torch.ones_like(gate))
    assert found[1:5].tolist() == [0.0, 0.0, 90.0, gate[4].item()]
    assert bool(found[5::6].isnan().all())
