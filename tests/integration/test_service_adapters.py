"""Adapters as TRL writes them, before a real service: scored, exchanged under SIGHUP, offline."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import RewardConfig, RewardTrainer

from reward_model.command import read_settings
from reward_model.model import RewardModel
from service.offline.__main__ import score_file
from service.offline.settings import OfflineSettings
from tests.adapters import peft_scores
from tests.checkpoints import tiny_checkpoint
from tests.integration.test_service_process import Service, running

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

TURNS = [
    {"role": "user", "content": "Where is the Louvre?"},
    {"role": "assistant", "content": "In Paris."},
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("base") / "base", "qwen2", "causal")


def trl_adapter(directory: Path, base: Path, seed: int) -> Path:
    """Three steps of TRL's own reward trainer with a LoRA configuration."""
    pairs = [
        {
            "prompt": [{"role": "user", "content": f"What is {n}?"}],
            "chosen": [{"role": "assistant", "content": f"It is {n}, and thanks for asking."}],
            "rejected": [{"role": "assistant", "content": f"No {n}!"}],
        }
        for n in range(12)
    ]
    trainer = RewardTrainer(
        model=str(base),
        args=RewardConfig(
            output_dir=str(directory / "run"),
            max_steps=3,
            per_device_train_batch_size=4,
            learning_rate=0.05,
            seed=seed,
            report_to=[],
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            model_init_kwargs={"dtype": "float32"},
        ),
        processing_class=AutoTokenizer.from_pretrained(base),
        train_dataset=Dataset.from_list(pairs),
        peft_config=LoraConfig(task_type="SEQ_CLS", r=4, modules_to_save=["score"]),
    )
    trainer.train()
    trainer.save_model(str(directory / "adapter"))
    return directory / "adapter"


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, base: Path) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {name: trl_adapter(root / name, base, seed) for seed, name in enumerate(("a", "b"))}


def expected(adapter: Path, base: Path) -> float:
    """What PEFT says to the conversation in the adapter's own template."""
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    ids = tokenizer.apply_chat_template(TURNS)["input_ids"]
    return peft_scores(adapter, base, [ids])[0]


def ask(service: Service, model: str) -> dict[str, Any]:
    body = {"model": model, "items": [{"messages": TURNS}]}
    answer: dict[str, Any] = httpx.post(f"{service.url}/score", json=body, timeout=60).json()
    return answer


def test_served_side_by_side_and_exchanged(
    base: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(adapters["a"])
    wanted = {name: expected(path, base) for name, path in adapters.items()}
    assert wanted["a"] != pytest.approx(wanted["b"], abs=1e-3)
    with running("--model", f"b={adapters['b']}", f"m={link}") as service:
        listed = httpx.get(f"{service.url}/v1/models").json()["data"]
        assert listed[0]["details"]["base_version"] == listed[1]["details"]["base_version"]
        assert listed[0]["contract"]["template_source"] == "inferred"
        before = ask(service, "m")
        assert before["results"][0]["scores"] == pytest.approx([wanted["a"]], abs=1e-5)
        assert ask(service, "b")["results"][0]["scores"] == pytest.approx([wanted["b"]], abs=1e-5)
        link.unlink()
        link.symlink_to(adapters["b"])
        service.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 60
        while (after := ask(service, "m"))["model_version"] == before["model_version"]:
            assert time.monotonic() < deadline, "".join(service.lines)
            time.sleep(0.1)
        assert after["model_version"] == ask(service, "b")["model_version"]
        assert after["results"] == ask(service, "b")["results"]
        assert service.end() == 0


def test_offline_gives_the_same_bits(base: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    source, target = tmp_path / "items.jsonl", tmp_path / "scores.jsonl"
    source.write_text(json.dumps({"messages": TURNS}) + "\n")
    read = read_settings(
        OfflineSettings, [str(source), str(target), "--model", str(adapters["a"])], prog="offline"
    )
    score_file(read)
    model = RewardModel.load(adapters["a"])
    ids = model.encoder.messages(TURNS).token_ids
    [score] = json.loads(target.read_text())["scores"]
    with torch.inference_mode():
        assert [score] == model(model.pack([ids])).rewards_N.tolist()
    assert score == pytest.approx(expected(adapters["a"], base), abs=1e-5)
