"""Whole runs with the embedded generator: they end, improve, checkpoint and resume."""

import html
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reward_model.errors import SumzeroError, UsageError
from tests.checkpoints import tiny_checkpoint
from trainer.metrics import read_metrics
from trainer.rloo.checkpoint import list_checkpoints
from trainer.rloo.config import RlooSettings
from trainer.rloo.ledger import read_ledger
from trainer.rloo.report import heldout_gain
from trainer.rloo.sample_table import read_table
from trainer.rloo.train import train

calls = 0
breaks_after = 10**9


def short_answers(prompts, completions):
    """Rewards short answers: easy to learn for a random model. Can be told to break."""
    global calls
    calls += 1
    if calls > breaks_after:
        raise RuntimeError("the reward broke")
    return [-len(text) / 10 for text in completions]


@pytest.fixture(autouse=True)
def unbroken():
    global calls, breaks_after
    calls, breaks_after = 0, 10**9


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("world")
    tiny_checkpoint(path / "policy", "qwen2", "causal")
    for name, count in (("train", 10), ("held", 6)):
        rows = [{"prompt": f"{name} question {n}?"} for n in range(count)]
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(world: Path, output: Path, **changes) -> RlooSettings:
    values = {
        "policy": str(world / "policy"),
        "prompts": world / "train.jsonl",
        "output_dir": output,
        "reward": {
            "sources": [{"function": f"{__name__}:short_answers"}], "missing_eos_penalty": 0.1,
        },
        "generation": {
            "backend": "embedded", "samples_per_prompt": 4, "temperature": 1.0,
            "max_new_tokens": 12, "max_prompt_tokens": 64,
        },
        "objective": {"beta": 0.01},
        "optimizer": {"learning_rate": 3e-3, "warmup": 0.0, "schedule": "constant"},
        "batch_size": 16,
        "epochs": 2,
        "staleness": 0,
        "checkpoint_steps": 2,
        "tensorboard": False,
    }  # fmt: skip
    return RlooSettings(**(values | changes))


def weights(output: Path) -> torch.Tensor:
    return weights_of(output / "policy")


def weights_of(checkpoint: Path) -> torch.Tensor:
    tensors = load_file(checkpoint / "model.safetensors")
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def trained_positions(output: Path) -> Counter:
    return Counter(p for line in read_ledger(output) for p in line.get("trained", ()))


def test_a_run_ends_and_trains_every_prompt_of_every_epoch_once(world, tmp_path):
    heldout = {"prompts": world / "held.jsonl", "samples_per_prompt": 16, "every": 2}
    samples = {"every": 2, "prompts": 3}
    policy = train(settings(world, tmp_path, staleness=1, heldout=heldout, samples=samples))
    assert policy == tmp_path / "policy"
    assert trained_positions(tmp_path) == Counter(range(20))
    steps = [line for line in read_metrics(tmp_path) if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5]
    assert max(line["staleness_max"] for line in steps) == 1
    for name in (
        "reward", "kl", "entropy", "length", "eos_share", "advantage_std", "ratio_mean",
        "ratio_max", "truncated_share", "staleness", "tokens_per_second", "idle/generate",
        "idle/score", "idle/learn", "raw/reward",
    ):  # fmt: skip
        assert all(line[name] is not None for line in steps), name
    evaluations = [line["step"] for line in read_metrics(tmp_path) if "heldout/reward" in line]
    assert evaluations == [0, 2, 4, 5]
    tables = {path.name for path in (tmp_path / "samples").iterdir()}
    assert tables == {"step-1.jsonl", "step-2.jsonl", "step-4.jsonl"}
    shown = read_table(tmp_path / "samples/step-4.jsonl")
    assert [len(row["samples"]) for row in shown] == [4] * 3
    assert {one["version"] for row in shown for one in row["samples"]} <= {2, 3}
    text = shown[0]["samples"][0]["text"]
    assert html.escape(text) in (tmp_path / "report.html").read_text()
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_no_steps_measure_the_policy_as_it_is(world, tmp_path):
    heldout = {"prompts": world / "held.jsonl", "samples_per_prompt": 3}
    policy = train(settings(world, tmp_path, heldout=heldout, max_steps=0))
    (line,) = [line for line in read_metrics(tmp_path) if "heldout/kl" in line]
    assert (line["step"], line["heldout/kl"]) == (0, 0.0)
    table = read_table(tmp_path / "heldout-0.jsonl")
    assert [len(row["samples"]) for row in table] == [3] * 6
    assert all(one["raw/reward"] is not None for row in table for one in row["samples"])
    assert torch.equal(weights(tmp_path), weights_of(world / "policy"))
    assert policy.is_dir()


