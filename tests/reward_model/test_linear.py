"""oneDNN's products against PyTorch's own."""

import copy

import pytest
import torch
from torch import Tensor, nn

from reward_model import linear
from reward_model.linear import Linear, available, preferred, use_onednn

pytestmark = pytest.mark.skipif(not available(), reason="oneDNN is not there, or not on x86")


@pytest.fixture(autouse=True)
def on_any_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "preferred", lambda: True)


def test_intels_processors_keep_mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, wanted in (("Intel Xeon", False), ("AMD EPYC 9B45", True), (None, True)):
        known = {} if name is None else {"cpu_name": name}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=known: known)
        preferred.cache_clear()
        assert preferred() is wanted
    preferred.cache_clear()
    monkeypatch.setattr(linear, "preferred", lambda: False)
    model = nn.Sequential(nn.Linear(4, 4))
    use_onednn(model)
    assert type(model[0]) is nn.Linear


def layers(bias: bool, dtype: torch.dtype = torch.float32) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    plain = nn.Linear(96, 40, bias=bias, dtype=dtype)
    ours = nn.Sequential(copy.deepcopy(plain))
    use_onednn(ours)
    assert isinstance(ours[0], Linear)
    return plain, ours[0]


def rows(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(64, 96), (1, 128, 96), (3, 5, 96), (96,)])
def test_values_and_gradients(bias: bool, shape: tuple[int, ...]) -> None:
    plain, ours = layers(bias)
    wanted_input, found_input = (rows(*shape).requires_grad_() for _ in range(2))
    wanted, found = plain(wanted_input), ours(found_input)
    torch.testing.assert_close(found, wanted)
    grad = rows(*wanted.shape)
    wanted.backward(grad)
    found.backward(grad)
    torch.testing.assert_close(found_input.grad, wanted_input.grad)
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_frozen_weights_get_no_gradient() -> None:
    _, ours = layers(True)
    ours.requires_grad_(False)
    input = rows(64, 96).requires_grad_()
    ours(input).sum().backward()
    assert input.grad is not None
    assert ours.weight.grad is None
    assert ours.bias.grad is None


def test_a_row_does_not_depend_on_how_many_there_are() -> None:
    _, ours = layers(True)
    input = rows(1024, 96)
    with torch.inference_mode():
        whole = ours(input)
        for count in (64, 192, 512):
            assert torch.equal(ours(input[128 : 128 + count]), whole[128 : 128 + count])


def test_other_dtypes_and_autocast_go_the_usual_way() -> None:
    plain, ours = layers(True, torch.bfloat16)
    input = rows(64, 96).bfloat16()
    assert torch.equal(ours(input), plain(input))
    plain, ours = layers(True)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(rows(64, 96)).dtype == torch.bfloat16


def test_what_is_saved_is_what_a_plain_layer_saves() -> None:
    plain, ours = layers(True)
    assert list(ours.state_dict()) == list(plain.state_dict())


def test_subclasses_are_left_alone() -> None:
    class Special(nn.Linear):
        pass

    model = nn.Sequential(Special(4, 4))
    use_onednn(model)
    assert type(model[0]) is Special
