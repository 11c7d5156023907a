"""What a run directory holds, and whether a run may go on in it."""

import json
import shutil
from pathlib import Path
from typing import Any

from reward_model import atomic
from reward_model.errors import UsageError
from trainer.metrics import has_metrics
from trainer.reward.config import RewardSettings

SETTINGS, REPORT, MODEL = "settings.json", "report.json", "model"
BEST, ADAPTER, REWARDS = "best", "adapter", "rewards"
_WRITTEN = (SETTINGS, REPORT, "metrics.jsonl", "report.html")
_WRITTEN_DIRECTORIES = (MODEL, BEST, ADAPTER, REWARDS, "checkpoints", "tensorboard")

_FREE_TO_CHANGE = ("output_dir", "restart", "run", "compute", "seeds")
"""Settings that may differ when a run goes on: none of them changes what is computed."""


def open_run(settings: RewardSettings) -> bool:
    """Make the run directory ready; return whether the run in it is already finished.

    Raises:
        UsageError: it holds a run that has begun with other settings; names them.
    """
    path = settings.output_dir
    if settings.restart:
        _clear(path)
    stored = path / SETTINGS
    if stored.is_file() and has_metrics(path):
        _refuse_other(path, json.loads(stored.read_text()), _identity(settings))
    atomic.write_text(stored, json.dumps(settings.model_dump(mode="json", by_alias=True), indent=2))
    return (path / REPORT).is_file()


def _clear(path: Path) -> None:
    for name in _WRITTEN:
        (path / name).unlink(missing_ok=True)
    for name in _WRITTEN_DIRECTORIES:
        shutil.rmtree(path / name, ignore_errors=True)


def _identity(settings: RewardSettings) -> dict[str, Any]:
    return _relevant(settings.model_dump(mode="json", by_alias=True))


def _relevant(settings: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in settings.items() if key not in _FREE_TO_CHANGE}
    compute = settings["compute"]
    kept["compute"] = {"precision": compute["precision"]}
    run = settings["run"]
    kept["run"] = {name: run.get(name) for name in ("best_by", "best_is", "patience")}
    if settings["loss"]["scope"] == "micro":
        kept["compute"]["micro_batch_pairs"] = compute["micro_batch_pairs"]
    return kept


def _refuse_other(path: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    other = sorted(_changed(_relevant(stored), wanted))
    if other:
        raise UsageError(
            f"{path} holds a run with other settings ({', '.join(other)}): choose another "
            "output_dir, or --restart to throw that run away"
        )


def _changed(old: Any, new: Any, key: str = "") -> list[str]:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return [] if old == new else [key]
    keys = dict.fromkeys((*old, *new))
    return [
        name
        for part in keys
        for name in _changed(old.get(part), new.get(part), f"{key}.{part}".lstrip("."))
    ]
