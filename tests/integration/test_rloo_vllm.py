"""A real vLLM server: weights published to it are the weights it samples with."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from reward_model.errors import SumzeroError
from tests.checkpoints import tiny_checkpoint, tiny_tokenizer
from tests.conftest import VLLM_PYTHON
from trainer.rloo.generation import Sampling
from trainer.rloo.policy import Policy, load_policy
from trainer.rloo.probe import check_logprobs, logprob_difference
from trainer.rloo.vllm_client import VllmConnection, VllmGenerator
from trainer.rloo.vllm_server import VllmServer
from trainer.rloo.weight_sync import WeightStore

TEMPERATURE = 0.7
SAMPLING = Sampling(TEMPERATURE, 32, (2,))
ATTENTION_ON_CPU = {"hidden_size": 128}
"""Heads of 32, the smallest that vLLM's CPU attention computes."""
LONG_PROMPT = tuple(3 + n % 300 for n in range(300))

pytestmark = [
    pytest.mark.integration,
    pytest.mark.vllm,
    pytest.mark.timeout(1200),
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy with tied embeddings, the kind that vLLM's CPU build reloads wrongly."""
    path = tmp_path_factory.mktemp("rloo-vllm")
    tiny_checkpoint(
        path / "policy", "qwen2", "causal", tie_word_embeddings=True, **ATTENTION_ON_CPU
    )
    return path


@pytest.fixture(scope="module")
def server(directory: Path) -> Iterator[VllmServer]:
    model, tokenizer = load_policy(str(directory / "policy"))
    start = WeightStore(directory / "weights").write(model, tokenizer, 0)
    server = VllmServer(
        VLLM_PYTHON,
        start,
        directory / "vllm.log",
        dtype="float32",
        arguments=["--max-model-len=1024"],
    )
    asyncio.run(server.start())
    try:
        yield server
    finally:
        asyncio.run(server.stop())
        assert not server.alive


@asynccontextmanager
async def connected(*servers: VllmServer) -> AsyncIterator[VllmGenerator]:
    connections = [
        VllmConnection(
            server.url,
            SAMPLING,
            tiny_tokenizer(),
            process=server,
            request_timeout=120,
            restart_timeout=500,
            max_in_flight=16,
            weights_dir=None,
        )
        for server in servers
    ]
    generator = VllmGenerator(connections)
    try:
        for connection in connections:
            await connection.open()
        yield generator
    finally:
        await generator.aclose()


def disturbed(directory: Path, seed: int) -> tuple[Policy, object]:
    """The policy with every weight moved, and its tokenizer."""
    model, tokenizer = load_policy(str(directory / "policy"))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return Policy(model, TEMPERATURE), tokenizer


@pytest.mark.smoke
def test_after_each_publish_the_sampler_is_the_learner(server: VllmServer, directory: Path) -> None:
    store = WeightStore(directory / "weights")

    async def differences() -> list[tuple[float, float]]:
        found = []
        async with connected(server) as generator:
            previous = None
            for version in (1, 2, 3):
                policy, tokenizer = disturbed(directory, version)
                path = store.write(policy.model, tokenizer, version)
                await generator.publish(path, version)
                now = await logprob_difference(generator, policy, LONG_PROMPT)
                old = 0.0
                if previous is not None:
                    old = await logprob_difference(generator, previous, LONG_PROMPT)
                found.append((now, old))
                previous = policy
        return found

    found = asyncio.run(differences())
    assert all(now <= 1e-3 for now, _ in found), found
    assert all(old > 0.1 for _, old in found[1:]), "the versions must differ for this to show"


def test_samples_carry_version_tokens_and_end(server: VllmServer, directory: Path) -> None:
    policy, tokenizer = disturbed(directory, 4)
    path = WeightStore(directory / "weights").write(policy.model, tokenizer, 4)

    async def sample() -> list[tuple]:
        async with connected(server) as generator:
            await generator.publish(path, 4)
            prompts = [LONG_PROMPT[:n] for n in (5, 80, 300)]
            return await asyncio.gather(*(generator.generate(p, 3, seed=0) for p in prompts))

    groups = asyncio.run(sample())
    for group in groups:
        assert len(group) == 3
        for one in group:
            assert one.version == 4
            assert len(one.token_ids) == len(one.logprobs) <= SAMPLING.max_new_tokens
            assert one.ended == (one.token_ids[-1] == 2)
            kept = one.token_ids[:-1] if one.ended else one.token_ids
            text = tokenizer.decode(kept, skip_special_tokens=True)
            assert one.text == text
    assert len({one.token_ids for one in groups[0]}) > 1


def test_a_killed_server_comes_back_with_the_current_weights(
    server: VllmServer, directory: Path
) -> None:
    policy, tokenizer = disturbed(directory, 5)
    path = WeightStore(directory / "weights").write(policy.model, tokenizer, 5)

    async def kill_and_compare() -> float:
        async with connected(server) as generator:
            await generator.publish(path, 5)
            work = [
                asyncio.create_task(generator.generate(LONG_PROMPT, 8, seed=n)) for n in range(8)
            ]
            await asyncio.sleep(0.05)
            assert server._process is not None
            os.kill(server._process.pid, signal.SIGKILL)
            for samples in await asyncio.gather(*work):
                assert {sample.version for sample in samples} == {5}
            return await logprob_difference(generator, policy, LONG_PROMPT)

    assert asyncio.run(kill_and_compare()) <= 1e-3


def test_two_servers_share_the_prompts_and_both_get_every_version(
    server: VllmServer, directory: Path
) -> None:
    store = WeightStore(directory / "weights")
    start, tokenizer = disturbed(directory, 7)
    second = VllmServer(
        VLLM_PYTHON,
        store.write(start.model, tokenizer, 7),
        directory / "second.log",
        dtype="float32",
        arguments=["--max-model-len=1024"],
    )
    policy, tokenizer = disturbed(directory, 8)
    path = store.write(policy.model, tokenizer, 8)

    async def check() -> None:
        await second.start()
        try:
            async with connected(server, second) as generator:
                await generator.publish(path, 8)
                before = [await answered(one.url) for one in (server, second)]
                prompts = [LONG_PROMPT[: 5 + n] for n in range(8)]
                groups = await asyncio.gather(*(generator.generate(p, 4, seed=0) for p in prompts))
                assert {one.version for group in groups for one in group} == {8}
                after = [await answered(one.url) for one in (server, second)]
                assert sum(after) - sum(before) == 8 * 4
                assert all(late > early for early, late in zip(before, after, strict=True))
            for one in (server, second):
                async with connected(one) as generator:
                    assert await logprob_difference(generator, policy, LONG_PROMPT) <= 1e-3
        finally:
            await second.stop()

    asyncio.run(check())


async def answered(url: str) -> float:
    """Responses that a vLLM server has finished."""
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"{url}/metrics")).text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "vllm:request_success_total"
    )


def test_a_server_with_raw_logprobs_is_refused(directory: Path) -> None:
    policy, tokenizer = disturbed(directory, 6)
    path = WeightStore(directory / "weights").write(policy.model, tokenizer, 6)
    raw = ["--max-model-len=1024", "--logprobs-mode=raw_logprobs"]
    server = VllmServer(VLLM_PYTHON, path, directory / "raw.log", dtype="float32", arguments=raw)

    async def check() -> None:
        await server.start()
        try:
            async with connected(server) as generator:
                await generator.publish(path, 6)
                await check_logprobs(generator, policy, LONG_PROMPT, 1e-3)
        finally:
            await server.stop()

    with pytest.raises(SumzeroError, match="processed_logprobs"):
        asyncio.run(check())
