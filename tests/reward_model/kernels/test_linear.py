"""Products of the kernels against float64, and that a row's bits are its own."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reward_model.kernels.library import Isa, isa
from reward_model.kernels.linear import (
    KernelLinear,
    gated_linear,
    keep_packed,
    linear,
    linear_suits,
    packed,
)
from tests.reward_model.conftest import LEVELS_AND_DTYPES

pytestmark = pytest.mark.skipif(isa() is Isa.NONE, reason="no kernels on this machine")
everywhere = pytest.mark.parametrize(
    ("kernels", "dtype"), LEVELS_AND_DTYPES, indirect=["kernels"], ids=str
)
# Half a unit in the last of bfloat16's 8 bits.
ROUNDING = {torch.bfloat16: 2**-8, torch.float32: 2**-24}
SHAPES = [(32, 32), (96, 160), (512, 1408), (1408, 512), (2080, 64)]


def factors(rows: int, inner: int, outer: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, w, b = (
        torch.randn(s, generator=generator) for s in ((rows, inner), (outer, inner), (outer,))
    )
    return x.to(dtype), (w / inner**0.5).to(dtype), b.to(dtype)


@pytest.mark.parametrize(("inner", "outer"), SHAPES)
@pytest.mark.parametrize("rows", [32, 64, 77, 500])
@everywhere
@torch.no_grad()
def test_it_is_the_product_rounded_once(
    kernels: Isa, dtype: torch.dtype, rows: int, inner: int, outer: int
) -> None:
    x, w, b = factors(rows, inner, outer, dtype)
    exact = F.linear(x.double(), w.double(), b.double())
    more = factors(rows, inner, outer, dtype)[0][:, :1].expand(rows, outer)
    for bias, residual, wanted in (
        (b, None, exact),
        (None, None, exact - b.double()),
        (b, more, exact + more.double()),
    ):
        error = (linear(x, w, bias, residual).double() - wanted).abs()
        # And what float32 rounds on the way.
        assert bool((error <= wanted.abs() * ROUNDING[dtype] + 1e-5).all())


@pytest.mark.parametrize(("inner", "outer"), SHAPES)
@everywhere
@torch.no_grad()
def test_gated(kernels: Isa, dtype: torch.dtype, inner: int, outer: int) -> None:
    x, gate, _ = factors(100, inner, outer, dtype)
    up = gate.roll(1, 0)
    wanted = F.silu(F.linear(x.double(), gate.double())) * F.linear(x.double(), up.double())
    found = gated_linear(x, gate, up).double()
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=ROUNDING[dtype])


@everywhere
@torch.no_grad()
def test_gelu_comes_before_the_residual(kernels: Isa, dtype: torch.dtype) -> None:
    x, w, b = factors(100, 96, 160, dtype)
    x, more = 4 * x, torch.ones(100, 160, dtype=dtype)
    wanted = F.gelu(F.linear(x.double(), w.double(), b.double())) + 1
    found = linear(x, w, b, more, gelu=True)
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=ROUNDING[dtype])


@everywhere
@torch.no_grad()
def test_gelu_from_end_to_end(kernels: Isa, dtype: torch.dtype) -> None:
    x = torch.cat([torch.linspace(-9, 9, 131008), torch.linspace(-1e4, 1e4, 64)]).reshape(-1, 32)
    x = x.to(dtype)
    found = linear(x, torch.eye(32, dtype=dtype), gelu=True)
    wanted = F.gelu(x.double())
    allowed = 3e-7 * x.double().abs() + ROUNDING[dtype] * wanted.abs()
    assert bool(((found.double() - wanted).abs() <= allowed).all())
    assert bool((found[x < -5.46] == 0).all())


@pytest.mark.parametrize("threads", [1, 2, 5])
@everywhere
@torch.no_grad()
def test_a_row_depends_on_nothing_else(kernels: Isa, dtype: torch.dtype, threads: int) -> None:
    x, w, b = factors(2048, 1408, 512, dtype)
    whole, gated = linear(x, w, b), gated_linear(x, w, w)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for start, rows in ((0, 32), (5, 33), (700, 192), (1000, 1048)):
            some = slice(start, start + rows)
            assert torch.equal(linear(x[some], w, b), whole[some])
            assert torch.equal(gated_linear(x[some], w, w), gated[some])
    finally:
        torch.set_num_threads(before)


@everywhere
@torch.no_grad()
def test_strided_rows(kernels: Isa, dtype: torch.dtype) -> None:
    x, w, _ = factors(64, 192, 96, dtype)
    wide = torch.cat([x, x], dim=1)
    assert torch.equal(linear(wide[:, :192], w), linear(x, w))
    assert torch.equal(linear(x.t().contiguous().t(), w), linear(x, w))
    assert torch.equal(linear(x, w.t().contiguous().t()), linear(x, w))


@everywhere
@torch.no_grad()
def test_what_stays_with_pytorch(kernels: Isa, dtype: torch.dtype) -> None:
    x, w, _ = factors(64, 96, 160, dtype)
    assert linear_suits(x, w)
    assert not linear_suits(x[:31], w), "fewer rows than a block has"
    assert not linear_suits(x[:, :80], w[:, :80])
    assert not linear_suits(x, w[:150])
    assert not linear_suits(x.double(), w.double())


@torch.no_grad()
def test_a_kept_weight_follows_its_changes() -> None:
    layer = KernelLinear(64, 64, bias=False).bfloat16()
    x = torch.randn(64, 64).bfloat16()
    keep_packed(nn.Sequential(layer))
    first = layer(x)
    assert packed(layer.weight) is packed(layer.weight)
    layer.weight.mul_(2)
    assert torch.equal(layer(x), 2 * first)
    layer.weight.data = -layer.weight.data
    assert torch.equal(layer(x), -2 * first)


@everywhere
@pytest.mark.parametrize("fused", [False, True])
def test_a_kept_weight_follows_an_optimiser(kernels: Isa, dtype: torch.dtype, fused: bool) -> None:
    layer = KernelLinear(64, 64, bias=False).to(dtype)
    keep_packed(nn.Sequential(layer))
    optimiser = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=fused)
    x = torch.randn(64, 64).to(dtype)
    for _ in range(2):
        with torch.no_grad():
            linear(x, layer.weight)
        layer(x).sum().backward()
        optimiser.step()
        with torch.no_grad():
            found, wanted = linear(x, layer.weight), F.linear(x.double(), layer.weight.double())
        torch.testing.assert_close(found.double(), wanted, atol=1e-4, rtol=2**-7)


@torch.no_grad()
def test_large_weights_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reward_model.kernels.linear.KEPT_BYTES", 64 * 64)
    layer = KernelLinear(64, 64).bfloat16()
    keep_packed(nn.Sequential(layer))
    assert packed(layer.weight) is not packed(layer.weight)
