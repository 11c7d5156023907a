"""What a run directory holds, and whether a run may go on in it."""

import json
import shutil
from pathlib import Path
from typing import Any

from reward_model import atomic
from reward_model.errors import UsageError
from trainer.rloo.config import RlooSettings

SETTINGS, REPORT = "settings.json", "report.html"
POLICY, ADAPTER, WEIGHTS = "policy", "adapter", "weights"
SAMPLES = "samples"
_KEYS_FREE_TO_CHANGE = frozenset(
    {
        "output_dir", "restart", "tensorboard", "wandb", "device", "max_batch_tokens",
        "checkpoint_steps", "samples",
        "keep_checkpoints", "generation", "reward.url", "reward.sources", "reward.gold_url",
        "reward.api_key", "reward.timeout", "reward.attempts",
    }
)  # fmt: skip
"""Where the parts run and how they are reached; not what is computed."""
_KEYS_OF_GENERATION = ("samples_per_prompt", "temperature", "max_new_tokens", "max_prompt_tokens")


def open_run(settings: RlooSettings) -> None:
    """Make the run directory ready for a new run, or for going on with the one in it.

    Raises:
        UsageError: it holds a run with other settings; names them.
    """
    path = settings.output_dir
    if settings.restart:
        _clear(path)
    wanted = settings.model_dump(mode="json", exclude={"reward": {"api_key"}})
    stored = path / SETTINGS
    if stored.is_file():
        other = sorted(_changed(json.loads(stored.read_text()), wanted))
        if other:
            raise UsageError(
                f"{path} holds a run with other settings ({', '.join(other)}): choose another "
                "output_dir, or --restart to throw that run away"
            )
    atomic.write_text(stored, json.dumps(wanted, indent=2))


def _clear(path: Path) -> None:
    for name in (SETTINGS, REPORT, "metrics.jsonl", "ledger.jsonl", "vllm.log"):
        (path / name).unlink(missing_ok=True)
    for file in (*path.glob("heldout-*.jsonl"), *path.glob("report-*.png")):
        file.unlink()
    for name in (POLICY, ADAPTER, WEIGHTS, SAMPLES, "checkpoints", "tensorboard"):
        shutil.rmtree(path / name, ignore_errors=True)


def _changed(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    changed = []
    for name in dict.fromkeys((*old, *new)):
        key, before, after = f"{prefix}{name}", old.get(name), new.get(name)
        if key == "generation" and isinstance(before, dict) and isinstance(after, dict):
            changed += [
                f"generation.{part}"
                for part in _KEYS_OF_GENERATION
                if before.get(part) != after.get(part)
            ]
        elif key in _KEYS_FREE_TO_CHANGE:
            continue
        elif isinstance(before, dict) and isinstance(after, dict):
            changed += _changed(before, after, f"{key}.")
        elif before != after:
            changed.append(key)
    return changed
