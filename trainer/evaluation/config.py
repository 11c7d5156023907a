"""The settings of ``python -m trainer.evaluation``."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from reward_model.command import Settings
from trainer.urls import Urls


class EvaluationSettings(Settings):
    """A checkpoint or a reward URL, data sets by name, and where the results go."""

    checkpoint: Path | None = Field(default=None, description="directory of a reward model")
    url: Urls = Field(default=[], description="running reward services, all alike")
    model: str | None = Field(default=None, description="name of the model at the URL")
    api_key: str | None = Field(default=None, repr=False)
    sets: dict[str, str] = Field(
        default={}, description="name: file, of pairs or of scored responses (trainer.data)"
    )
    rm_bench: dict[str, Path] = Field(
        default={}, description="RM-Bench files by domain: chat, code, math, safety-…"
    )
    reward_bench: str | None = Field(
        default=None, description="pairs with a subset column, as RewardBench has them"
    )
    output_dir: Path = Field(description="results.json, report.html and its plots")
    title: str = "Reward model"
    min_gold_gap: float = Field(
        default=0.0, ge=0, description="scored responses: least gold difference of a pair"
    )
    limit: int | None = Field(default=None, gt=0, description="the first so many rows of a set")
    truncation: Literal["error", "left", "right"] = Field(
        default="error", description="error: what is too long has no score, and is counted"
    )
    bootstrap: int = Field(default=1000, gt=0, description="draws for the intervals")
    representation: bool = Field(default=True, description="erank and ‖h‖; checkpoints only")
    erank_draws: int = Field(default=5, gt=0)
    max_batch_tokens: int | None = Field(default=None, gt=0)
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    seed: int = 0

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.checkpoint is None) == (not self.url):
            raise ValueError("give either checkpoint or url")
        if not self.sets and not self.rm_bench and self.reward_bench is None:
            raise ValueError("nothing to evaluate on: give sets, rm_bench or reward_bench")
        if self.rm_bench and "rm_bench" in self.sets:
            raise ValueError("sets: rm_bench is RM-Bench's own name here; choose another")
        return self
