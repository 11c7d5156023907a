import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from reward_model.errors import UsageError
from reward_model.model import RewardModel
from tests.checkpoints import tiny_checkpoint
from trainer.metrics import read_metrics
from trainer.sft.config import FromScratch, SftSettings
from trainer.sft.train import train

SHAPE = FromScratch(
    hidden_size=32, intermediate_size=48, layers=2, heads=2, kv_heads=1, vocabulary=320
)


def conversations(path: Path, count: int = 64) -> str:
    things = ["flour", "gulls", "bells", "roses"]
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Number {i % 4}?"},
                {"role": "assistant", "content": f"It has {things[i % 4]}."},
            ]
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def settings(tmp_path: Path, **values: object) -> SftSettings:
    given = {
        "train": conversations(tmp_path / "train.jsonl"),
        "output_dir": tmp_path / "run",
        "from_scratch": SHAPE,
        "epochs": 12,
        "batch_size": 16,
        "micro_batch_size": 8,
        "learning_rate": 1e-2,
        "log_steps": 4,
        "tensorboard": False,
    }
    return SftSettings(**(given | values))


def answer(policy: Path, question: str) -> str:
    tokenizer = AutoTokenizer.from_pretrained(policy)
    model = AutoModelForCausalLM.from_pretrained(policy)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    length = inputs["input_ids"].shape[1]
    output = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    return str(tokenizer.decode(output[0, length:]))


def test_a_policy_from_scratch_learns_to_answer_and_to_stop(tmp_path: Path) -> None:
    policy = train(settings(tmp_path, epochs=30))
    assert answer(policy, "Number 2?") == "It has bells.<|im_end|>"
    losses = [line["loss"] for line in read_metrics(tmp_path / "run")]
    assert losses[-1] < losses[0] / 10
    assert (tmp_path / "run" / "report.html").is_file()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_finished_run_is_left_alone_and_another_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = train(settings(tmp_path, epochs=1))
    written = (policy / "model.safetensors").stat().st_mtime_ns
    train(settings(tmp_path, epochs=1, log_steps=1))
    assert "already finished" in capsys.readouterr().out
    assert (policy / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(UsageError, match=r"other settings \(epochs\)"):
        train(settings(tmp_path, epochs=2))
    train(settings(tmp_path, epochs=2, restart=True))
    assert (policy / "model.safetensors").stat().st_mtime_ns > written


def test_a_run_that_could_not_begin_binds_nobody(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.jsonl"):
        train(settings(tmp_path, train="absent.jsonl"))
    policy = train(settings(tmp_path, epochs=0))
    with pytest.raises(UsageError, match=r"other settings \(epochs\)"):
        train(settings(tmp_path, epochs=1))
    assert policy.is_dir()


def test_zero_epochs_write_the_backbone_and_a_reward_model_starts_from_it(tmp_path: Path) -> None:
    policy = train(settings(tmp_path, epochs=0))
    causal = AutoModelForCausalLM.from_pretrained(policy)
    reward = RewardModel.from_backbone(policy)
    ours = reward.backbone.get_parameter("embed_tokens.weight")
    assert torch.equal(ours, causal.get_input_embeddings().weight)


def test_a_tied_base_is_untied_and_fine_tuned(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base", "qwen2", task="causal", tie_word_embeddings=True)
    policy = train(settings(tmp_path, from_scratch=None, base=str(base), epochs=1))
    model = AutoModelForCausalLM.from_pretrained(policy)
    assert not model.config.tie_word_embeddings
    assert not torch.equal(
        model.get_input_embeddings().weight, model.get_output_embeddings().weight
    )


def test_long_conversations_are_left_out(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="longer than max_length 3"):
        train(settings(tmp_path, max_length=3))


def test_one_origin_is_required(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="either base or from_scratch"):
        settings(tmp_path, base="somewhere")


@pytest.mark.integration
def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    """kill -9 after the first checkpoint, start again, compare with a run that was left alone."""
    source = conversations(tmp_path / "train.jsonl")
    config = tmp_path / "config.yaml"
    config.write_text(
        json.dumps(
            {
                "train": source,
                "from_scratch": SHAPE.model_dump(),
                "epochs": 40,
                "batch_size": 16,
                "micro_batch_size": 16,
                "learning_rate": 1e-3,
                "save_steps": 10,
                "log_steps": 1,
                "tensorboard": False,
            }
        )
    )

    def start(name: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "trainer.sft"),
                *("--config", str(config), "--output_dir", str(tmp_path / name)),
            ],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    assert start("whole").wait() == 0
    killed = start("killed")
    while not list((tmp_path / "killed" / "checkpoints").glob("checkpoint-*/trainer_state.json")):
        assert killed.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "model").exists()
    assert start("killed").wait() == 0

    whole, resumed = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name / "model").state_dict()
        for name in ("whole", "killed")
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    steps = [line["step"] for line in read_metrics(tmp_path / "killed")]
    assert steps == sorted(set(steps))
