"""Results on one named set: of pairs, or of scored responses."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from reward_model.encode import Message
from trainer.data.preferences import Pair, read_pairs
from trainer.data.rows import is_scored
from trainer.data.scored import ScoredPrompt, read_scored
from trainer.evaluation.accuracy import (
    Accuracy,
    JudgedPair,
    accuracy,
    judge,
    length_balanced,
    longer_wins,
    pairs_by_gold,
)
from trainer.evaluation.intervals import Estimate
from trainer.evaluation.length import Group, partial_correlation
from trainer.evaluation.ranking import Ranking, ranking
from trainer.evaluation.selection import BestOfN, best_of_n
from trainer.evaluation.source import Source


@dataclass(frozen=True)
class SetResult:
    """``unscored``: responses without a reward, whose pairs are left out. ``ranking`` only where
    there are gold scores, and so is ``best_of_n``. ``given_length``: partial correlation of reward
    and gold (in pairs: being chosen) given log length."""

    responses: int
    unscored: int
    accuracy: Accuracy
    balanced: Accuracy
    longer_wins: float | None
    reward_mean: float | None
    reward_std: float | None
    given_length: Estimate
    ranking: Ranking | None = None
    best_of_n: BestOfN | None = None


@dataclass(frozen=True, eq=False)
class Measured:
    """A result, and the hidden states it comes from where they are to be had."""

    result: SetResult
    hidden_NH: Tensor | None


@dataclass(frozen=True)
class Options:
    """What the measurements depend on besides the model."""

    min_gold_gap: float
    limit: int | None
    draws: int
    seed: int


def measure(path: str, source: Source, options: Options) -> Measured:
    """Score one file and measure the rewards.

    Raises:
        UsageError: the file cannot be read, or is in neither format.
    """
    if is_scored(path):
        return measure_scored(read_scored(path)[: options.limit], source, options)
    return measure_pairs(read_pairs(path, limit=options.limit).pairs, source, options)


def measure_scored(prompts: Sequence[ScoredPrompt], source: Source, options: Options) -> Measured:
    """Prompts with gold-scored responses: every pair by gold, and τ-b per prompt."""
    scores = source.score(
        [
            [*group.prompt, Message(role="assistant", content=response.text)]
            for group in prompts
            for response in group.responses
        ]
    )
    rewards = iter(scores.rewards)
    pairs: list[JudgedPair] = []
    groups: list[tuple[list[float], list[float]]] = []
    measured: list[Group] = []
    for place, group in enumerate(prompts):
        scored = [
            (reward, response)
            for response in group.responses
            if (reward := next(rewards)) is not None
        ]
        groups.append(([reward for reward, _ in scored], [one.gold for _, one in scored]))
        if scored:
            lengths = [len(response.text) for _, response in scored]
            measured.append(Group(str(place), *groups[-1], lengths))
        for better, worse in pairs_by_gold(groups[-1][1], options.min_gold_gap):
            texts = scored[better][1].text, scored[worse][1].text
            # Rows may share an id by mistake; the place does not.
            pairs.append(judge(str(place), texts, (scored[better][0], scored[worse][0])))
    result = replace(
        _result(scores.rewards, pairs, measured, options),
        ranking=ranking(groups, draws=options.draws, seed=options.seed),
        best_of_n=best_of_n(groups, draws=options.draws, seed=options.seed),
    )
    return Measured(result, scores.hidden_NH)


def measure_pairs(pairs: Sequence[Pair], source: Source, options: Options) -> Measured:
    """Chosen and rejected responses; pairs of the same prompt are resampled together."""
    scores = source.score([side for pair in pairs for side in (pair.chosen, pair.rejected)])
    judged, measured = [], []
    for place, pair in enumerate(pairs):
        chosen, rejected = scores.rewards[2 * place : 2 * place + 2]
        if chosen is not None and rejected is not None:
            responses = pair.chosen_response, pair.rejected_response
            key = _prompt_key(pair)
            judged.append(judge(key, responses, (chosen, rejected)))
            lengths = [len(text) for text in responses]
            measured.append(Group(key, (chosen, rejected), (1.0, 0.0), lengths))
    return Measured(_result(scores.rewards, judged, measured, options), scores.hidden_NH)


def _prompt_key(pair: Pair) -> str:
    if isinstance(pair.chosen, str):  # already templated: its prompt cannot be told from it
        return pair.chosen
    return repr(pair.chosen[:-1])


def _result(
    rewards: Sequence[float | None],
    pairs: Sequence[JudgedPair],
    groups: Sequence[Group],
    options: Options,
) -> SetResult:
    known = [reward for reward in rewards if reward is not None]
    mean = sum(known) / len(known) if known else None
    spread = None
    if mean is not None:
        spread = (sum((reward - mean) ** 2 for reward in known) / len(known)) ** 0.5
    return SetResult(
        responses=len(rewards),
        unscored=len(rewards) - len(known),
        accuracy=accuracy(pairs, draws=options.draws, seed=options.seed),
        balanced=accuracy(length_balanced(pairs), draws=options.draws, seed=options.seed),
        longer_wins=longer_wins(pairs),
        reward_mean=mean,
        reward_std=spread,
        given_length=partial_correlation(groups, draws=options.draws, seed=options.seed),
    )
