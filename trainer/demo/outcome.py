"""What came out of the demo, read back from the files that its stages left."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.metrics import read_metrics
from trainer.rloo.sample_table import last_message, read_table


@dataclass(frozen=True)
class Point:
    """A policy on the held-out prompts. ``reward``: standardised proxy; ``gold``: points."""

    step: int
    kl: float
    reward: float
    gold: float
    length: float

    @property
    def root_kl(self) -> float:
        return math.sqrt(max(0.0, self.kl))


@dataclass(frozen=True)
class Arm:
    """One reward model and the policy trained against it."""

    name: str
    cells: dict[str, dict[str, Any]]
    training: list[dict[str, Any]]
    rloo: list[dict[str, Any]]
    points: list[Point]

    @property
    def first(self) -> Point:
        return self.points[0]

    @property
    def last(self) -> Point:
        return self.points[-1]

    @property
    def best_gold(self) -> Point:
        return max(self.points, key=lambda point: point.gold)

    def accuracy(self, cell: str) -> float | None:
        value: float | None = self.cells[cell]["accuracy"]["estimate"]["value"]
        return value

    def tau(self, cell: str) -> float | None:
        value: float | None = self.cells[cell]["ranking"]["estimate"]["value"]
        return value


def read_arm(name: str, evaluation: Path, training: Path, rloo: Path) -> Arm:
    """Read the files of one reward model's evaluation, training and RLOO run."""
    cells = json.loads((evaluation / "results.json").read_text())["sets"]
    lines = read_metrics(rloo)
    points = [
        Point(
            step=line["step"],
            kl=line["heldout/kl"],
            reward=line["heldout/reward"],
            gold=line["heldout/raw/gold"],
            length=line["heldout/length"],
        )
        for line in lines
        if "heldout/raw/gold" in line
    ]
    steps = [line for line in lines if "loss" in line]
    return Arm(name, cells, read_metrics(training), steps, points)


def read_samples(rloo: Path, step: int, count: int) -> list[tuple[str, str, float]]:
    """(prompt, response, gold) of the first held-out sample of the first ``count`` prompts."""
    found = []
    for row in read_table(rloo / f"heldout-{step}.jsonl")[:count]:
        sample = row["samples"][0]
        found.append((last_message(row), sample["text"], sample["raw/gold"]))
    return found
