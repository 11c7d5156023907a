"""One checkpoint of ``trainer.reward``, scored at every door: the same numbers everywhere."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from reward_model.model import RewardModel
from reward_model.scoring import score_token_ids
from service.client import RewardClient
from tests.checkpoints import tiny_checkpoint
from tests.conftest import VLLM_PYTHON

pytestmark = [pytest.mark.integration, pytest.mark.smoke, pytest.mark.timeout(600)]

PROMPTS = [f"Question {index}: what is {index} times seven?" for index in range(4)]
RESPONSES = ["A number.", "Seven times as much, worked out by adding. " * 12, "No."]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small decoder trained for a few steps by the command itself."""
    directory = tmp_path_factory.mktemp("one")
    # Heads of 32: the smallest that vLLM's CPU attention computes.
    backbone = tiny_checkpoint(
        directory / "backbone", "qwen2", "backbone", hidden_size=128, intermediate_size=256
    )
    rows = [
        {"prompt": prompt, "chosen": RESPONSES[1], "rejected": RESPONSES[0]} for prompt in PROMPTS
    ]
    pairs = directory / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [
        *("--backbone", backbone, "--output_dir", directory / "run", "--data.train", pairs),
        *("--loss.name", "bt_bsr", "--optimiser.lr", "1e-3", "--optimiser.epochs", "3"),
        *("--optimiser.batch_pairs", "2", "--data.max_length", "512"),
    ]
    command = [sys.executable, "-m", "trainer.reward", *map(str, arguments)]
    subprocess.run(command, check=True, timeout=200, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return directory / "run" / "model"


@pytest.fixture(scope="module")
def token_ids(checkpoint: Path) -> list[tuple[int, ...]]:
    encoder = RewardModel.load(checkpoint).encoder
    return [encoder.prompt_response(p, r).token_ids for p in PROMPTS for r in RESPONSES]


@pytest.fixture(scope="module")
def reference(checkpoint: Path, token_ids: list[tuple[int, ...]]) -> list[float]:
    """transformers, one sequence at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.inference_mode():
        return [
            model.eval()(input_ids=torch.tensor([ids])).logits[0, 0].item() for ids in token_ids
        ]


@contextmanager
def serving(command: list[str], ready: str, environment: dict[str, str]) -> Iterator[str]:
    """A server of its own on a free port, up when ``ready`` answers 200; ended afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [*command, "--port", str(port)], env=os.environ | environment, process_group=0
    )
    try:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            assert process.poll() is None, "the server ended by itself"
            try:
                if httpx.get(url + ready, timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(90)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise


def test_directly(
    checkpoint: Path, token_ids: list[tuple[int, ...]], reference: list[float]
) -> None:
    assert score_token_ids(RewardModel.load(checkpoint), token_ids) == pytest.approx(
        reference, abs=1e-5
    )


@pytest.mark.parametrize("mode", [[], ["--ray"]], ids=["embedded", "ray"])
async def test_served(checkpoint: Path, reference: list[float], mode: list[str]) -> None:
    command = [sys.executable, "-m", "service", "--model", f"bsr={checkpoint}", *mode]
    with serving(command, "/ready", {"OMP_NUM_THREADS": "1"}) as url:
        async with RewardClient(url) as client:
            groups = await client.score_groups(PROMPTS, [RESPONSES] * len(PROMPTS))
    assert [score for group in groups for score in group] == pytest.approx(reference, abs=1e-5)


@pytest.mark.vllm
def test_by_vllm(
    checkpoint: Path, token_ids: list[tuple[int, ...]], reference: list[float]
) -> None:
    command = [
        *(str(VLLM_PYTHON), "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(checkpoint), "--served-model-name", "bsr", "--runner", "pooling"),
        *("--dtype", "float32", "--enforce-eager", "--host", "127.0.0.1"),
    ]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"}
    with serving(command, "/health", environment) as url:
        request = {"model": "bsr", "input": [list(ids) for ids in token_ids]}
        answer = httpx.post(f"{url}/classify", json=request | {"use_activation": False}, timeout=60)
        assert answer.status_code == 200, answer.text
        scores = [item["probs"][-1] for item in answer.json()["data"]]
    assert scores == pytest.approx(reference, abs=1e-4)
