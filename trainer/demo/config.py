"""The settings of the demo, and how large each of its scales is."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from reward_model.command import Section, Settings
from trainer.demo.cells import Sizes


class DemoSettings(Settings):
    """``python -m trainer.demo``: the whole system, once through, on a world of its own."""

    scale: Literal["full", "ci"] = "full"
    output_dir: Path | None = Field(default=None, description="default: runs/demo-<scale>")
    backend: Literal["auto", "vllm", "embedded"] = Field(
        default="auto", description="who generates; auto: vLLM where its environment is installed"
    )
    seed: int = 0
    restart: bool = Field(default=False, description="throw away what output_dir holds")

    @property
    def directory(self) -> Path:
        return self.output_dir or Path("runs") / f"demo-{self.scale}"


class Scale(Section):
    """What a scale costs: sizes of the data, of the model, and lengths of the runs."""

    sizes: Sizes
    hidden_size: int
    layers: int
    sft_epochs: int
    reward_epochs: int
    rloo_steps: int
    rloo_batch: int
    samples_per_prompt: int
    heldout_prompts: int
    heldout_every: int


SCALES: dict[str, Scale] = {
    "full": Scale(
        sizes=Sizes(conversations=3200, train=1000, unseen=80, policy=160),
        hidden_size=64,
        layers=2,
        sft_epochs=4,
        reward_epochs=4,
        rloo_steps=100,
        rloo_batch=64,
        samples_per_prompt=4,
        heldout_prompts=24,
        heldout_every=10,
    ),
    "ci": Scale(
        sizes=Sizes(conversations=1600, train=400, unseen=40, policy=80),
        hidden_size=64,
        layers=2,
        sft_epochs=3,
        reward_epochs=2,
        rloo_steps=20,
        rloo_batch=32,
        samples_per_prompt=4,
        heldout_prompts=16,
        heldout_every=10,
    ),
}
