"""What the arms are held against without training: length, surface, and length taken off.

Each gives rewards of a replicate's cells, from the same train pairs and the same dev set.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from trainer.evaluation.ranking import tau_b
from trainer.study.cells import DEV
from trainer.study.lexical import Features, fit
from trainer.study.measures import CellPrompt, Values, per_prompt, values

LONGER, LEXICAL, LESS_LENGTH = "longer wins", "n-grams and style", "{} less length"
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Of the n-grams; the one with the highest τ-b on dev is taken."""

Rewards = dict[str, list[float]]


def references(
    directory: Path,
    cells: Mapping[str, list[CellPrompt]],
    baseline: str,
    rewards: Rewards,
    min_gap: float,
) -> dict[str, dict[str, Values]]:
    """Reference → cell → values, of one replicate.

    Args:
        directory: with the replicate's files.
        baseline, rewards: name of the baseline arm, and its rewards by cell at the last step.
        min_gap: least gold difference of a pair.
    """
    found = {
        LONGER: {name: lengths(prompts) for name, prompts in cells.items()},
        LEXICAL: lexical(directory, cells),
        LESS_LENGTH.format(baseline): less_length(cells, rewards, min_gap),
    }
    return {
        reference: {
            name: values(cells[name], per_prompt(cells[name], own[name]), min_gap) for name in cells
        }
        for reference, own in found.items()
    }


def lengths(prompts: Sequence[CellPrompt]) -> list[float]:
    """A reward that is the response's length in characters."""
    return [float(length) for prompt in prompts for length in prompt.lengths]


def lexical(directory: Path, cells: Mapping[str, list[CellPrompt]]) -> Rewards:
    """Rewards of :mod:`trainer.study.lexical`, its penalty chosen on the dev set."""
    pairs = _rows(directory / "train.jsonl")
    chosen, rejected = ([row[side] for row in pairs] for side in ("chosen", "rejected"))
    features = Features(chosen, rejected)
    difference_PF = csr_matrix(features(chosen) - features(rejected))
    seen = {name: features(_responses(directory / f"{name}.jsonl")) for name in cells}
    fits = [fit(difference_PF, penalty) for penalty in PENALTIES]
    best_F = max(fits, key=lambda weights_F: _tau(cells[DEV], (seen[DEV] @ weights_F).tolist()))
    return {name: (features_NF @ best_F).tolist() for name, features_NF in seen.items()}


def less_length(cells: Mapping[str, list[CellPrompt]], rewards: Rewards, min_gap: float) -> Rewards:
    """a · reward + b · log length, a and b fitted to the dev set's pairs by Bradley-Terry."""
    columns = {
        name: np.array([rewards[name], np.log(np.maximum(lengths(cells[name]), 1.0))]).T
        for name in cells
    }
    differences = []
    place = 0
    for prompt in cells[DEV]:
        own = columns[DEV][place : place + len(prompt.gold)]
        place += len(prompt.gold)
        for better, worse in np.argwhere(np.subtract.outer(prompt.gold, prompt.gold) >= min_gap):
            differences.append(own[better] - own[worse])
    weights = fit(csr_matrix(np.array(differences)), 0.0)
    return {name: (own @ weights).tolist() for name, own in columns.items()}


def _tau(prompts: Sequence[CellPrompt], rewards: Sequence[float]) -> float:
    """Mean τ-b over the prompts that have one."""
    found = [
        tau_b(own, prompt.gold)
        for prompt, own in zip(prompts, per_prompt(prompts, rewards), strict=True)
    ]
    return float(np.mean([tau for tau in found if tau is not None] or [-1.0]))


def _responses(path: Path) -> list[str]:
    return [one["text"] for row in _rows(path) for one in row["responses"]]


def _rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
