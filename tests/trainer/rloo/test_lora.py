"""Adapters: the reference is the base, what is published is merged, a broken run resumes."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.checkpoints import tiny_checkpoint, tiny_model
from tests.trainer.rloo.groups import random_groups
from tests.trainer.rloo.test_train import settings, weights
from trainer.metrics import read_metrics
from trainer.rloo.config import Lora, Objective, Optimizer
from trainer.rloo.learner import Learner
from trainer.rloo.lora import BasePolicy, add_adapters, merged_weights
from trainer.rloo.policy import Policy
from trainer.rloo.train import train

LORA = Lora(rank=4, alpha=8.0)


def adapted() -> Learner:
    model = tiny_model("qwen2", "causal", seed=0)
    add_adapters(model, LORA, base="policy", seed=0)
    policy = Policy(model, 0.7)
    return Learner(
        policy, BasePolicy(policy), Objective(), Optimizer(learning_rate=1e-2), total_steps=10,
        max_batch_tokens=300,
    )  # fmt: skip


def test_the_reference_is_the_base_while_the_policy_moves():
    learner, base = adapted(), Policy(tiny_model("qwen2", "causal", seed=0), 0.7)
    groups = random_groups(base)
    arguments = ([groups[0].prompt.token_ids], [groups[0].samples[0].token_ids])
    expected = base(*arguments).logprobs_R.detach()
    torch.testing.assert_close(learner.logprobs(*arguments).logprobs_R, expected)
    values = learner.step(groups, 5)
    assert values["kl"] == pytest.approx(0, abs=1e-4), "B is zero at first"
    torch.testing.assert_close(learner.reference(*arguments).logprobs_R.detach(), expected)
    moved = learner.logprobs(*arguments).logprobs_R
    assert float((moved - expected).abs().max()) > 1e-2
    assert learner.step(groups, 5)["kl"] != pytest.approx(0, abs=1e-3)


def test_only_adapters_are_trained_and_all_of_them_move():
    learner = adapted()
    assert all(".lora_" in name for name in learner.trained)
    before = {name: one.detach().clone() for name, one in learner.policy.named_parameters()}
    for step in (4, 5):  # A's gradient is zero while B is
        learner.step(random_groups(Policy(tiny_model("qwen2", "causal", seed=0), 0.7)), step)
    for name, parameter in learner.policy.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in learner.trained), name


def test_merged_weights_compute_what_the_policy_does():
    learner = adapted()
    groups = random_groups(Policy(tiny_model("qwen2", "causal", seed=0), 0.7))
    learner.step(groups, 5)
    plain = tiny_model("qwen2", "causal", seed=1)
    plain.load_state_dict(merged_weights(learner.policy.model))
    arguments = ([groups[0].prompt.token_ids], [groups[0].samples[0].token_ids])
    with torch.no_grad():
        torch.testing.assert_close(
            Policy(plain, 0.7)(*arguments).logprobs_R, learner.policy(*arguments).logprobs_R,
            atol=1e-4, rtol=1e-4,
        )  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    path = tmp_path_factory.mktemp("world")
    tiny_checkpoint(path / "policy", "qwen2", "causal")
    rows = [{"prompt": f"train question {n}?"} for n in range(10)]
    (path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_run_is_resumed_and_its_adapters_open_in_peft(world, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(settings(world, whole, lora=LORA))
    train(settings(world, broken, lora=LORA, max_steps=5))
    steps = [line for line in read_metrics(whole) if "loss" in line]
    assert len(steps) == 5
    assert all(line["sampler_difference"] < 1e-4 for line in steps), "merged weights are published"
    assert steps[-1]["kl"] != 0
    # As if killed after the checkpoint of step 4: the same command goes on to the same weights.
    stored = json.loads((whole / "settings.json").read_text())
    (broken / "settings.json").write_text(json.dumps(stored | {"output_dir": str(broken)}))
    (broken / "checkpoints" / "step-5" / "state.json").unlink()
    train(settings(world, broken, lora=LORA))
    torch.testing.assert_close(weights(whole), weights(broken), atol=1e-5, rtol=0)

    base = AutoModelForCausalLM.from_pretrained(world / "policy", dtype=torch.float32)
    opened = PeftModel.from_pretrained(base, whole / "adapter").merge_and_unload().state_dict()
    for name, tensor in load_file(whole / "policy" / "model.safetensors").items():
        torch.testing.assert_close(opened[name], tensor, atol=1e-6, rtol=1e-5)
