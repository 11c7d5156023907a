"""LoRA adapters: PEFT's scores, exact in any batch, on weights that are shared."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from reward_model.bases import Bases
from reward_model.contract import Contract
from reward_model.errors import CheckpointError
from reward_model.lora import LoraLinear
from reward_model.model import RewardModel
from reward_model.scoring import score_token_ids
from reward_model.self_test import self_test
from tests.adapters import peft_scores, tiny_adapter
from tests.checkpoints import tiny_checkpoint, tiny_tokenizer

SEQUENCES = [[5, 6, 7, 8, 9], [40, 41, 42], [9, 10] * 70]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("base") / "base", "qwen2", "causal")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    return tiny_adapter(tmp_path_factory.mktemp("adapter") / "a", base)


PATTERNS = {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"layers.1.mlp.up_proj": 2}}


@pytest.mark.parametrize(
    ("architecture", "task", "changes"),
    [
        ("qwen2", "causal", {}),
        ("qwen2", "backbone", {"r": 1, "use_rslora": True, "bias": "lora_only"}),
        ("llama", "reward", PATTERNS),
        ("gemma2", "causal", {"target_modules": ["q_proj", "down_proj"]}),
        ("bert", "backbone", {}),
        ("roberta", "backbone", {"target_modules": ["query", "value"]}),
        ("modernbert", "reward", {"target_modules": ["Wqkv", "Wo"]}),
        ("deberta-v2", "reward", {"target_modules": ["query_proj"]}),
    ],
)
def test_scores_are_pefts_own_and_exact(
    tmp_path: Path, architecture: str, task: Any, changes: dict[str, Any]
) -> None:
    base = tiny_checkpoint(tmp_path / "base", architecture, task)
    adapter = tiny_adapter(tmp_path / "adapter", base, **changes)
    model = RewardModel.load(adapter)
    scores = score_token_ids(model, SEQUENCES)
    unmerged = peft_scores(adapter, base, SEQUENCES)
    assert scores == pytest.approx(unmerged, abs=1e-5)
    assert scores == pytest.approx(peft_scores(adapter, base, SEQUENCES, merged=True), abs=1e-4)
    assert max(unmerged) - min(unmerged) > 1e-2
    assert self_test(model).passed
    assert (model.obstacle is None) == (architecture != "deberta-v2")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rank", [1, 3, 16])
def test_a_batch_changes_no_bit(base: Path, tmp_path: Path, dtype: str, rank: int) -> None:
    model = RewardModel.load(tiny_adapter(tmp_path / "a", base, r=rank), dtype=dtype)
    rng = random.Random(rank)
    prompt = rng.choices(range(5, 300), k=140)
    sequences = [rng.choices(range(5, 300), k=rng.randint(1, 200)) for _ in range(12)]
    sequences += [prompt + rng.choices(range(5, 300), k=rng.randint(1, 90)) for _ in range(12)]
    alone = [score_token_ids(model, [one], share_prefix=False)[0] for one in sequences]
    assert score_token_ids(model, sequences) == alone


def test_models_on_one_base_share_its_weights(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Each has adapters, head and configuration of its own, and no other parameter."""
    bases = Bases()
    other = tiny_adapter(tmp_path / "b", base, seed=1)
    a, b = (RewardModel.load(path, bases=bases) for path in (adapter, other))
    own = {name for name, _ in a.named_parameters() if ".lora_" in name or ".score." in name}
    theirs = dict(b.named_parameters())
    for name, parameter in a.named_parameters():
        assert (parameter.data_ptr() == theirs[name].data_ptr()) == (name not in own), name
    assert a.classifier.config is not b.classifier.config
    assert score_token_ids(a, SEQUENCES) == score_token_ids(RewardModel.load(adapter), SEQUENCES)
    assert score_token_ids(b, SEQUENCES) == score_token_ids(RewardModel.load(other), SEQUENCES)


