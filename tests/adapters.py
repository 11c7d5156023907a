"""Adapters written by PEFT itself on tiny bases, for scoring."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from tests.checkpoints import is_encoder, tiny_tokenizer


def tiny_adapter(
    directory: Path, base: Path, *, seed: int = 0, tokenizer: bool = True, **changes: Any
) -> Path:
    """Write a random adapter with a random score head to ``directory`` and return it."""
    model = open_base(base)
    options: dict[str, Any] = {
        "task_type": "SEQ_CLS",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": "all-linear",
        "base_model_name_or_path": str(base),
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = get_peft_model(model, LoraConfig(**(options | changes)))
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3 if "lora_" not in name else 0.1)
    adapted.save_pretrained(str(directory))
    if tokenizer:
        tiny_tokenizer(is_encoder(model.config.model_type)).save_pretrained(directory)
    return directory


def open_base(base: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The base as PEFT's users open it; SDPA would leave Gemma-2's soft cap out."""
    return AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=1, dtype=dtype, attn_implementation="eager"
    )


@torch.no_grad()
def peft_scores(
    adapter: Path, base: Path, sequences: list[list[int]], *, merged: bool = False
) -> list[float]:
    """PEFT's own forward, one sequence after another; unmerged unless asked otherwise."""
    model: Any = PeftModel.from_pretrained(open_base(base), str(adapter)).eval()
    if merged:
        model = model.merge_and_unload()
    return [model(input_ids=torch.tensor([one])).logits.item() for one in sequences]
