"""The best measurement of a run so far, and when to stop waiting for a better one."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from reward_model.errors import UsageError
from trainer.reward.config import RunSettings


@dataclass(frozen=True, slots=True)
class Best:
    """``value`` was measured at ``step``; ``waited`` validations since then were not better."""

    step: int | None = None
    value: float | None = None
    waited: int = 0

    def after(self, step: int, values: Mapping[str, float], settings: RunSettings) -> "Best":
        """With the measurements of ``step``; a value equal to the best is not better.

        Raises:
            UsageError: ``run.best_by`` is none of the measurements.
        """
        if settings.best_by is None:
            return self
        if settings.best_by not in values:
            known = ", ".join(sorted(values))
            raise UsageError(f"run.best_by: {settings.best_by} is not measured; there are {known}")
        value = values[settings.best_by]
        if not math.isnan(value) and self._is_beaten_by(value, settings):
            return Best(step, value)
        return replace(self, waited=self.waited + 1)

    def _is_beaten_by(self, value: float, settings: RunSettings) -> bool:
        if self.value is None:
            return True
        return value > self.value if settings.best_is == "highest" else value < self.value

    def is_given_up(self, settings: RunSettings) -> bool:
        """Whether ``run.patience`` is at its end."""
        return settings.patience is not None and self.waited >= settings.patience
