"""Settings of ``python -m trainer.study.policies``."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from reward_model.command import Settings
from trainer.reward.config import LossSettings


class PolicyStudySettings(Settings):
    """Everything ``python -m trainer.study.policies`` is told."""

    output_dir: Path = Field(description="seed-N/, results.json and report.html go here")
    records: Path | None = Field(
        default=None, description="finished seeds in short; by default in output_dir"
    )
    page: Path | None = Field(
        default=None, description="Markdown file that the report is written to as well"
    )
    seeds: list[int] = Field(min_length=2, description="replicates: a world and a policy each")
    arms: dict[str, LossSettings] = Field(description="name: loss of the reward model")
    baseline: str = Field(default="bt", description="the arm that the others are compared with")
    primary: str = Field(default="bsr", description="the arm of the primary endpoint")
    betas: list[float] = Field(min_length=1, description="weights of the KL in RLOO")
    primary_beta: float = Field(description="the β of the primary endpoint")
    steps: int = Field(default=150, gt=0, description="of each RLOO run")
    every: int = Field(default=10, gt=0, description="steps between measurements")
    standard_samples: int = Field(
        default=8,
        gt=1,
        description="of the SFT policy for each held-out prompt; they standardise the rewards",
    )
    scale: Literal["full", "ci"] = Field(default="full", description="of the demo's world")
    backend: Literal["vllm", "embedded"] = Field(default="embedded", description="who generates")
    side_by_side: int = Field(default=2, gt=0, description="RLOO runs at a time")
    analyse_only: bool = Field(default=False, description="train nothing; results of what is there")

    @model_validator(mode="after")
    def _names_are_there(self) -> "PolicyStudySettings":
        for name in (self.baseline, self.primary):
            if name not in self.arms:
                raise ValueError(f"arms: {name} is missing; it is the baseline or the primary arm")
        if self.primary_beta not in self.betas:
            raise ValueError(f"betas: {self.primary_beta:g} is missing; it is primary_beta")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: one of them stands there twice")
        return self