def test_the_reward_rises_on_held_out_prompts(world, tmp_path):
    heldout = {"prompts": world / "held.jsonl", "samples_per_prompt": 32}
    train(settings(world, tmp_path, heldout=heldout, epochs=24, batch_size=32, staleness=1))
    before, after, error, prompts = heldout_gain(tmp_path)
    assert prompts == 6
    assert after - before > 3 * error > 0


def test_a_synchronous_run_is_reproducible_and_on_policy(world, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    train(settings(world, one))
    train(settings(world, other))
    torch.testing.assert_close(weights(one), weights(other), atol=1e-5, rtol=0)
    steps = [line for line in read_metrics(one) if "loss" in line]
    assert all(line["staleness_max"] == 0 for line in steps)
    assert all(line["sampler_difference"] < 1e-5 for line in steps)


def test_a_broken_run_resumes_to_what_an_unbroken_one_gives(world, tmp_path):
    global breaks_after
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(settings(world, whole))
    breaks_after = calls + 14  # in the fourth step, after the checkpoint of the second
    with pytest.raises(RuntimeError, match="the reward broke"):
        train(settings(world, broken))
    assert [path.name for path in list_checkpoints(broken)] == ["step-2"]
    breaks_after = 10**9
    train(settings(world, broken))
    torch.testing.assert_close(weights(whole), weights(broken), atol=1e-5, rtol=0)
    assert trained_positions(broken) == Counter(range(20))
    lines = [line["step"] for line in read_metrics(broken) if "loss" in line]
    assert lines == [1, 2, 3, 4, 5]


def test_other_settings_in_the_same_directory_are_refused(world, tmp_path):
    train(settings(world, tmp_path, max_steps=1))
    with pytest.raises(UsageError, match=r"objective\.beta.*restart"):
        train(settings(world, tmp_path, max_steps=1, objective={"beta": 0.3}))
    train(settings(world, tmp_path, max_steps=2, restart=True, objective={"beta": 0.3}))
    assert [line["step"] for line in read_metrics(tmp_path) if "loss" in line] == [1, 2]


def test_unscorable_prompts_are_skipped_and_listed(world, tmp_path):
    reward = {"sources": [{"function": f"{__name__}:some_unscorable"}], "attempts": 2}
    train(settings(world, tmp_path, reward=reward, epochs=1, batch_size=8))
    skipped = {p for line in read_ledger(tmp_path) for p in line.get("skipped", {})}
    assert len(skipped) == 1
    trained = trained_positions(tmp_path)
    assert trained == Counter(set(range(10)) - {int(p) for p in skipped})


def some_unscorable(prompts, completions):
    hopeless = prompts[0][-1]["content"] == "train question 3?"
    return [None if hopeless else 1.0 * n for n in range(len(completions))]


def test_bad_settings_are_one_clear_line(world, tmp_path):
    with pytest.raises(ValueError, match="samples_per_prompt must be 2 or more"):
        settings(world, tmp_path, generation={"samples_per_prompt": 1})
    with pytest.raises(ValueError, match="multiple of"):
        settings(world, tmp_path, batch_size=17)
    with pytest.raises(UsageError, match="max_prompt_tokens"):
        generation = {"backend": "embedded", "samples_per_prompt": 4, "max_new_tokens": 4000}
        train(settings(world, tmp_path, generation=generation))
    with pytest.raises(UsageError, match=r"generation\.python.*make install-vllm"):
        generation = {
            "backend": "vllm", "python": tmp_path / "absent", "samples_per_prompt": 4,
            "max_new_tokens": 12,
        }  # fmt: skip
        train(settings(world, tmp_path, generation=generation))


def test_a_gradient_that_is_not_finite_ends_the_run(world, tmp_path):
    broken = tmp_path / "policy"
    shutil.copytree(world / "policy", broken)
    reward = {"sources": [{"function": f"{__name__}:huge"}]}
    with pytest.raises(SumzeroError, match="gradient is not finite"):
        train(settings(world, tmp_path / "run", reward=reward))


def huge(prompts, completions):
    return [3e38 * (-1) ** n for n in range(len(completions))]
