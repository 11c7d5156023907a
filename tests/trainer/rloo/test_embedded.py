"""The embedded generator: its samples, its log-probabilities, its batches and its weights."""

import asyncio
import math
from contextlib import asynccontextmanager

import pytest
import torch

from tests.checkpoints import tiny_model, tiny_tokenizer
from trainer.rloo.backends import open_generator
from trainer.rloo.config import Generation
from trainer.rloo.embedded import Request, next_batch, sample_rows
from trainer.rloo.generation import Sampling
from trainer.rloo.policy import Policy
from trainer.rloo.probe import logprob_difference
from trainer.rloo.weight_sync import WeightStore

SAMPLING = Sampling(0.7, 40, (2,))
PROMPTS = [tuple(range(5, 30)), tuple(range(40, 43)), tuple(range(100, 300))]


@asynccontextmanager
async def embedded(tmp_path, max_batch=64):
    settings = Generation(backend="embedded", embedded_batch=max_batch)
    async with open_generator(
        settings, SAMPLING, tiny_tokenizer(), weights=tmp_path, run_dir=tmp_path, device="cpu"
    ) as generator:
        yield generator


def publish(tmp_path, version, seed):
    model = tiny_model("qwen2", "causal", seed)
    return WeightStore(tmp_path / "weights").write(model, tiny_tokenizer(), version), model


async def test_reports_the_learners_logprobs_after_each_publish(tmp_path):
    async with embedded(tmp_path) as generator:
        for version in (0, 1):
            path, model = publish(tmp_path, version, seed=version)
            await generator.publish(path, version)
            policy = Policy(model, SAMPLING.temperature)
            assert await logprob_difference(generator, policy, PROMPTS[2]) < 1e-5
            samples = await generator.generate(PROMPTS[0], 3, seed=1)
            assert {sample.version for sample in samples} == {version}


async def test_a_sample_does_not_depend_on_its_batch(tmp_path):
    async def texts(max_batch):
        async with embedded(tmp_path, max_batch) as generator:
            await generator.publish(publish(tmp_path, 0, seed=0)[0], 0)
            groups = await asyncio.gather(
                *(generator.generate(p, 3, seed=n) for n, p in enumerate(PROMPTS))
            )
            return [[sample.token_ids for sample in group] for group in groups]

    together, apart = await texts(64), await texts(1)
    assert together == apart
    assert len({tokens for group in together for tokens in group}) > 3


async def test_the_first_to_come_is_joined_by_prompts_of_its_length():
    def request(length, count=4):
        return Request(tuple(range(length)), count, 0, asyncio.Future())

    first, long, near, nearer, same = (request(n) for n in (20, 300, 30, 15, 20))
    waiting = [first, long, near, nearer, same]
    assert next_batch(waiting, 12) == ([first, nearer, same], [long, near])
    assert next_batch(waiting, 9) == ([first, nearer, same], [long, near])
    assert next_batch(waiting, 1) == ([first], [long, near, nearer, same])
    assert next_batch([long, first, same], 100) == ([long, first, same], [])
    # A request is never cut, and equals come in their order.
    assert next_batch([request(9, 64), first], 64)[1] == [first]
    again = [request(5) for _ in range(4)]
    assert next_batch(again, 8) == (again[:2], again[2:])


async def test_ended_and_cut_samples_are_told_apart(tmp_path):
    async with embedded(tmp_path) as generator:
        await generator.publish(publish(tmp_path, 0, seed=0)[0], 0)
        groups = await asyncio.gather(
            *(generator.generate(PROMPTS[1], 16, seed=seed) for seed in range(8))
        )
        samples = [sample for group in groups for sample in group]
        assert {sample.ended for sample in samples} == {True, False}
        for sample in samples:
            assert sample.ended == (sample.token_ids[-1] == 2)
            assert 2 not in sample.token_ids[:-1]
            assert len(sample.token_ids) == len(sample.logprobs)
            assert sample.ended or len(sample.token_ids) == SAMPLING.max_new_tokens
            assert "<|im_end|>" not in sample.text


def test_tokens_follow_the_tempered_distribution():
    model = tiny_model("qwen2", "causal", seed=0)
    with torch.no_grad():
        logits = model(torch.tensor([PROMPTS[0]])).logits[0, -1]
    expected = torch.softmax(logits / SAMPLING.temperature, -1)
    count = 4000
    rows = sample_rows(model, [(PROMPTS[0], count, 7)], Sampling(0.7, 1, (2,)))
    drawn = torch.bincount(
        torch.tensor([tokens[0] for tokens, _, _ in rows]), minlength=len(expected)
    )
    likely = expected > 0.005
    error = ((drawn / count - expected) / (expected / count).sqrt())[likely]
    assert len(error) > 10
    assert float(error.abs().max()) < 5
    assert math.isclose(float(error.square().mean()), 1.0, rel_tol=0.8)


async def test_a_failure_of_the_worker_reaches_whoever_waits(tmp_path):
    with pytest.raises(ExceptionGroup) as caught:
        async with embedded(tmp_path) as generator:
            await generator.publish(publish(tmp_path, 0, seed=0)[0], 0)
            await generator.generate((100_000,), 2, seed=0)  # no such token
    assert isinstance(caught.value.exceptions[0], IndexError)
