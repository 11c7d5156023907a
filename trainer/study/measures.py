"""What a run's rewards say of each cell, prompt by prompt, so that it can be resampled."""

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.evaluation.accuracy import BALANCED_RATIO
from trainer.evaluation.ranking import tau_b

Array = NDArray[np.float64]


@dataclass(frozen=True)
class CellPrompt:
    """The responses to one prompt: gold scores, lengths in characters, lineages."""

    prompt_id: str
    gold: tuple[float, ...]
    lengths: tuple[int, ...]
    lineages: tuple[str, ...]


@dataclass(frozen=True)
class Values:
    """Of one cell at one step: mean τ-b over prompts, and what length leaves of it; accuracies,
    None where there is no pair."""

    tau: float
    partial_tau: float | None
    accuracy: float | None
    balanced: float | None


def read_cell(path: Path) -> list[CellPrompt]:
    """A cell as :mod:`trainer.study.cells` wrote it."""
    found = []
    with path.open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            responses = row["responses"]
            found.append(
                CellPrompt(
                    row["prompt_id"],
                    tuple(one["gold"] for one in responses),
                    tuple(len(one["text"]) for one in responses),
                    tuple(one["lineage"] for one in responses),
                )
            )
    return found


def per_prompt(prompts: Sequence[CellPrompt], rewards: Sequence[float]) -> list[list[float]]:
    """A run's rewards, in the order of the cell's file, divided among its prompts.

    Raises:
        ValueError: there are not as many rewards as responses.
    """
    if len(rewards) != sum(len(prompt.gold) for prompt in prompts):
        raise ValueError("rewards and responses differ in number: the cell was written anew")
    remaining = iter(rewards)
    return [list(itertools.islice(remaining, len(prompt.gold))) for prompt in prompts]


def values(
    prompts: Sequence[CellPrompt], rewards: Sequence[Sequence[float]], min_gap: float
) -> Values:
    """τ-b where it is defined; accuracy over pairs with a gold gap, ties being errors.

    Raises:
        ValueError: τ-b is undefined for every prompt, because all rewards are equal.
    """
    taus = [tau_b(own, prompt.gold) for prompt, own in zip(prompts, rewards, strict=True)]
    defined = [tau for tau in taus if tau is not None]
    if not defined:
        raise ValueError("no ranking in this cell: all rewards of each prompt are equal")
    won: list[bool] = []
    near: list[bool] = []
    for prompt, own in zip(prompts, rewards, strict=True):
        for i, j in itertools.combinations(range(len(own)), 2):
            gap = prompt.gold[i] - prompt.gold[j]
            if abs(gap) < min_gap:
                continue
            won.append((own[i] - own[j]) * gap > 0)
            short, long = sorted((prompt.lengths[i], prompt.lengths[j]))
            near.append(long < BALANCED_RATIO * short)
    correct, balanced = np.array(won, dtype=float), np.array(near, dtype=bool)
    return Values(
        float(np.mean(defined)),
        partial_tau(prompts, rewards),
        _mean(correct),
        _mean(correct[balanced]),
    )


def partial_tau(prompts: Sequence[CellPrompt], rewards: Sequence[Sequence[float]]) -> float | None:
    """Kendall's partial τ of reward (r) and gold (g) given length (l).

        (τ_rg − τ_rl·τ_gl) / √((1 − τ_rl²)(1 − τ_gl²))

    Each τ is the mean over the prompts for which all three are defined; None if there is none. Of
    few responses the partial τ of one prompt is often undefined, that of the means is not. Source:
    Kendall, 1942. τ knows ranks alone, so length and its logarithm are the same to it.
    """
    found = []
    for prompt, own in zip(prompts, rewards, strict=True):
        three = (
            tau_b(own, prompt.gold),
            tau_b(own, prompt.lengths),
            tau_b(prompt.gold, prompt.lengths),
        )
        if None not in three:
            found.append(three)
    if not found:
        return None
    rg, rl, gl = np.mean(np.array(found, dtype=float), axis=0)
    rest = (1 - rl**2) * (1 - gl**2)
    return float((rg - rl * gl) / math.sqrt(rest)) if rest > 0 else None


def agreement(prompt: CellPrompt, rewards: Sequence[float]) -> tuple[Array, Array]:
    """Of every two responses: sign(Δgold)·sign(Δreward), and whether gold tells them apart. [R, R]

    The mean of the first over the pairs that the second marks is Kendall's τ where no rewards tie.
    """
    gold, own = np.asarray(prompt.gold), np.asarray(rewards)
    signs = np.sign(gold[:, None] - gold[None, :])
    return signs * np.sign(own[:, None] - own[None, :]), (signs != 0).astype(float)


def _mean(found: Array) -> float | None:
    return float(found.mean()) if len(found) else None
