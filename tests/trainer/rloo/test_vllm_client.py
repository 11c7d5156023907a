"""The vLLM client over real HTTP: what it sends, the publish sequence, and what it survives.

That a real vLLM server then samples with the published weights is tests/integration's matter; the
faults here (an aborted request, a 500, a restart between two calls) cannot be had from it at will.
"""

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from reward_model.errors import CheckpointError, SumzeroError, UsageError
from tests.checkpoints import tiny_tokenizer
from tests.trainer.rloo.http_servers import ScoreDouble, VllmDouble, serving
from trainer.rloo.generation import Sampling
from trainer.rloo.vllm_client import VllmConnection, VllmGenerator
from trainer.rloo.weight_sync import READY

SAMPLING = Sampling(0.7, 16, (2, 9))
TOKENIZER = tiny_tokenizer()


@asynccontextmanager
async def connected(*urls: str, restart_timeout: float = 5.0, weights_dir: str | None = None):
    connections = [
        VllmConnection(
            url, SAMPLING, TOKENIZER, process=None, request_timeout=5, 
            restart_timeout=restart_timeout, max_in_flight=8, weights_dir=weights_dir,
        )
        for url in urls
    ]  # fmt: skip
    generator = VllmGenerator(connections)
    try:
        for connection in connections:
            await connection.open()
        yield generator
    finally:
        await generator.aclose()


def version(tmp_path: Path, number: int) -> Path:
    path = tmp_path / f"v{number}"
    path.mkdir(exist_ok=True)
    (path / READY).write_text(f"{number}\n")
    return path


async def test_publishes_in_the_order_that_loses_no_request(tmp_path):
    double = VllmDouble()
    with serving(double.app()) as url:
        async with connected(url) as generator:
            await generator.publish(version(tmp_path, 1), 1)
    assert double.calls == [
        "pause wait", "reload_weights v1", "reset_prefix_cache", "version 1", "resume",
    ]  # fmt: skip
    assert generator.version == 1


async def test_asks_for_the_untouched_distribution_at_the_temperature(tmp_path):
    double = VllmDouble()
    with serving(double.app()) as url:
        async with connected(url) as generator:
            await generator.publish(version(tmp_path, 3), 3)
            samples = await generator.generate((1, 5, 7), 4, seed=11)
    (body,) = double.bodies
    wanted = {
        "prompt": [1, 5, 7], "n": 4, "temperature": 0.7, "max_tokens": 16,
        "stop_token_ids": [2, 9], "top_p": 1.0, "top_k": 0, "min_p": 0.0,
        "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
        "return_token_ids": True, "logprobs": 0,
    }  # fmt: skip
    assert {name: body[name] for name in wanted} == wanted
    assert "seed" not in body  # kills the CPU engine when a prompt is read in two pieces
    assert [sample.version for sample in samples] == [3] * 4
    assert samples[0].token_ids == (13, 6, 2)
    assert samples[0].text == TOKENIZER.decode([13, 6])
    assert samples[0].ended


async def test_no_request_is_under_way_while_weights_change(tmp_path):
    double = VllmDouble(seconds=0.1)
    double.publish_seconds = 0.1
    with serving(double.app()) as url:
        async with connected(url) as generator:
            await generator.publish(version(tmp_path, 1), 1)
            first = [asyncio.create_task(generator.generate((1,), 2, seed=n)) for n in range(4)]
            await asyncio.sleep(0.03)
            publishing = asyncio.create_task(generator.publish(version(tmp_path, 2), 2))
            await asyncio.sleep(0.03)
            later = [asyncio.create_task(generator.generate((1,), 2, seed=n)) for n in range(4)]
            groups = [await task for task in (*first, *later)]
            await publishing
    told = [(10 + sample.version, sample.token_ids[0]) for group in groups for sample in group]
    assert told == [(11, 11)] * 8 + [(12, 12)] * 8, "the weights that wrote are the version stamped"


async def test_every_server_confirms_before_a_version_counts(tmp_path):
    doubles = [VllmDouble(), VllmDouble()]
    with serving(doubles[0].app()) as one, serving(doubles[1].app()) as other:
        async with connected(one, other) as generator:
            await generator.publish(version(tmp_path, 1), 1)
            await asyncio.gather(*(generator.generate((1,), 2, seed=n) for n in range(10)))
    assert [double.version for double in doubles] == ["1", "1"]
    assert all(double.bodies for double in doubles), "both servers work"


@pytest.mark.parametrize("fault", ["failures", "aborts", "restart"])
async def test_a_passing_fault_is_survived(tmp_path, fault):
    double = VllmDouble(seconds=0.05)
    with serving(double.app()) as url:
        async with connected(url) as generator:
            await generator.publish(version(tmp_path, 1), 1)
            if fault == "failures":
                double.failures = [500, 503]
            elif fault == "aborts":
                double.aborts = 2
            else:
                double.version = "default"  # what a restarted server says
            samples = await generator.generate((1,), 2, seed=0)
    assert [(10 + sample.version, sample.token_ids[0]) for sample in samples] == [(11, 11)] * 2
    assert double.version == "1"


async def test_a_lasting_fault_ends_the_run_with_its_cause(tmp_path):
    double = VllmDouble()
    double.failures = [500] * 99
    with serving(double.app()) as url:
        async with connected(url) as generator:
            await generator.publish(version(tmp_path, 1), 1)
            with pytest.raises(SumzeroError, match=r"5 times over.*500"):
                await generator.generate((1,), 2, seed=0)


async def test_a_refused_request_is_not_tried_again(tmp_path):
    double = VllmDouble()
    double.failures = [400] * 2
    with serving(double.app()) as url:
        async with connected(url) as generator:
            with pytest.raises(UsageError, match="400"):
                await generator.generate((1,), 2, seed=0)
    assert len(double.bodies) == 1


async def test_a_server_that_never_comes_is_given_up(tmp_path):
    with pytest.raises(SumzeroError, match="no vLLM server answered within 1 s"):
        async with connected("http://127.0.0.1:9", restart_timeout=1.0):
            pass


async def test_a_server_without_weight_endpoints_is_refused():
    other = serving(ScoreDouble().app())
    with other as url, pytest.raises(SumzeroError, match="no vLLM server answered"):
        async with connected(url, restart_timeout=1.0):
            pass


async def test_half_written_weights_are_not_published(tmp_path):
    double = VllmDouble()
    with serving(double.app()) as url:
        async with connected(url) as generator:
            with pytest.raises(CheckpointError, match="no READY marker"):
                await generator.publish(tmp_path, 1)
            with pytest.raises(CheckpointError, match="holds version 2, not 1"):
                await generator.publish(version(tmp_path, 2), 1)
    assert double.calls == []


async def test_a_server_may_see_the_weights_elsewhere(tmp_path):
    double = VllmDouble()
    with serving(double.app()) as url:
        async with connected(url, weights_dir="/mnt/weights") as generator:
            await generator.publish(version(tmp_path, 1), 1)
    assert "reload_weights v1" in double.calls
