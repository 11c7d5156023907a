"""Weights & Biases, for those who ask for it (``run.wandb``)."""

import hashlib
from collections.abc import Mapping
from typing import Any

from reward_model.errors import UsageError
from trainer.reward.config import RewardSettings


class Tracker:
    """Sends every line of ``metrics.jsonl`` to a project of Weights & Biases.

    The run's id comes from its directory, so that a resumed run goes on in the same curves. Where
    ``WANDB_MODE=offline`` is set, everything stays on disk until ``wandb sync``.

    Raises:
        UsageError: wandb is not installed.
    """

    def __init__(self, project: str, settings: RewardSettings) -> None:
        try:
            import wandb
        except ImportError:
            raise UsageError("run.wandb: pip install wandb") from None
        path = settings.output_dir.resolve()
        self._run: Any = wandb.init(
            project=project,
            name=path.name,
            id=hashlib.sha256(str(path).encode()).hexdigest()[:16],
            resume="allow",
            dir=settings.output_dir,
            config=settings.model_dump(mode="json", by_alias=True, exclude_none=True),
        )
        # Lines of one step come in several parts, so the step is a value like the others.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self) -> None:
        self._run.finish()
