"""Every instruction set that kernels have on this machine, and none of them."""

from collections.abc import Iterator

import pytest
import torch

from reward_model.kernels.library import Isa, isa, present

GPU = "cuda" if torch.cuda.is_available() else "cpu"
"""Where Triton's kernels are tested: without a GPU in its interpreter."""
LEVELS = [level for level in Isa if level <= present()]
LEVELS_AND_DTYPES = [
    (level, dtype)
    for dtype in (torch.float32, torch.bfloat16)
    for level in LEVELS
    if level is not Isa.NONE
]
"""Every level of kernels with every dtype."""


@pytest.fixture(params=LEVELS, ids=lambda level: level.name.lower())
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Isa]:
    """Kernels up to this level, for models that are loaded from now on and while they compute."""
    monkeypatch.setenv("SUMZERO_KERNELS", request.param.name.lower())
    isa.cache_clear()
    yield request.param
    isa.cache_clear()
