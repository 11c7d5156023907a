"""A finished run in one small file, so that a study can go on without the run directories.

A record holds rewards and what was computed of them, and neither texts nor gold scores: it may be
kept where the data may not. The cells it was measured on are written anew from the source, and
have to be the same to the byte.
"""

import dataclasses
import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from reward_model import atomic
from reward_model.errors import UsageError
from trainer.metrics import read_metrics
from trainer.reward.config import RewardSettings
from trainer.reward.run_directory import REPORT
from trainer.study.measures import CellPrompt, Values, per_prompt, values

TRAIN = "train"


@dataclass(frozen=True)
class Record:
    """One arm in one replicate.

    ``cells``: SHA-256 of every file it read. ``trajectory[step][cell]``: values at each
    measurement. ``metrics[step]``: what the run logged there. ``rewards[cell]``: at the last
    step, in the order of the cell's file.
    """

    identity: dict[str, Any]
    cells: dict[str, str]
    trajectory: dict[int, dict[str, Values]]
    metrics: dict[int, dict[str, float]]
    rewards: dict[str, list[float]]
    ran: dict[str, Any]

    def write(self, path: Path) -> None:
        content = dataclasses.asdict(self)
        atomic.write_text(path, json.dumps(content) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Record":
        content = json.loads(path.read_text(encoding="utf-8"))
        content["trajectory"] = {
            int(step): {cell: Values(**found) for cell, found in cells.items()}
            for step, cells in content["trajectory"].items()
        }
        content["metrics"] = {int(step): found for step, found in content["metrics"].items()}
        return cls(**content)

    def check(self, path: Path, identity: dict[str, Any], cells: Mapping[str, str]) -> None:
        """Refuse it where it does not belong.

        Raises:
            UsageError: it is of other settings or other data; names what differs.
        """
        changed = [key for key, value in identity.items() if self.identity.get(key) != value]
        changed += [f"{name}.jsonl" for name, digest in cells.items() if self.cells[name] != digest]
        if changed:
            raise UsageError(
                f"{path}: the record of a run with another {', '.join(changed)}; remove it, or set "
                "records to another directory"
            )


def identity_of(settings: RewardSettings) -> dict[str, Any]:
    """What makes two runs on the same cells the same run."""
    content = settings.model_dump(mode="json", by_alias=True)
    compute = (
        ("precision", "micro_batch_pairs") if settings.loss.scope == "micro" else ("precision",)
    )
    return {
        "backbone": Path(settings.backbone).name,
        "loss": content["loss"],
        "optimiser": content["optimiser"],
        "compute": {name: content["compute"][name] for name in compute},
        "seed": settings.seed,
    }


def digests(directory: Path, cells: Sequence[str]) -> dict[str, str]:
    """SHA-256 of the train pairs and of the named cells in a replicate's directory."""
    return {
        name: hashlib.sha256((directory / f"{name}.jsonl").read_bytes()).hexdigest()
        for name in (TRAIN, *cells)
    }


def record_of(
    settings: RewardSettings,
    steps: Mapping[int, Mapping[str, list[float]]],
    cells: Mapping[str, list[CellPrompt]],
    hashes: dict[str, str],
    min_gap: float,
) -> Record:
    """The record of a finished run.

    Args:
        steps: rewards at every measurement, step → ``validation/<cell>``.
    """
    trajectory = {
        step: {
            name: values(cell, per_prompt(cell, found[f"validation/{name}"]), min_gap)
            for name, cell in cells.items()
        }
        for step, found in sorted(steps.items())
    }
    last = steps[max(steps)]
    metrics = read_metrics(settings.output_dir)
    report = json.loads((settings.output_dir / REPORT).read_text(encoding="utf-8"))
    ran = {
        "training": report["training"],
        "objective": report["objective"],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "processor": processor(),
    }
    return Record(
        identity=identity_of(settings),
        cells=hashes,
        trajectory=trajectory,
        metrics={step: _logged(metrics, step) for step in trajectory},
        rewards={name: last[f"validation/{name}"] for name in cells},
        ran=ran,
    )


def processor() -> str:
    """What PyTorch calls this machine's, or its GPU, which runs take where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return str(torch.cpu.get_capabilities().get("cpu_name") or platform.machine())


def _logged(metrics: Sequence[dict[str, Any]], step: int) -> dict[str, float]:
    """Everything that the run logged at ``step``; a step is logged in several lines."""
    return {name: x for row in metrics if row["step"] == step for name, x in row.items()}
