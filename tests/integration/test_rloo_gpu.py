"""vLLM's own weight transfer on GPUs: what is sent is what the server samples with.

Needs vLLM's CUDA build in .venv-vllm (TORCH_INDEX_URL=… make install-vllm).
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch

from tests.checkpoints import tiny_checkpoint, tiny_tokenizer
from tests.conftest import VLLM_PYTHON
from trainer.rloo.backends import open_generator
from trainer.rloo.config import Generation
from trainer.rloo.generation import Generator, Sampling
from trainer.rloo.policy import Policy, load_policy
from trainer.rloo.probe import logprob_difference
from trainer.rloo.weight_sync import WeightStore
from trainer.rloo.weight_transfer import Snapshot

pytestmark = [
    pytest.mark.integration,
    pytest.mark.gpu,
    pytest.mark.vllm,
    pytest.mark.timeout(1200),
]

TEMPERATURE = 0.7
PROMPT = tuple(3 + n % 300 for n in range(300))
TOLERANCE = 1e-2
"""Both compute in float32, by other kernels; another version is off by more than 0.1."""


def require_gpus(transfer: str) -> None:
    if transfer == "nccl" and torch.cuda.device_count() < 2:
        pytest.skip("NCCL wants a GPU for each of its ranks")


def policy_at(directory: Path, version: int) -> Policy:
    model, _ = load_policy(str(directory / "policy"), device="cuda:0")
    torch.manual_seed(version)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * version * torch.randn_like(parameter))
    return Policy(model, TEMPERATURE)


@asynccontextmanager
async def running(
    directory: Path, transfer: str
) -> AsyncIterator[tuple[Generator, Snapshot, Path]]:
    tiny_checkpoint(directory / "policy", "qwen2", "causal", hidden_size=256)
    model, tokenizer = load_policy(str(directory / "policy"))
    first = WeightStore(directory / "weights").write(model, tokenizer, 0)
    settings = Generation(
        backend="vllm", python=VLLM_PYTHON, transfer=transfer, max_new_tokens=32,
        max_prompt_tokens=320, server_args=["--gpu-memory-utilization=0.3"],
        server_devices="1" if transfer == "nccl" else "0",
    )  # fmt: skip
    snapshot = Snapshot(settings.dtype)
    async with open_generator(
        settings, Sampling(TEMPERATURE, 32, (2,)), tiny_tokenizer(), weights=first,
        run_dir=directory, device="cuda:0", snapshot=snapshot,
    ) as generator:  # fmt: skip
        yield generator, snapshot, first


@pytest.mark.parametrize("transfer", ["ipc", "nccl"])
def test_after_each_publish_the_sampler_is_the_learner(tmp_path: Path, transfer: str) -> None:
    require_gpus(transfer)

    async def differences() -> list[tuple[float, float]]:
        found, previous = [], None
        async with running(tmp_path, transfer) as (generator, snapshot, first):
            for version in (1, 2, 3):
                policy = policy_at(tmp_path, version)
                snapshot.take(policy.model.state_dict())
                await generator.publish(first, version)
                now = await logprob_difference(generator, policy, PROMPT)
                old = 1.0
                if previous is not None:
                    old = await logprob_difference(generator, previous, PROMPT)
                found.append((now, old))
                previous = policy
        return found

    found = asyncio.run(differences())
    assert all(now <= TOLERANCE for now, _ in found), found
    assert all(old > 0.1 for _, old in found), "the versions must differ for this to show"


@pytest.mark.parametrize("transfer", ["ipc", "nccl"])
def test_a_killed_server_comes_back_with_the_current_weights(tmp_path: Path, transfer: str) -> None:
    require_gpus(transfer)

    async def kill_and_compare() -> float:
        async with running(tmp_path, transfer) as (generator, snapshot, first):
            policy = policy_at(tmp_path, 5)
            snapshot.take(policy.model.state_dict())
            await generator.publish(first, 5)
            process = generator.connections[0]._process._process
            os.kill(process.pid, signal.SIGKILL)
            samples = await generator.generate(PROMPT, 4, seed=0)
            assert {sample.version for sample in samples} == {5}
            return await logprob_difference(generator, policy, PROMPT)

    assert asyncio.run(kill_and_compare()) <= TOLERANCE
