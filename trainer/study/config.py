"""Settings of ``python -m trainer.study``."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from reward_model.command import Section, Settings
from trainer.reward.config import LossSettings

Lineages = list[str]


class DesignSettings(Section):
    """What is held out from which replicate, and how large everything is."""

    replicates: int = Field(default=8, gt=1, description="each with a seed and a fold of its own")
    prompt_folds: int = Field(default=4, gt=1, description="a replicate holds one of them out")
    hold_out: Literal["all", "valid"] = Field(
        default="all",
        description="what is held out in turn: all prompts and models, or only those that the "
        "source calls valid, for a backbone that has read the others",
    )
    lineage_folds: list[Lineages] = Field(
        min_length=1, description="lineages of response models; a replicate holds one list out"
    )
    dev_lineages: Lineages = Field(description="never trained on; the dev set's responses")
    dev_prompts: int = Field(
        default=80, gt=0, description="never trained on; the dev set's prompts"
    )
    train_pairs: int = Field(default=1024, gt=0)
    pairs_per_prompt: int = Field(default=8, gt=0)
    min_gold_gap: float = Field(default=1.0, gt=0, description="least |gold difference| of a pair")
    cell_prompts: int = Field(default=40, gt=1, description="prompts measured in each cell")
    cell_responses: int = Field(default=8, gt=1, description="responses measured of each prompt")
    strong_ood: bool = Field(
        default=False, description="a cell more: held-out prompts, and models that are far stronger"
    )
    max_length: int = Field(default=512, gt=0, description="tokens; longer ones are reported apart")
    seed: int = 0

    @model_validator(mode="after")
    def _dev_is_apart(self) -> "DesignSettings":
        held = {lineage for fold in self.lineage_folds for lineage in fold}
        if common := held & set(self.dev_lineages):
            raise ValueError(f"dev_lineages: {sorted(common)[0]} is in a lineage fold too")
        if self.replicates > self.prompt_folds * len(self.lineage_folds):
            raise ValueError(
                "replicates: more than prompt_folds x lineage_folds, so two would hold out the same"
            )
        return self


class TrainingSettings(Section):
    """What every arm is trained with."""

    lr: float = Field(gt=0)
    batch_pairs: int = Field(default=32, gt=0)
    epochs: int = Field(default=5, gt=0)
    measurements: int = Field(default=10, gt=1, description="of all cells, evenly over the steps")
    micro_batch_tokens: int = Field(default=4096, gt=0)
    micro_batch_pairs: int = Field(default=16, gt=0, description="M of an arm with scope micro")
    precision: Literal["float32", "bfloat16"] = "float32"


class BenchmarkSettings(Section):
    """Data that no replicate is cut from, measured with every finished model."""

    sets: dict[str, Path] = Field(default={}, description="name: file of pairs")
    rm_bench: dict[str, Path] = Field(default={}, description="RM-Bench files by domain")

    @model_validator(mode="after")
    def _names_are_free(self) -> "BenchmarkSettings":
        for name in sorted(self.sets.keys() & ({"train", "rm_bench"} | self.rm_bench.keys())):
            raise ValueError(f"sets: {name} means something else here; choose another name")
        return self


class StudySettings(Settings):
    """Everything ``python -m trainer.study`` is told."""

    source: Path = Field(description="directory with prompts.jsonl.gz, splits.json, models.json")
    backbone: str = Field(
        description="Hugging Face directory or hub name that every arm starts from"
    )
    output_dir: Path = Field(description="cells/, runs/, results.json and report.html go here")
    records: Path | None = Field(
        default=None, description="finished runs in short; by default in output_dir"
    )
    arms: dict[str, LossSettings] = Field(description="name: loss")
    baseline: str = Field(default="bt", description="the arm that the others are compared with")
    primary: str = Field(default="bsr", description="the arm of the primary endpoint")
    benchmarks: BenchmarkSettings | None = Field(
        default=None, description="by default none is measured"
    )
    page: Path | None = Field(
        default=None, description="Markdown file that the report is written to as well"
    )
    design: DesignSettings
    training: TrainingSettings
    draws: int = Field(default=10_000, gt=0, description="bootstrap samples")
    pilot: list[float] | None = Field(
        default=None,
        description="only train the baseline of replicate 0 at each of these learning rates, and "
        "compare them on the dev set",
    )
    analyse_only: bool = Field(default=False, description="train nothing; results of what is there")

    @model_validator(mode="after")
    def _arms_are_there(self) -> "StudySettings":
        for name in (self.baseline, self.primary):
            if name not in self.arms:
                raise ValueError(f"arms: {name} is missing; it is the baseline or the primary arm")
        return self

    @property
    def primary_arms(self) -> list[str]:
        """The arms of the primary endpoint."""
        return [self.baseline, self.primary]
