"""What a run directory holds, and whether a run may go on in it."""

import json
import shutil
from pathlib import Path
from typing import Any

from reward_model import atomic
from reward_model.errors import UsageError
from trainer.metrics import has_metrics
from trainer.sft.config import SftSettings

SETTINGS, MODEL, CHECKPOINTS = "settings.json", "model", "checkpoints"
_FREE_TO_CHANGE = frozenset(
    {"output_dir", "restart", "tensorboard", "log_steps", "save_steps", "micro_batch_size"}
)
"""Settings that may differ when a run goes on: none of them changes what is learned."""


def open_run(settings: SftSettings) -> bool:
    """Make the run directory ready; return whether the run in it is already finished.

    Raises:
        UsageError: it holds a run that has begun with other settings; names them.
    """
    path = settings.output_dir
    if settings.restart:
        _clear(path)
    wanted = settings.model_dump(mode="json")
    stored = path / SETTINGS
    begun = has_metrics(path) or (path / MODEL).is_dir()
    if stored.is_file() and begun:
        _refuse_other(path, json.loads(stored.read_text()), wanted)
    atomic.write_text(stored, json.dumps(wanted, indent=2) + "\n")
    return (path / MODEL).is_dir()


def _clear(path: Path) -> None:
    for name in (SETTINGS, "metrics.jsonl", "report.html"):
        (path / name).unlink(missing_ok=True)
    for name in (MODEL, CHECKPOINTS, "tensorboard"):
        shutil.rmtree(path / name, ignore_errors=True)


def _refuse_other(path: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    other = [
        name
        for name in wanted.keys() | stored.keys()
        if name not in _FREE_TO_CHANGE and stored.get(name) != wanted.get(name)
    ]
    if other:
        raise UsageError(
            f"{path} holds a run with other settings ({', '.join(sorted(other))}): choose another "
            "output_dir, or --restart to throw that run away"
        )