def test_a_whole_model_shares_with_the_adapters_on_it(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base")
    alone = score_token_ids(RewardModel.load(base), SEQUENCES)
    adapter = tiny_adapter(tmp_path / "a", base)
    for first, second in [(adapter, base), (base, adapter)]:
        bases = Bases()
        models = {path: RewardModel.load(path, bases=bases) for path in (first, second)}
        pointers = [model.backbone.embed_tokens.weight.data_ptr() for model in models.values()]
        assert pointers[0] == pointers[1]
        assert not any(isinstance(layer, LoraLinear) for layer in models[base].modules())
        assert score_token_ids(models[base], SEQUENCES) == alone


def test_a_base_is_let_go_with_its_last_model(adapter: Path) -> None:
    bases = Bases()
    model = RewardModel.load(adapter, bases=bases)
    assert len(bases._held) == 1
    del model
    assert len(bases._held) == 0


def test_an_adapter_without_a_head_takes_that_of_its_base(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base")
    adapter = tiny_adapter(tmp_path / "a", base)
    drop(adapter, "score")
    model = RewardModel.load(adapter)
    assert model.head.weight.equal(RewardModel.load(base).head.weight)


def test_the_version_covers_base_adapter_and_contract(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    def version(path: Path, **options: Any) -> str | None:
        return RewardModel.load(path, **options).model_version

    first = version(adapter)
    assert first == version(adapter)
    same = tiny_adapter(tmp_path / "same", base)
    change(same, base_model_name_or_path="elsewhere", revision="main")
    assert version(same, base=base) == first  # files that moved
    assert version(tiny_adapter(tmp_path / "other", base, seed=1)) != first
    another = tiny_checkpoint(tmp_path / "base", "qwen2", "causal", seed=1)
    assert version(adapter, base=another) != first
    contract = RewardModel.load(adapter).contract.model_copy(update={"append_eos": True})
    contract.model_copy(update={"model_version": None}).write(same)
    ours = RewardModel.load(same, base=base)
    assert ours.contract.append_eos
    assert ours.model_version not in (first, Contract.read(same).model_version)
    change(same, lora_alpha=9)
    with pytest.raises(CheckpointError, match="files have changed"):
        RewardModel.load(same, base=base)


def test_a_foreign_adapter_has_an_inferred_contract(base: Path, tmp_path: Path) -> None:
    """Its tokenizer is its own, or that of the base."""
    adapter = tiny_adapter(tmp_path / "a", base, tokenizer=False)
    model = RewardModel.load(adapter)
    assert model.contract.template_source == "inferred"
    assert (model.contract.pooling, model.contract.bos) == ("last", "none")
    assert model.tokenizer.get_vocab() == tiny_tokenizer().get_vocab()


def test_where_the_base_is(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = tiny_adapter(tmp_path / "a", base)
    score = score_token_ids(RewardModel.load(adapter), SEQUENCES)
    (adapter / "inside").symlink_to(base)
    for name in ("inside", "from_here"):  # beside the adapter's files; from where we stand
        change(adapter, base_model_name_or_path=name)
        monkeypatch.chdir(tmp_path)
        (tmp_path / "from_here").unlink(missing_ok=True)
        (tmp_path / "from_here").symlink_to(base)
        assert score_token_ids(RewardModel.load(adapter), SEQUENCES) == score
    cache = tmp_path / "hub/models--some--backbone"
    (cache / "snapshots").mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text("0" * 40)
    (cache / "snapshots" / ("0" * 40)).symlink_to(base)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    change(adapter, base_model_name_or_path="some/backbone")
    assert score_token_ids(RewardModel.load(adapter), SEQUENCES) == score


def change(adapter: Path, **values: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def drop(adapter: Path, word: str) -> None:
    path = adapter / "adapter_model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if word not in name}
    save_file(kept, path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type IA3: only LORA"),
        ({"use_dora": True}, "use_dora is not plain LoRA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights pissa is not plain LoRA"),
        ({"r": 8}, "has rank 4 in lora_A and 4 in lora_B, adapter_config.json says 8"),
        ({"base_model_name_or_path": ""}, "names no base; give `base`"),
        ({"base_model_name_or_path": "no/such-model"}, "no/such-model is no directory here and"),
        ({"base_model_name_or_path": "/no/such/directory"}, "hf download|say where it is"),
    ],
)
def test_refused_by_its_configuration(
    base: Path, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    adapter = tiny_adapter(tmp_path / "a", base)
    change(adapter, **values)
    with pytest.raises(CheckpointError, match=message):
        RewardModel.load(adapter)


def test_refused_by_its_weights(base: Path, tmp_path: Path) -> None:
    adapter = tiny_adapter(tmp_path / "a", base)
    whole = (adapter / "adapter_model.safetensors").read_bytes()
    cases = {
        "score": "no trained reward head: score.weight stands neither.*modules_to_save: .score.",
        "0.self_attn.q_proj.lora_B": "has only one of lora_A and lora_B",
    }
    for word, message in cases.items():
        (adapter / "adapter_model.safetensors").write_bytes(whole)
        drop(adapter, word)
        with pytest.raises(CheckpointError, match=message):
            RewardModel.load(adapter)
    (adapter / "adapter_model.safetensors").write_bytes(whole[:100])
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        RewardModel.load(adapter)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="other weight formats are not read"):
        RewardModel.load(adapter)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_modules": ["embed_tokens"]}, "not LoRA of a linear layer"),
        ({"target_modules": ["q_proj", "score"], "modules_to_save": None, "task_type": None},
         "score head itself has low-rank"),
    ],
)  # fmt: skip
def test_refused_where_lora_stands_elsewhere(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    base = tiny_checkpoint(tmp_path / "base")
    adapter = tiny_adapter(tmp_path / "a", base, **changes)
    with pytest.raises(CheckpointError, match=message):
        RewardModel.load(adapter)


def test_whole_tensors_take_the_place_of_the_bases(base: Path, tmp_path: Path) -> None:
    """An embedding that was trained and made larger, for this adapter alone."""
    adapter = tiny_adapter(tmp_path / "a", base, modules_to_save=["score", "embed_tokens"])
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    [name] = [name for name in tensors if "embed_tokens" in name]
    expected = peft_scores(adapter, base, SEQUENCES)
    rows = len(tensors[name])
    tensors[name] = torch.cat([tensors[name], tensors[name][:3]])
    save_file(tensors, path)
    bases = Bases()
    model = RewardModel.load(adapter, bases=bases)
    assert score_token_ids(model, SEQUENCES) == pytest.approx(expected, abs=1e-5)
    assert model.encoder.vocab_size == rows + 3
    same_token = score_token_ids(model, [[0, 7], [rows, 7]])
    assert same_token[0] == same_token[1]
    other = RewardModel.load(tiny_adapter(tmp_path / "b", base), bases=bases)
    assert other.encoder.vocab_size == rows


def test_another_base_is_refused(adapter: Path, tmp_path: Path) -> None:
    wide = tiny_checkpoint(tmp_path / "wide", "qwen2", "causal", intermediate_size=128)
    with pytest.raises(CheckpointError, match=r"mlp\..*another base\?"):
        RewardModel.load(adapter, base=wide)
    bert = tiny_checkpoint(tmp_path / "bert", "bert", "backbone")
    with pytest.raises(CheckpointError, match=r"no layer|neither"):
        RewardModel.load(adapter, base=bert)
    with pytest.raises(CheckpointError, match="is an adapter itself"):
        RewardModel.load(adapter, base=adapter)
    whole = tiny_checkpoint(tmp_path / "whole")
    with pytest.raises(CheckpointError, match="is no adapter"):
        RewardModel.load(whole, base=adapter)


def test_half_precision_keeps_the_adapter_in_float32(adapter: Path) -> None:
    model = RewardModel.load(adapter, dtype="bfloat16")
    layer = next(layer for layer in model.modules() if isinstance(layer, LoraLinear))
    assert (layer.weight.dtype, layer.lora_A.dtype) == (torch.bfloat16, torch.float32)
    assert model.dtype == torch.bfloat16
    exact = score_token_ids(RewardModel.load(adapter), SEQUENCES)
    assert score_token_ids(model, SEQUENCES) == pytest.approx(exact, abs=0.2)
