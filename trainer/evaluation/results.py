"""Everything one evaluation measured."""

from dataclasses import dataclass

from trainer.evaluation.representation import Norms
from trainer.evaluation.reward_bench import RewardBench
from trainer.evaluation.rm_bench import RmBench
from trainer.evaluation.sets import SetResult


@dataclass(frozen=True)
class Representation:
    """erank over draws of ``rows`` responses, the same number on every set, and ‖h‖."""

    rows: int
    erank_mean: float
    erank_std: float
    norms: Norms


@dataclass(frozen=True)
class Results:
    """Everything one evaluation measured; ``results.json`` holds the same."""

    source: str
    model_version: str | None
    sets: dict[str, SetResult]
    rm_bench: RmBench | None
    reward_bench: RewardBench | None
    representation: dict[str, Representation]
