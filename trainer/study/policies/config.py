"""Settings of ``python -m trainer.study.policies``."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from reward_model.command import Section, Settings
from trainer.reward.config import LossSettings


class TextSettings(Section):
    """A world of real prompts, a policy that is given, and a reward model that is gold."""

    source: Path = Field(description="directory with prompts.jsonl.gz and splits.json")
    policy: Path = Field(description="checkpoint of the chat model that every arm starts from")
    gold: Path = Field(description="reward model that labels the pairs and judges the policies")
    backbone: Path | None = Field(default=None, description="of the proxies; default: the policy")
    labelled_prompts: int = Field(
        default=400, gt=0, description="train prompts; pairs come of them"
    )
    unseen_prompts: int = Field(default=60, gt=0, description="valid ones; the proxies' prompt-OOD")
    policy_prompts: int = Field(default=128, gt=0, description="train prompts; RLOO's, no others")
    heldout_prompts: int = Field(default=48, gt=0, description="valid ones; policies' measurements")
    max_prompt_tokens: int = Field(default=256, gt=0)
    max_new_tokens: int = Field(default=96, gt=0)
    temperature: float = Field(default=0.7, gt=0)
    reward_lr: float = Field(default=2e-4, gt=0)
    reward_epochs: int = Field(default=3, gt=0)
    batch_pairs: int = Field(default=32, gt=0)
    rloo_lr: float = Field(default=1e-4, gt=0)
    batch_size: int = Field(default=32, gt=0, description="samples per RLOO step, four a prompt")


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
    text: TextSettings | None = Field(default=None, description="in place of the demo's world")
    backend: Literal["vllm", "embedded"] = Field(default="embedded", description="who generates")
    side_by_side: int = Field(default=2, gt=0, description="RLOO runs at a time")
    golds: int = Field(
        default=1,
        gt=0,
        description="gold models that the seeds may have been judged by; one judges a whole seed",
    )
    device: str = Field(
        default="cpu",
        description="of RLOO and of the service; reward models train on a GPU where there is one",
    )
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
