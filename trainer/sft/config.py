"""The settings of ``python -m trainer.sft``."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from reward_model.command import Section, Settings


class FromScratch(Section):
    """A small decoder and its tokenizer, made from the training conversations.

    Positions are not learned, so ``max_positions`` costs nothing; it bounds prompt + response.
    """

    architecture: Literal["qwen2", "llama"] = "qwen2"
    hidden_size: int = Field(default=128, gt=0)
    intermediate_size: int = Field(default=384, gt=0)
    layers: int = Field(default=4, gt=0)
    heads: int = Field(
        default=4, gt=0, description="vLLM on the CPU needs hidden_size / heads of 32 or more"
    )
    kv_heads: int = Field(default=2, gt=0)
    max_positions: int = Field(default=1024, gt=0)
    vocabulary: int = Field(default=1024, ge=300, description="tokens of the byte-level BPE")

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.hidden_size % self.heads or (self.hidden_size // self.heads) % 2:
            raise ValueError("hidden_size / heads must be an even number")
        if self.heads % self.kv_heads:
            raise ValueError("heads must be a multiple of kv_heads")
        return self


class SftSettings(Settings):
    """Conversations in, a plain Hugging Face causal language model out.

    Give ``base`` to fine-tune a model, or ``from_scratch`` to make a small one.
    """

    train: str = Field(description="rows of messages, or pairs: JSONL, Parquet, or a hub name")
    split: str = Field(default="train", description="split of a hub data set")
    output_dir: Path = Field(description="run directory; the policy ends up in its model/")
    base: str | None = Field(default=None, description="checkpoint directory or hub name")
    from_scratch: FromScratch | None = None
    epochs: float = Field(default=1.0, ge=0, description="0 writes the untrained model")
    batch_size: int = Field(default=32, gt=0, description="conversations per optimiser step")
    micro_batch_size: int = Field(default=32, gt=0)
    learning_rate: float = Field(default=1e-5, gt=0)
    warmup: float = Field(default=0.1, ge=0, lt=1, description="share of the steps")
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = Field(default=0.0, ge=0)
    max_length: int = Field(default=1024, gt=0, description="tokens; longer ones are left out")
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    log_steps: int = Field(default=10, gt=0)
    save_steps: int = Field(default=200, gt=0)
    tensorboard: bool = True
    trust_remote_code: bool = False
    restart: bool = Field(default=False, description="throw away what output_dir holds")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.base is None) == (self.from_scratch is None):
            raise ValueError("give either base or from_scratch")
        if self.batch_size % self.micro_batch_size:
            raise ValueError("batch_size must be a multiple of micro_batch_size")
        return self
