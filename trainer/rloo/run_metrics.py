"""What a run logs, and where to: ``metrics.jsonl``, TensorBoard, and Weights & Biases if asked."""

import hashlib
from collections.abc import Sequence
from typing import Any

from reward_model.errors import UsageError
from trainer.metrics import MetricsWriter
from trainer.rloo.config import RlooSettings
from trainer.rloo.sample_table import flat, row
from trainer.rloo.samples import Group


class RunMetrics:
    """Every line goes to all of them."""

    def __init__(self, settings: RlooSettings, resume_step: int | None) -> None:
        self._writer = MetricsWriter(
            settings.output_dir, resume_step, tensorboard=settings.tensorboard
        )
        self._wandb = None if settings.wandb is None else _open_wandb(settings.wandb, settings)

    def log(self, step: int, values: dict[str, float]) -> None:
        self._writer.log(step, values)
        if self._wandb is not None:
            self._wandb.log({"step": step, **values})

    def log_samples(self, step: int, groups: Sequence[Group]) -> None:
        """A table of samples, for W&B; the run directory has its own."""
        if self._wandb is None:
            return
        import wandb

        columns, lines = flat([row(group) for group in groups])
        self._wandb.log({"step": step, "samples": wandb.Table(columns=columns, data=lines)})

    def close(self) -> None:
        self._writer.close()
        if self._wandb is not None:
            self._wandb.finish()


def _open_wandb(project: str, settings: RlooSettings) -> Any:
    """A run named after its directory, so that a resumed one goes on in the same curves.

    With ``WANDB_MODE=offline`` everything stays on disk until ``wandb sync``.

    Raises:
        UsageError: wandb is not installed.
    """
    try:
        import wandb
    except ImportError:
        raise UsageError("wandb: pip install wandb") from None
    path = settings.output_dir.resolve()
    run = wandb.init(
        project=project,
        name=path.name,
        id=hashlib.sha256(str(path).encode()).hexdigest()[:16],
        resume="allow",
        dir=settings.output_dir,
        config=settings.model_dump(mode="json", exclude={"reward": {"api_key"}}, exclude_none=True),
    )
    # Lines of one step come in several parts, so the step is a value like the others.
    run.define_metric("*", step_metric="step")
    return run
