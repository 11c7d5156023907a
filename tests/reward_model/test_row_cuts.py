"""Cutting a product's rows where the processor adds up in an order that goes by their number."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reward_model import row_cuts
from reward_model.lora import LoraLinear
from reward_model.row_cuts import LARGEST, CutLinear, cuts, sizes, use_row_cuts

ALL = tuple(range(64, LARGEST + 1, 64))


@pytest.mark.parametrize(
    ("rows", "known", "wanted"),
    [
        (320, ALL, (320,)),
        (LARGEST + 128, ALL, (LARGEST, 128)),
        (64, (256, 2048), (256,)),  # filled up
        (1, ALL, (64,)),
        (321, ALL, (384,)),
        (1344, (64, 128, 640, 2048), (640, 640, 64)),
        (1984, (64, 128, 640, 2048), (2048,)),  # one part more would cost more than 64 rows
        (LARGEST + 64, (1024, 1088, 2048), (1088, 1024)),
    ],
)
def test_the_sum_with_the_least_to_compute(
    rows: int, known: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    assert cuts(rows, known) == wanted


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 64, 320, 1984, LARGEST + 192])
def test_a_product_in_parts_is_the_product(
    rows: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_cuts, "sizes", lambda *shape: (256, 640, 2048))
    torch.manual_seed(0)
    input, layer = torch.randn(1, rows, 96), nn.Linear(96, 40, bias=bias)
    with torch.inference_mode():
        found = row_cuts.linear(input.bfloat16(), *_half(layer))
        torch.testing.assert_close(found.float(), layer(input), atol=0.05, rtol=0.05)
    assert found.shape == (1, rows, 40)


@pytest.mark.skipif(not row_cuts.needed(), reason="this processor has no matrix tiles")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(512, 512), (512, 768), (1408, 512), (1536, 384)])
def test_a_row_does_not_depend_on_how_many_there_are(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    inner, outer = shape
    generator = torch.Generator().manual_seed(1)
    layer = nn.Sequential(nn.Linear(inner, outer, bias=False)).to(dtype)
    use_row_cuts(layer)
    assert isinstance(layer[0], CutLinear)
    adapted = LoraLinear(layer[0], torch.randn(8, inner), torch.randn(outer, 8), 0.5)
    input = torch.randn(4096, inner, generator=generator).to(dtype)
    for each in (layer, adapted):
        with torch.inference_mode():
            whole = each(input)
            for rows in (1, 64, 192, 700, 1344, 2048, 2112):
                assert torch.equal(each(input[512 : 512 + rows]), whole[512 : 512 + rows]), rows


@pytest.mark.skipif(not row_cuts.needed(), reason="this processor has no matrix tiles")
def test_the_trial_finds_what_differs() -> None:
    """Where all sizes are alike to the trial, they are to other rows; elsewhere some differ."""
    generator = torch.Generator().manual_seed(2)
    seen = set()
    for inner, outer in ((128, 128), (384, 384), (512, 512), (1536, 384), (1024, 1024)):
        known = sizes(inner, outer, False, torch.bfloat16, torch.get_num_threads())
        seen.add(known == ALL)
        weight, input = (
            torch.randn(size, inner, generator=generator).bfloat16() for size in (outer, LARGEST)
        )
        whole = F.linear(input, weight)
        for rows in known:
            assert torch.equal(F.linear(input[:rows], weight), whole[:rows])
    assert seen == {True, False}


def test_gradients_and_float32_go_the_usual_way() -> None:
    half, single = torch.zeros(64, 64, dtype=torch.bfloat16), torch.zeros(64, 64)
    assert not row_cuts.suits(half, half)  # gradients are on
    with torch.no_grad():
        assert not row_cuts.suits(single, single)
        with torch.autocast("cpu", torch.bfloat16):
            assert not row_cuts.suits(half, half)


def _half(layer: nn.Linear) -> tuple[Tensor, Tensor | None]:
    bias = None if layer.bias is None else layer.bias.bfloat16()
    return layer.weight.bfloat16(), bias


def test_what_is_cut_and_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    class Special(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(96, 40), Special(40, 4))
    wanted = list(model.state_dict())
    monkeypatch.setattr(row_cuts, "needed", lambda: False)
    use_row_cuts(model)
    assert type(model[0]) is nn.Linear
    monkeypatch.setattr(row_cuts, "needed", lambda: True)
    use_row_cuts(model)
    assert [type(layer) for layer in model] == [CutLinear, Special]
    assert list(model.state_dict()) == wanted
