"""Whether a generator reports the log-probabilities that the learner computes."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

import torch

from reward_model.errors import SumzeroError
from trainer.rloo.generation import Generator
from trainer.rloo.policy import TokenLogprobs
from trainer.rloo.samples import Sample

SAMPLES = 2
Logprobs = Callable[[Sequence[Sequence[int]], Sequence[Sequence[int]]], TokenLogprobs]
"""A policy, or the learner's word for it: prompts and responses in."""


async def logprob_difference(
    generator: Generator,
    logprobs: Logprobs,
    prompt_ids: Sequence[int],
    thread: Executor | None = None,
) -> float:
    """Mean |log pi_sampler - log pi_learner| per token of a few samples, in nats.

    ``logprobs`` is called in ``thread``, or in one of the event loop's.
    """
    samples = await generator.generate(prompt_ids, SAMPLES, seed=0)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(thread, _difference, logprobs, prompt_ids, samples)


@torch.no_grad()
def _difference(logprobs: Logprobs, prompt_ids: Sequence[int], samples: Sequence[Sample]) -> float:
    tokens = logprobs([prompt_ids] * len(samples), [sample.token_ids for sample in samples])
    sampler_R = torch.tensor([value for sample in samples for value in sample.logprobs])
    return float((tokens.logprobs_R.cpu() - sampler_R).abs().mean())


async def check_logprobs(
    generator: Generator,
    logprobs: Logprobs,
    prompt_ids: Sequence[int],
    tolerance: float,
    thread: Executor | None = None,
) -> float:
    """The difference. Raises SumzeroError above ``tolerance``: importance weights would be wrong.

    A long prompt shows more: some faults begin beyond 256 tokens.
    """
    difference = await logprob_difference(generator, logprobs, prompt_ids, thread)
    if not difference <= tolerance:
        raise SumzeroError(
            f"the generator's log-probabilities are {difference:.2g} nats off the policy's on "
            f"average (allowed: {tolerance:g}); start vLLM with --logprobs-mode processed_logprobs "
            "--generation-config vllm, without top-p, top-k or penalties, in the policy's precision"
        )
    return difference


def long_prompt(prompts: Sequence[Sequence[int]], tokens: int) -> tuple[int, ...]:
    """Prompts one after the other up to ``tokens`` tokens."""
    joined: list[int] = []
    while len(joined) < tokens:
        for prompt in prompts:
            joined += prompt
    return tuple(joined[:tokens])
