"""Whether there are kernels, and what they are asked to do."""

import platform
import shutil

import pytest
import torch

from reward_model.kernels.library import Isa, isa, kernel, level, library, present, suits


@pytest.mark.skipif(
    platform.machine() != "x86_64" or shutil.which("gcc") is None, reason="no C compiler for x86-64"
)
def test_built_where_there_is_a_compiler() -> None:
    for best in (Isa.AVX2, Isa.AVX512, Isa.AVX512_BF16):
        assert library(best) is not None, "make install has not built them"


def test_the_environment_holds_them_back(kernels: Isa) -> None:
    assert isa() is kernels


def test_an_unknown_name_is_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    best = isa()
    monkeypatch.setenv("SUMZERO_KERNELS", "everything")
    isa.cache_clear()
    assert isa() is best


def test_what_they_take(kernels: Isa) -> None:
    single, half, double = (
        torch.zeros(64, dtype=d) for d in (torch.float32, torch.bfloat16, torch.float64)
    )
    assert not suits(single), "gradients are on"
    with torch.no_grad():
        assert suits(single) == (kernels is not Isa.NONE)
        assert suits(half) == (kernels is not Isa.NONE)
        assert not suits(double)
        assert not suits(half, single)
        with torch.autocast("cpu", torch.bfloat16):
            assert not suits(half)


@pytest.mark.parametrize(
    ("found", "intel", "used"),
    [
        (Isa.AVX2, True, Isa.AVX2),
        (Isa.AVX512, True, Isa.AVX512),
        (Isa.AVX512_BF16, True, Isa.AVX512),
        (Isa.AVX512_BF16, False, Isa.AVX512_BF16),
        (Isa.AMX, True, Isa.AMX),
    ],
)
def test_bfloat16_is_widened_where_its_products_are_slow(
    found: Isa, intel: bool, used: Isa, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SUMZERO_KERNELS", raising=False)
    monkeypatch.setattr("reward_model.kernels.library.present", lambda: found)
    monkeypatch.setattr("reward_model.kernels.library.made_by_intel", lambda: intel)
    isa.cache_clear()
    assert isa() is used
    cpu = torch.device("cpu")
    assert level(torch.float32, cpu) is level(torch.bfloat16, cpu) is used
    assert level(torch.float64, cpu) is Isa.NONE
    monkeypatch.setenv("SUMZERO_KERNELS", found.name.lower())
    isa.cache_clear()
    assert isa() is found, "what is asked for by name is used"
    isa.cache_clear()


def test_without_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reward_model.kernels.library.library", lambda best: None)
    isa.cache_clear()
    present.cache_clear()
    assert isa() is Isa.NONE
    with pytest.raises(RuntimeError, match="C compiler"):
        kernel("gate", torch.float32)
    isa.cache_clear()
    present.cache_clear()
