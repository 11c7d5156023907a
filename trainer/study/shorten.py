"""The first layers of a decoder as a smaller backbone.

    python -m trainer.study.shorten --model ../shared/models/policy --layers 3 --out models/short

A second size without a second pretraining, the same to the bit on every machine.
"""

import sys
from pathlib import Path

from pydantic import Field

from reward_model import atomic
from reward_model.command import Settings, run
from reward_model.errors import UsageError


class ShortenSettings(Settings):
    """Which decoder, and how much of it."""

    model: str = Field(description="Hugging Face directory or hub name of a causal language model")
    layers: int = Field(gt=0, description="layers to keep, counted from the embeddings")
    out: Path = Field(description="directory to write")


def shorten(settings: ShortenSettings) -> None:
    """Write embeddings, the first layers, the final norm, the output matrix and the tokenizer.

    Raises:
        UsageError: the model has no list of decoder layers, or fewer of them.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(settings.model)
    layers = getattr(model.base_model, "layers", None)
    if layers is None:
        raise UsageError(f"model: {settings.model}: {type(model).__name__} has no decoder layers")
    if settings.layers > len(layers):
        raise UsageError(f"layers: {settings.model} has {len(layers)}, not {settings.layers}")
    model.base_model.layers = layers[: settings.layers]
    if types := getattr(model.config, "layer_types", None):
        model.config.layer_types = types[: settings.layers]
    model.config.num_hidden_layers = settings.layers
    with atomic.directory(settings.out) as directory:
        model.save_pretrained(directory)
        AutoTokenizer.from_pretrained(settings.model).save_pretrained(directory)


def _command(settings: ShortenSettings) -> None:
    shorten(settings)
    print(settings.out)


def main() -> int:
    return run(ShortenSettings, _command, prog="python -m trainer.study.shorten")


if __name__ == "__main__":
    sys.exit(main())
