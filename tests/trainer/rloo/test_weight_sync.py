"""Versions of the policy on disk."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from reward_model.errors import CheckpointError
from tests.checkpoints import tiny_model, tiny_tokenizer
from trainer.rloo.weight_sync import READY, WeightStore, check_ready


def test_a_version_is_a_plain_checkpoint_with_an_output_matrix_of_its_own(tmp_path):
    model = tiny_model("qwen2", "causal", tie_word_embeddings=True)
    path = WeightStore(tmp_path).write(model, tiny_tokenizer(), 7)
    check_ready(path, 7)
    config = json.loads((path / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    loaded = AutoModelForCausalLM.from_pretrained(path)
    inputs, outputs = loaded.get_input_embeddings(), loaded.get_output_embeddings()
    assert torch.equal(inputs.weight, outputs.weight)
    assert inputs.weight.data_ptr() != outputs.weight.data_ptr()
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits)


def test_old_versions_are_removed_and_later_ones_of_a_broken_run_too(tmp_path):
    store = WeightStore(tmp_path, keep=2)
    for version in (9, 1, 2, 3):
        store.write(tiny_model("qwen2", "causal"), tiny_tokenizer(), version)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v2", "v3"]


def test_what_is_not_whole_is_refused(tmp_path):
    path = WeightStore(tmp_path).write(tiny_model("qwen2", "causal"), tiny_tokenizer(), 1)
    with pytest.raises(CheckpointError, match="holds version 1, not 2"):
        check_ready(path, 2)
    (path / READY).unlink()
    with pytest.raises(CheckpointError, match="no READY marker"):
        check_ready(path, 1)
