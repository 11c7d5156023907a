"""Measurements between steps: named validation sets, and a fixed sample of the train pairs."""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from reward_model.encode import Encoder
from reward_model.errors import ItemError, UsageError
from reward_model.model import RewardOutput
from trainer.data.preferences import read_pairs
from trainer.data.rows import is_scored
from trainer.data.scored import ScoredPrompt, read_scored
from trainer.evaluation.accuracy import pairs_by_gold
from trainer.evaluation.ranking import tau_b
from trainer.reward.config import DataSettings
from trainer.reward.examples import Example, cut_by_cost, tokenise_pairs
from trainer.reward.objective import measure_rows

T = TypeVar("T")

Forward = Callable[[Sequence[Sequence[int]]], RewardOutput]
"""Rewards and hidden states of token-id sequences, without gradients."""


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """The responses to one prompt as token ids, with their gold scores."""

    sequences: list[tuple[int, ...]]
    gold: list[float]


@dataclass(slots=True)
class ValidationSet:
    """Pairs or scored groups, whichever the file held. ``lost``: items the model cannot read."""

    name: str
    pairs: list[Example] = field(default_factory=list)
    groups: list[ScoredGroup] = field(default_factory=list)
    lost: int = 0


@dataclass(frozen=True, eq=False)
class Measurement:
    """Named values for the metrics, and the raw rewards they come from."""

    values: dict[str, float]
    rewards_N: Tensor


def load_validation_sets(
    data: DataSettings, encoder: Encoder, *, causal: bool, seed: int
) -> list[ValidationSet]:
    """Read and tokenise every set of ``data.validation``, each cut to ``validation_limit``.

    Raises:
        UsageError: a set that cannot be read, or of which no item fits the model.
    """
    sets = []
    for name, source in data.validation.items():
        if is_scored(source):
            prompts = _sample(read_scored(source), data.validation_limit, seed)
            result = _scored_set(name, prompts, encoder, data.validation_responses, seed)
        else:
            found = read_pairs(source, max_fault_share=data.max_fault_share).pairs
            chosen = _sample(found, data.validation_limit, seed)
            tokenised = tokenise_pairs(chosen, encoder, causal=causal)
            lost = len(chosen) - len(tokenised.examples)
            result = ValidationSet(name, pairs=tokenised.examples, lost=lost)
        if not result.pairs and not result.groups:
            raise UsageError(f"data.validation.{name}: no item of {source} fits the model")
        sets.append(result)
    return sets


def measure_set(
    validation: ValidationSet, forward: Forward, *, min_gold_gap: float, max_tokens: int
) -> Measurement:
    """Accuracy (ties are errors), and for scored groups Kendall's τ-b; see the functions below."""
    if validation.pairs:
        return measure_pairs(validation.pairs, forward, max_tokens=max_tokens)
    return measure_groups(
        validation.groups, forward, min_gold_gap=min_gold_gap, max_tokens=max_tokens
    )


def measure_pairs(examples: Sequence[Example], forward: Forward, *, max_tokens: int) -> Measurement:
    """Share of pairs with r_chosen > r_rejected, and the spread of rewards and hidden states."""
    rows = []
    for run in cut_by_cost([example.cost for example in examples], max_tokens):
        chosen = [examples[index] for index in run]
        sequences = [side.tolist() for one in chosen for side in (one.chosen, one.rejected)]
        rows.append(measure_rows(forward(sequences), len(chosen)).cpu())
    rows_B5 = torch.cat(rows)
    return Measurement(summary(rows_B5), rows_B5[:, :2].reshape(-1))


def summary(rows_B5: Tensor) -> dict[str, float]:
    """Means and spreads of the columns :data:`trainer.reward.objective.MEASURED`."""
    chosen_B, rejected_B, *norms, difference_B = rows_B5.double().unbind(1)
    rewards_2B, norms_2B = torch.cat([chosen_B, rejected_B]), torch.cat(norms)
    return {
        "accuracy": float((chosen_B > rejected_B).double().mean()),
        "ties": float((chosen_B == rejected_B).double().mean()),
        "margin": float((chosen_B - rejected_B).mean()),
        "reward_mean": float(rewards_2B.mean()),
        "reward_std": _std(rewards_2B),
        "h_norm_mean": float(norms_2B.mean()),
        "h_norm_std": _std(norms_2B),
        "h_difference_mean": float(difference_B.mean()),
        "h_difference_std": _std(difference_B),
    }


def measure_groups(
    groups: Sequence[ScoredGroup], forward: Forward, *, min_gold_gap: float, max_tokens: int
) -> Measurement:
    """Accuracy over all pairs of a prompt's responses with a gold gap, and mean τ-b over prompts.

    ``tau_undefined`` counts prompts where rewards or gold scores are all equal or alone.
    """
    sequences = [ids for group in groups for ids in group.sequences]
    scores: list[float] = []
    norms: list[Tensor] = []
    for run in cut_by_cost([len(ids) for ids in sequences], max_tokens):
        output = forward([sequences[index] for index in run])
        scores += output.rewards_N.double().tolist()
        norms.append(output.hidden_NH.double().norm(dim=-1).cpu())
    rewards_N, norms_N = torch.tensor(scores, dtype=torch.float64), torch.cat(norms)
    won = pairs = tied = 0
    taus: list[float | None] = []
    remaining = iter(scores)
    for group in groups:
        rewards = list(itertools.islice(remaining, len(group.gold)))
        for better, worse in pairs_by_gold(group.gold, min_gold_gap):
            pairs += 1
            won += rewards[better] > rewards[worse]
            tied += rewards[better] == rewards[worse]
        taus.append(tau_b(rewards, group.gold))
    defined = [tau for tau in taus if tau is not None]
    values = {
        "accuracy": won / pairs if pairs else float("nan"),
        "ties": tied / pairs if pairs else float("nan"),
        "pairs": float(pairs),
        "tau": sum(defined) / len(defined) if defined else float("nan"),
        "tau_undefined": float(len(taus) - len(defined)),
        "reward_mean": float(rewards_N.mean()),
        "reward_std": _std(rewards_N),
        "h_norm_mean": float(norms_N.mean()),
        "h_norm_std": _std(norms_N),
    }
    return Measurement(values, rewards_N)


def _std(values: Tensor) -> float:
    return float(values.std()) if len(values) > 1 else 0.0


def _scored_set(
    name: str, prompts: Sequence[ScoredPrompt], encoder: Encoder, responses: int, seed: int
) -> ValidationSet:
    result = ValidationSet(name)
    for prompt in prompts:
        group = ScoredGroup([], [])
        for response in _sample(prompt.responses, responses, f"{seed}/{prompt.prompt_id}"):
            try:
                item = encoder.prompt_response(prompt.prompt, response.text)
            except ItemError:
                result.lost += 1
                continue
            group.sequences.append(item.token_ids)
            group.gold.append(response.gold)
        if group.gold:
            result.groups.append(group)
    return result


def _sample(items: Sequence[T], limit: int, seed: int | str) -> list[T]:
    if len(items) <= limit:
        return list(items)
    return random.Random(f"{seed}/validation").sample(list(items), limit)
