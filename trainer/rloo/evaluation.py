"""Held-out evaluation of a policy: fixed prompts, fixed random numbers, reward and gold.

Standard errors are over prompts: the samples of one prompt are not independent.
"""

import asyncio
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.rloo.generation import Generator, sampling_seed
from trainer.rloo.insight import measured_means
from trainer.rloo.learner import Learner
from trainer.rloo.reward import Rewards
from trainer.rloo.sample_table import read_table
from trainer.rloo.samples import Group, Prompt


@dataclass(frozen=True, slots=True)
class MeanAndError:
    """A mean over prompts and its standard error."""

    mean: float
    error: float
    prompts: int


class HeldOutEvaluation:
    """Samples ``samples_per_prompt`` responses to each prompt and measures them."""

    def __init__(self, prompts: Sequence[Prompt], samples_per_prompt: int, seed: int) -> None:
        self._prompts = tuple(prompts)
        self._samples = samples_per_prompt
        self._seed = seed

    async def run(self, generator: Generator, rewards: Rewards) -> list[Group]:
        """The groups of all prompts, by the generator's current policy."""
        return list(
            await asyncio.gather(*(self._one(generator, rewards, p) for p in self._prompts))
        )

    async def _one(self, generator: Generator, rewards: Rewards, prompt: Prompt) -> Group:
        seed = sampling_seed(self._seed, "held out", prompt.index)
        samples = await generator.generate(prompt.token_ids, self._samples, seed=seed)
        scored = await rewards.score(prompt.messages, samples)
        return Group(prompt.index, prompt, samples, scored.rewards, scored.measured)


def describe(groups: Sequence[Group], learner: Learner) -> dict[str, float]:
    """Means over the held-out samples, and the standard error of the reward over prompts."""
    samples = [sample for group in groups for sample in group.samples]
    kl = [value for group in learner.kl(groups) for value in group]
    reward = mean_over_prompts(prompt_means(groups))
    values = {
        "reward": reward.mean,
        "reward_error": reward.error,
        "kl": statistics.fmean(kl),
        "length": statistics.fmean(len(sample.token_ids) for sample in samples),
        "eos_share": statistics.fmean(sample.ended for sample in samples),
        "missing": float(sum(not all(group.finished) for group in groups)),
    }
    values |= measured_means(groups)
    return {f"heldout/{name}": value for name, value in values.items()}


def prompt_means(groups: Sequence[Group], name: str | None = None) -> dict[int, float]:
    """Mean reward of each prompt (or mean raw score of source ``name``), where there is any."""
    means = {}
    for group in groups:
        values = group.rewards if name is None else group.measured.get(name, ())
        known = [value for value in values if value is not None]
        if known:
            means[group.prompt.index] = statistics.fmean(known)
    return means


def mean_over_prompts(values: dict[int, float]) -> MeanAndError:
    """Mean and standard error of one value per prompt."""
    numbers = list(values.values())
    spread = statistics.stdev(numbers) if len(numbers) > 1 else math.nan
    return MeanAndError(statistics.fmean(numbers), spread / math.sqrt(len(numbers)), len(numbers))


def gain(before: dict[int, float], after: dict[int, float]) -> MeanAndError:
    """Mean difference per prompt and its standard error, over the prompts in both."""
    return mean_over_prompts(
        {n: after[n] - before[n] for n in sorted(before.keys() & after.keys())}
    )


def read_prompt_means(path: Path, name: str = "reward") -> dict[int, float]:
    """What :func:`prompt_means` gave for the groups whose table is ``path``."""
    means = {}
    for row in read_table(path):
        known = [s[name] for s in row["samples"] if s.get(name) is not None]
        if known:
            means[row["prompt"]["index"]] = statistics.fmean(known)
    return means
