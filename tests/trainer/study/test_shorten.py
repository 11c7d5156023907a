"""A shortened decoder against the hidden states of the whole one, by transformers."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from reward_model.errors import UsageError
from reward_model.model import RewardModel
from tests.checkpoints import tiny_checkpoint
from trainer.study.shorten import ShortenSettings, shorten


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_it_computes_the_first_layers(architecture: str, tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "whole", architecture, task="causal")
    out = tmp_path / "short"
    shorten(ShortenSettings(model=str(source), layers=1, out=out))
    whole, short = (AutoModelForCausalLM.from_pretrained(path) for path in (source, out))
    assert whole.config.num_hidden_layers > short.config.num_hidden_layers == 1
    ids = torch.tensor([[5, 7, 11, 13]])
    with torch.no_grad():
        after_one = whole(ids, output_hidden_states=True).hidden_states[1]
        expected = whole.base_model.norm(after_one)
        found = short.base_model(ids).last_hidden_state
    assert torch.equal(found, expected)
    texts = [AutoTokenizer.from_pretrained(path).encode("some bread") for path in (source, out)]
    assert texts[0] == texts[1]
    RewardModel.from_backbone(str(out))


def test_more_layers_than_there_are_are_refused(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "whole", "qwen2", task="causal")
    with pytest.raises(UsageError, match=r"layers: .* not 50"):
        shorten(ShortenSettings(model=str(source), layers=50, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
