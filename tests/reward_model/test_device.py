import pytest
import torch

from reward_model.device import as_device
from reward_model.errors import UsageError


@pytest.mark.parametrize("name", ["cpu", torch.device("cpu")])
def test_a_device_that_is_there(name: str | torch.device) -> None:
    assert as_device(name) == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "cuda", "gpus", "reason"),
    [
        ("gpu", None, 0, "PyTorch knows no 'gpu'"),
        ("cuda", None, 0, "is built for CPUs; install one for CUDA"),
        ("cuda", "13.0", 0, "sees no GPU here"),
        ("cuda:2", "13.0", 2, "there are 2, counted from 0"),
    ],
)
def test_a_device_that_is_not_there(
    name: str, cuda: str | None, gpus: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(UsageError, match=reason):
        as_device(name)


def test_gpus_are_counted_from_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert as_device("cuda:1") == torch.device("cuda", 1)
