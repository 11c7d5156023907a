"""Reward models that others trained: opened by their plain Hugging Face form, or refused."""

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from reward_model.errors import CheckpointError
from reward_model.model import RewardModel
from reward_model.scoring import score_token_ids
from reward_model.self_test import self_test
from tests.checkpoints import FOREIGN_ENCODERS, UNPACKED, tiny_checkpoint


def sequences(lengths: tuple[int, ...] = (1, 64, 65, 200)) -> list[list[int]]:
    rng = random.Random(0)
    prompt = [rng.randrange(3, 300) for _ in range(80)]
    own = [[rng.randrange(3, 300) for _ in range(length)] for length in lengths]
    return [*own, *([*prompt, *one] for one in own)]


@pytest.mark.parametrize("architecture", [*FOREIGN_ENCODERS, *UNPACKED])
def test_scores_are_those_of_transformers_whatever_the_batch(
    tmp_path: Path, architecture: str
) -> None:
    model = RewardModel.load(tiny_checkpoint(tmp_path, architecture))
    reference = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, dtype=torch.float32
    ).eval()
    mixed = sequences()
    with torch.inference_mode():
        wanted = [reference(input_ids=torch.tensor([ids])).logits[0, 0].item() for ids in mixed]
    assert score_token_ids(model, mixed) == pytest.approx(wanted, abs=1e-5)
    assert self_test(model).passed
    assert (model.obstacle is None) == (architecture not in UNPACKED)


@pytest.mark.parametrize("architecture", ["deberta-v2", "mixtral"])
def test_one_sequence_per_forward_trains_too(tmp_path: Path, architecture: str) -> None:
    model = RewardModel.load(tiny_checkpoint(tmp_path, architecture)).train()
    reference = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32)
    reference.train()
    one, two = sequences((40, 90))[:2]
    packed = model.pack([one, two])
    assert packed.computed_tokens == len(one) + len(two)
    (model(packed).rewards_N * torch.tensor([1.0, -2.0])).sum().backward()
    for weight, ids in ((1.0, one), (-2.0, two)):
        (weight * reference(input_ids=torch.tensor([ids])).logits[0, 0]).backward()
    name = "embed_tokens" if architecture == "mixtral" else "word_embeddings"
    mine, theirs = (
        next(p.grad for n, p in m.named_parameters() if name in n)
        for m in (model.classifier, reference)
    )
    assert torch.allclose(mine, theirs, rtol=1e-3, atol=1e-5)


def test_positions_of_roberta_leave_room_for_its_padding(tmp_path: Path) -> None:
    model = RewardModel.load(tiny_checkpoint(tmp_path, "roberta"))
    assert model.contract.max_length == 514 - 1 - model.classifier.config.pad_token_id


def test_a_head_that_works_otherwise_is_refused(tmp_path: Path) -> None:
    """EuroBERT scores every token and takes the mean: not one linear layer over one h."""
    with pytest.raises(CheckpointError, match="its own forward gives another one"):
        RewardModel.load(tiny_checkpoint(tmp_path, "eurobert", classifier_pooling="late"))


GATED = """
import torch
from transformers import LlamaModel, LlamaPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

class GatedReward(LlamaPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.objectives = torch.nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.gate = torch.nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    def forward(self, input_ids, attention_mask=None):
        h = self.model(input_ids, attention_mask=attention_mask).last_hidden_state[:, -1]
        rewards = self.objectives(h)
        output = SequenceClassifierOutput(logits=rewards)
        output.score = (torch.softmax(self.gate(h), -1) * rewards).sum(-1)
        return output
"""


def gated_checkpoint(path: Path) -> Path:
    """A Llama whose reward is a gated sum of four objectives, by code of its own."""
    tiny_checkpoint(path, "llama", "backbone")
    (path / "gated_reward.py").write_text(GATED)
    config = json.loads((path / "config.json").read_text())
    config |= {"auto_map": {"AutoModelForSequenceClassification": "gated_reward.GatedReward"}}
    config |= {"architectures": ["GatedReward"], "id2label": {str(n): str(n) for n in range(4)}}
    (path / "config.json").write_text(json.dumps(config))
    from safetensors.torch import load_file, save_file

    weights = {f"model.{k}": v for k, v in load_file(path / "model.safetensors").items()}
    for seed, name in enumerate(("objectives", "gate")):
        weights[f"{name}.weight"] = torch.randn(
            4, 64, generator=torch.Generator().manual_seed(seed)
        )
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


def test_a_head_of_its_own_code_needs_leave(tmp_path: Path) -> None:
    path = gated_checkpoint(tmp_path / "gated")
    with pytest.raises(CheckpointError, match="trust_remote_code"):
        RewardModel.load(path)
    model = RewardModel.load(path, trust_remote_code=True)
    reference = AutoModelForSequenceClassification.from_pretrained(
        path, trust_remote_code=True, dtype=torch.float32
    ).eval()
    mixed = sequences()
    with torch.inference_mode():
        wanted = [reference(torch.tensor([ids])).score.item() for ids in mixed]
    assert score_token_ids(model, mixed) == pytest.approx(wanted, abs=1e-6)
    assert self_test(model).passed
