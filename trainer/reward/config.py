"""Settings of ``python -m trainer.reward``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from reward_model.command import Section, Settings
from reward_model.contract import LossSpec
from trainer.reward.bsr import Scale, Scope

LossName = Literal["bt", "bt_hinge", "bt_norm", "bt_dr", "bt_bsr", "bt_center", "bt_l2"]

_DEFAULTS: dict[str, dict[str, Any]] = {
    "bt_bsr": {"lambda": 1e-3, "scope": "global", "scale": "paper"},
    "bt_l2": {"lambda": 1e-3},
    "bt_center": {"c": 0.01},
    "bt_hinge": {"hinge_margin": None},
}
"""The settings that belong to each loss. None: no default, it has to be given."""

USES_MARGIN = ("bt", "bt_bsr", "bt_center", "bt_l2")
"""Losses that a ``margin`` column of the data enters."""


class LossSettings(Section):
    """One loss, with the settings that belong to it and no others."""

    name: LossName
    lambda_: float | None = Field(
        default=None, alias="lambda", ge=0, description="bt_bsr, bt_l2: weight of the penalty"
    )
    scope: Scope | None = Field(
        default=None, description="bt_bsr: which rewards M is the mean of; default global"
    )
    scale: Scale | None = Field(
        default=None, description="bt_bsr: λ, or λ × pairs in the scope; default paper"
    )
    c: float | None = Field(default=None, ge=0, description="bt_center: weight of the penalty")
    hinge_margin: float | None = Field(default=None, gt=0, description="bt_hinge: m, required")

    @model_validator(mode="before")
    @classmethod
    def _exclusive(cls, values: Any) -> Any:
        """Refuse settings of other losses; fill in the defaults of this one."""
        if not isinstance(values, Mapping) or values.get("name") not in get_args(LossName):
            return values
        name = values["name"]
        given = {
            "lambda" if key == "lambda_" else key: value
            for key, value in values.items()
            if value is not None
        }
        own = _DEFAULTS.get(name, {})
        for key in given.keys() & {key for keys in _DEFAULTS.values() for key in keys}:
            if key not in own:
                owners = ", ".join(loss for loss, keys in _DEFAULTS.items() if key in keys)
                raise ValueError(f"{key} is a setting of {owners}, not of {name}: remove it")
        filled = own | given
        for key, value in filled.items():
            if value is None:
                raise ValueError(f"{name} needs {key}; the paper gives no value for it")
        return filled

    def spec(self) -> LossSpec:
        """The loss as the checkpoint's contract records it."""
        return LossSpec(name=self.name, lambda_=self.lambda_, scope=self.scope, scale=self.scale)


class DataSettings(Section):
    """What to train and validate on."""

    train: str = Field(description="pairs: a JSONL or Parquet file, or a hub name")
    split: str = Field(default="train", description="split of a hub data set")
    limit: int | None = Field(default=None, gt=0, description="train on the first so many pairs")
    validation: dict[str, str] = Field(
        default_factory=dict, description="name: file, of pairs or of scored responses"
    )
    validation_limit: int = Field(
        default=200, gt=0, description="pairs or prompts of each validation set, drawn by seed"
    )
    validation_responses: int = Field(
        default=8, gt=1, description="scored responses: drawn so many of each prompt"
    )
    min_gold_gap: float = Field(
        default=1.0, ge=0, description="scored responses: least |gold difference| of a pair"
    )
    max_length: int | None = Field(
        default=None, gt=0, description="tokens per sequence; default: what the backbone reads"
    )
    too_long: Literal["drop", "cut_prompt"] = Field(
        default="drop", description="pairs over max_length: leave out, or cut the prompt's start"
    )
    max_fault_share: float = Field(
        default=0.05, ge=0, le=1, description="largest share of rows that may be no pairs"
    )
    use_margin: bool = Field(default=True, description="a margin column enters the loss")


