"""What a finished run's model says of data that no replicate is cut from: RM-Bench, LLMBar, people.

Measured by ``trainer.evaluation`` on the model that training left, and kept beside the run's record
as a file of its own. A record that came from another machine has no model here; its run stays
without.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from reward_model import atomic
from reward_model.errors import UsageError
from trainer.evaluation.config import EvaluationSettings
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.results import Results
from trainer.reward.run_directory import MODEL
from trainer.study.config import BenchmarkSettings

EVALUATION = "benchmarks"
"""Directory in a run's, with the whole evaluation."""


@dataclass(frozen=True)
class Benchmarks:
    """One run's values by name.

    ``files``: SHA-256 of what was read. ``values``: ``<set>/accuracy``, ``<set>/balanced``,
    ``rm_bench/<domain>/hard`` and so on, ``<set>/erank``, ``<set>/h_norm``. ``counts``: pairs or
    items that a value is of, and those without a score.
    """

    files: dict[str, str]
    values: dict[str, float]
    counts: dict[str, int]

    def write(self, path: Path) -> None:
        atomic.write_text(path, json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path, files: dict[str, str]) -> "Benchmarks":
        """The file at ``path``.

        Raises:
            UsageError: it is of other benchmarks; names the first that differs.
        """
        found = cls(**json.loads(path.read_text(encoding="utf-8")))
        for name in sorted(files.keys() | found.files.keys()):
            if files.get(name) != found.files.get(name):
                raise UsageError(
                    f"{path}: measured on another benchmarks.{name}; remove it, or set records to "
                    "another directory"
                )
        return found


def benchmarks_path(record: Path) -> Path:
    """Where the benchmarks of the run with this record are."""
    return record.with_suffix(".benchmarks.json")


def benchmark_digests(settings: BenchmarkSettings) -> dict[str, str]:
    """SHA-256 of every benchmark's file.

    Raises:
        UsageError: names the file that is missing.
    """
    found = {}
    for name, path in (settings.sets | settings.rm_bench).items():
        if not path.is_file():
            raise UsageError(f"benchmarks.{name}: {path}: no such file")
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def measure(
    run: Path, train: Path, settings: BenchmarkSettings, *, precision: Any, seed: int
) -> Benchmarks | None:
    """Evaluate the model in ``run``, on a GPU where training has one; None if it is not there.

    Args:
        train: the run's pairs, whose hidden states stand beside those of the benchmarks.
        precision: dtype to score in.
    """
    if not (run / MODEL).is_dir():
        return None
    sets = {"train": str(train)} | {name: str(path) for name, path in settings.sets.items()}
    results = evaluate(
        EvaluationSettings(
            checkpoint=run / MODEL,
            sets=sets,
            rm_bench=settings.rm_bench,
            output_dir=run / EVALUATION,
            dtype=precision,
            device="cuda" if torch.cuda.is_available() else "cpu",
            seed=seed,
        )
    )
    return Benchmarks(benchmark_digests(settings), *_flat(results))


def _flat(results: Results) -> tuple[dict[str, float], dict[str, int]]:
    values: dict[str, float | None] = {}
    counts: dict[str, int] = {}
    for name, found in results.sets.items():
        values[f"{name}/accuracy"] = found.accuracy.estimate.value
        values[f"{name}/balanced"] = found.balanced.estimate.value
        counts[f"{name}/pairs"] = found.accuracy.pairs
        counts[f"{name}/unscored"] = found.unscored
    for name, part in (results.rm_bench.domains if results.rm_bench else {}).items():
        for level in ("hard", "normal", "easy"):
            values[f"rm_bench/{name}/{level}"] = getattr(part, level)
        counts[f"rm_bench/{name}/items"] = part.items
        counts[f"rm_bench/{name}/unscored"] = part.unscored
    for name, one in results.representation.items():
        values[f"{name}/erank"] = one.erank_mean
        values[f"{name}/h_norm"] = one.norms.mean
        counts[f"{name}/erank_rows"] = one.rows
    return {name: value for name, value in values.items() if value is not None}, counts
