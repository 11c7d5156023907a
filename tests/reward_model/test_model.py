import random
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from reward_model.contract import Contract, RewardStats
from reward_model.errors import CheckpointError
from reward_model.model import RewardModel
from reward_model.scoring import score_token_ids
from reward_model.self_test import self_test
from tests.checkpoints import DECODERS, ENCODERS, tiny_checkpoint

LENGTHS = (1, 5, 63, 64, 65, 190, 300)


@pytest.fixture(scope="module", params=DECODERS + ENCODERS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / request.param, request.param)


def random_sequences(seed: int = 0, lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, 300) for _ in range(length)] for length in lengths]


def test_scores_equal_transformers_at_batch_one(checkpoint: Path) -> None:
    model = RewardModel.load(checkpoint)
    reference = AutoModelForSequenceClassification.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    sequences = random_sequences()
    with torch.inference_mode():
        wanted = [reference(input_ids=torch.tensor([ids])).logits[0, 0].item() for ids in sequences]
    assert score_token_ids(model, sequences) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_score_does_not_depend_on_its_batch(checkpoint: Path, dtype: str) -> None:
    result = self_test(RewardModel.load(checkpoint, dtype=dtype), rounds=4)
    assert result.compared >= 40
    assert result.differing == 0


def test_gradients_equal_transformers(checkpoint: Path) -> None:
    """Two sequences with a common prefix, so that a shared tile's gradient has two sources."""
    model = RewardModel.load(checkpoint).train()
    reference = AutoModelForSequenceClassification.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    )
    prompt, one, two = random_sequences(1, (100, 30, 90))
    sequences = [prompt + one, prompt + two]
    weights = (1.0, -2.0)
    rewards = model(model.pack(sequences)).rewards_N
    sum(w * r for w, r in zip(weights, rewards, strict=True)).backward()
    for weight, ids in zip(weights, sequences, strict=True):
        (weight * reference(input_ids=torch.tensor([ids])).logits[0, 0]).backward()
    wanted = dict(reference.named_parameters())
    for name, parameter in model.classifier.named_parameters():
        if parameter.grad is None:
            assert wanted[name].grad is None or not wanted[name].grad.any(), name
            continue
        scale = wanted[name].grad.abs().max().clamp_min(1e-3)
        assert (parameter.grad - wanted[name].grad).abs().max() / scale < 1e-3, name


def test_a_broken_neighbour_stays_alone(tmp_path: Path) -> None:
    """A token whose embedding is NaN spoils the sequences that hold it and no other."""
    model = RewardModel.load(tiny_checkpoint(tmp_path / "m"))
    sequences = random_sequences(2, (70, 70, 130))
    clean = score_token_ids(model, sequences)
    with torch.no_grad():
        model.classifier.get_input_embeddings().weight[301] = float("nan")
    spoiled = score_token_ids(model, [*sequences, [*sequences[0][:64], 301]])
    assert spoiled[:3] == clean
    assert spoiled[3] != spoiled[3]


def test_a_fresh_head_is_seeded_and_scaled(tmp_path: Path) -> None:
    backbone = tiny_checkpoint(tmp_path / "b", task="backbone")
    one = RewardModel.from_backbone(backbone, seed=1)
    again = RewardModel.from_backbone(backbone, seed=1)
    other = RewardModel.from_backbone(backbone, seed=2)
    assert torch.equal(one.head.weight, again.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)
    assert one.head.weight.norm().item() == pytest.approx(1.0, abs=0.3)


@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_an_encoder_head_has_no_bias_to_hide_in(tmp_path: Path, architecture: str) -> None:
    model = RewardModel.from_backbone(
        tiny_checkpoint(tmp_path / "b", architecture, "backbone"), seed=0
    )
    assert model.head.bias is not None
    assert not model.head.bias.requires_grad
    assert model.head.bias.item() == 0.0
    assert model.contract.append_eos
    assert model.encoder.prompt_response("hi", "yo").token_ids[0] == model.tokenizer.cls_token_id
    dropout = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    assert not any(dropout)


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    model = RewardModel.from_backbone(tiny_checkpoint(tmp_path / "b", task="backbone"), seed=3)
    stats = RewardStats(mean=0.1, std=1.5, n=10, split="train")
    saved = model.save(tmp_path / "out", model.contract.model_copy(update={"stats": stats}))
    loaded = RewardModel.load(tmp_path / "out")
    assert loaded.contract == saved
    assert loaded.model_version == saved.model_version
    sequences = random_sequences(4)
    assert score_token_ids(loaded, sequences) == score_token_ids(model.eval(), sequences)


def test_a_checkpoint_without_a_head_is_refused(tmp_path: Path) -> None:
    for task in ("causal", "backbone"):
        with pytest.raises(CheckpointError, match=r"no trained reward head.*score\.weight"):
            RewardModel.load(tiny_checkpoint(tmp_path / task, task=task))


def test_several_labels_are_refused(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "m", num_labels=3)
    with pytest.raises(CheckpointError, match="3 labels"):
        RewardModel.load(path)


def test_a_directory_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        RewardModel.load(tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "m")
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="safetensors"):
        RewardModel.load(path)


def test_changed_weights_are_noticed(tmp_path: Path) -> None:
    model = RewardModel.from_backbone(tiny_checkpoint(tmp_path / "b", task="backbone"), seed=0)
    model.save(tmp_path / "out")
    config = tmp_path / "out" / "config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(CheckpointError, match="have changed"):
        RewardModel.load(tmp_path / "out")


def test_last_non_pad_reads_what_transformers_reads(tmp_path: Path) -> None:
    """A foreign model whose pad token is its EOS: transformers pools the token before EOS."""
    path = tiny_checkpoint(tmp_path / "m", pad_token_id=2)
    reference = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32)
    ids = [*random_sequences(5, (40,))[0], 2]
    with torch.inference_mode():
        wanted = reference.eval()(input_ids=torch.tensor([ids])).logits[0, 0].item()
    inferred = RewardModel.load(path)
    contract = inferred.contract.model_copy(update={"pooling": "last_non_pad"})
    Contract.model_validate(contract.model_dump()).write(path)
    assert score_token_ids(RewardModel.load(path), [ids])[0] == pytest.approx(wanted, abs=1e-5)
    assert score_token_ids(inferred, [ids])[0] != pytest.approx(wanted, abs=1e-5)


def test_a_foreign_version_is_that_of_the_files_wherever_they_stand(tmp_path: Path) -> None:
    first = RewardModel.load(tiny_checkpoint(tmp_path / "one"))
    assert first.contract.template_source == "inferred"
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert RewardModel.load(tmp_path / "two").model_version == first.model_version
