"""Every instruction set that kernels have on this machine, and none of them."""

from collections.abc import Iterator

import pytest

from reward_model.kernels.library import Isa, isa

LEVELS = [level for level in Isa if level <= isa()]


@pytest.fixture(params=LEVELS, ids=lambda level: level.name.lower())
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Isa]:
    """Kernels up to this level, for models that are loaded from now on and while they compute."""
    monkeypatch.setenv("SUMZERO_KERNELS", request.param.name.lower())
    isa.cache_clear()
    yield request.param
    isa.cache_clear()
