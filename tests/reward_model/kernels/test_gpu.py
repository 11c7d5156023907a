"""Where the GPU's kernels are to be had, and what they are given."""

from collections.abc import Iterator

import pytest
import torch

from reward_model.kernels import gpu
from reward_model.kernels.library import used


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    gpu.available.cache_clear()
    yield
    gpu.available.cache_clear()


def test_without_a_gpu_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not gpu.available()
    assert not gpu.known(torch.bfloat16, torch.device("cuda"))


@pytest.mark.parametrize("missing", ["compiler", "triton", "wish"])
def test_a_gpu_alone_is_not_enough(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: name)
    assert gpu.available()
    gpu.available.cache_clear()
    if missing == "compiler":
        monkeypatch.setattr(gpu.shutil, "which", lambda name: None)
    elif missing == "triton":
        monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    else:
        monkeypatch.setenv("SUMZERO_KERNELS", "none")
    assert not gpu.available()


def test_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "available", lambda: True)
    monkeypatch.setattr(gpu.available, "cache_clear", lambda: None, raising=False)
    cuda = torch.device("cuda")
    assert used(torch.float16, cuda) == "triton"
    assert used(torch.float64, cuda) == "none"
    assert not gpu.on_gpu(torch.zeros(2)), "it lies on the CPU"


def test_aligned() -> None:
    x = torch.arange(40.0).view(10, 4)
    assert gpu.aligned(x).data_ptr() == x.data_ptr()
    for other in (x.view(-1)[1:5], x[:, 1:3], x.t()):
        found = gpu.aligned(other)
        assert torch.equal(found, other)
        assert found.is_contiguous()
        assert found.data_ptr() % 16 == 0