class OptimiserSettings(Section):
    """AdamW, with linear warm-up and linear decay to zero."""

    lr: float = Field(gt=0)
    batch_pairs: int = Field(default=128, gt=0, description="pairs per step, over all ranks")
    epochs: int = Field(default=1, gt=0)
    max_steps: int | None = Field(default=None, gt=0, description="stop the schedule early")
    warmup_share: float = Field(default=0.05, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    max_grad_norm: float = Field(default=1.0, gt=0)


class ComputeSettings(Section):
    """How a step is computed. Nothing here changes the objective, but for ``micro_batch_pairs``
    with ``loss.scope: micro``."""

    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="bfloat16: autocast around float32 weights"
    )
    micro_batch_tokens: int = Field(default=16384, gt=0, description="tokens computed at once")
    micro_batch_pairs: int | None = Field(
        default=None, gt=0, description="pairs at once; required by loss.scope micro"
    )
    activation_checkpointing: bool = Field(
        default=False, description="compute activations again in the backward pass: less memory"
    )
    liger: bool = Field(
        default=False, description="Liger's fused kernels; CUDA, pip install liger-kernel"
    )
    compile: bool = Field(default=False, description="torch.compile the layers' feed-forward parts")


class LoraSettings(Section):
    """Low-rank adapters on every linear layer of the backbone, through PEFT; the head is trained
    whole."""

    rank: int = Field(default=16, gt=0)
    alpha: float = Field(default=32.0, gt=0, description="adapters count alpha / rank times")
    save: Literal["merged", "adapter"] = Field(
        default="merged",
        description="adapter: write adapter/ alone; merged: that, and model/ with it added in",
    )


class RunSettings(Section):
    """What a run writes, and how often."""

    log_every: int = Field(default=1, gt=0, description="steps between lines of metrics.jsonl")
    validate_every: int | None = Field(default=None, gt=0, description="steps; default: each epoch")
    checkpoint_every: int | None = Field(
        default=None, gt=0, description="steps; default: each epoch"
    )
    keep_checkpoints: int = Field(default=2, gt=0, description="the latest so many are kept")
    probe_pairs: int = Field(
        default=128, gt=0, description="train pairs measured at each validation, from step 0 on"
    )
    keep_rewards: bool = Field(
        default=False, description="write the rewards of every validation set, rewards/step-N.json"
    )
    tensorboard: bool = True
    wandb: str | None = Field(
        default=None, description="Weights & Biases project to log to; pip install wandb"
    )
    best_by: str | None = Field(
        default=None,
        description="keep the best model too, by this measurement: validation/NAME/accuracy",
    )
    best_is: Literal["highest", "lowest"] = "highest"
    patience: int | None = Field(
        default=None, gt=0, description="stop after so many validations in a row without a best"
    )

    @model_validator(mode="after")
    def _patience_needs_a_measure(self) -> "RunSettings":
        if self.patience is not None and self.best_by is None:
            raise ValueError("patience needs best_by: by which measurement?")
        return self


class RewardSettings(Settings):
    """Everything ``python -m trainer.reward`` is told."""

    backbone: str = Field(description="Hugging Face directory or hub name to start from")
    output_dir: Path = Field(description="run directory; the model ends up in its model/")
    loss: LossSettings
    data: DataSettings
    optimiser: OptimiserSettings
    compute: ComputeSettings = ComputeSettings()
    run: RunSettings = RunSettings()
    lora: LoraSettings | None = Field(default=None, description="train adapters, not all weights")
    seed: int = Field(default=0, description="of the head's first weights and the order of data")
    seeds: int = Field(
        default=1,
        gt=0,
        description="train so many seeds from seed on, each in seed-N/, and compare",
    )
    chat_template: Path | None = Field(
        default=None, description="Jinja file to use instead of the tokenizer's own template"
    )
    restart: bool = Field(default=False, description="throw away what output_dir holds")

    @model_validator(mode="after")
    def _micro_scope_needs_its_size(self) -> "RewardSettings":
        if self.loss.scope == "micro" and self.compute.micro_batch_pairs is None:
            raise ValueError("loss.scope micro: give compute.micro_batch_pairs, it is part of M")
        return self
