"""The evaluation from end to end: sources and sets in, results, JSON and report out."""

import itertools
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from reward_model.atomic import write_text
from reward_model.encode import Message
from reward_model.errors import SumzeroError, UsageError
from trainer.data.preferences import Pair, RowError, parse_pair
from trainer.data.rows import read_rows
from trainer.evaluation.config import EvaluationSettings
from trainer.evaluation.report import build_report
from trainer.evaluation.representation import effective_rank_draws, norms
from trainer.evaluation.results import Representation, Results
from trainer.evaluation.reward_bench import RewardBench, reward_bench
from trainer.evaluation.rm_bench import (
    Domain,
    Item,
    RmBench,
    domain,
    domain_of,
    read_items,
    summary,
)
from trainer.evaluation.sets import Measured, Options, SetResult, measure
from trainer.evaluation.source import Source, open_source

RESULTS, REPORT = "results.json", "report.html"


def evaluate(settings: EvaluationSettings) -> Results:
    """Evaluate as ``settings`` say and write ``results.json`` and ``report.html``."""
    source = open_source(settings)
    options = Options(settings.min_gold_gap, settings.limit, settings.bootstrap, settings.seed)
    measured: dict[str, Measured] = {}
    for name, path in settings.sets.items():
        measured[name] = measure(path, source, options)
        print(f"{name}: {_line(measured[name].result)}", flush=True)
    bench, bench_hidden_NH = _rm_bench(settings.rm_bench, source, settings.limit)
    all_hidden = {name: found.hidden_NH for name, found in measured.items()}
    if bench_hidden_NH is not None:
        all_hidden["rm_bench"] = bench_hidden_NH
    hidden = {
        name: hidden_NH
        for name, hidden_NH in all_hidden.items()
        if settings.representation and hidden_NH is not None
    }
    results = Results(
        source=source.name,
        model_version=source.model_version,
        sets={name: found.result for name, found in measured.items()},
        rm_bench=bench,
        reward_bench=_reward_bench(settings.reward_bench, source, settings.limit),
        representation=_representation(hidden, settings.erank_draws, settings.seed),
    )
    write_results(results, settings.output_dir, settings.title)
    return results


def write_results(results: Results, output_dir: Path, title: str) -> None:
    """``results.json`` and ``report.html`` with its plots."""
    write_text(output_dir / RESULTS, json.dumps(asdict(results), indent=2) + "\n")
    build_report(results, title).write(output_dir / REPORT)


def _rm_bench(
    files: Mapping[str, Path], source: Source, limit: int | None
) -> tuple[RmBench | None, Tensor | None]:
    """Items of files whose names begin alike (safety-refuse, safety-response) are one domain.

    Returns:
        The results, and the hidden states of all domains' responses, [N, H].
    """
    if not files:
        return None, None
    items: dict[str, list[Item]] = defaultdict(list)
    for name, path in files.items():
        items[domain_of(name)] += read_items(path)[:limit]
    domains, hidden = {}, []
    for name, found in items.items():
        domains[name], hidden_NH = _domain(found, source, name)
        if hidden_NH is not None:
            hidden.append(hidden_NH)
    return summary(domains), torch.cat(hidden) if hidden else None


def _reward_bench(path: str | None, source: Source, limit: int | None) -> RewardBench | None:
    """Every row is a pair with a ``subset``; a prompt given as text is one turn of the user."""
    if path is None:
        return None
    names: list[str] = []
    pairs: list[Pair] = []
    for number, row in enumerate(itertools.islice(read_rows(path), limit), start=1):
        try:
            pairs.append(parse_pair(row))
        except RowError as fault:
            raise UsageError(f"reward_bench: {path}: row {number}: {fault}") from None
        if not isinstance(name := (row or {}).get("subset"), str):
            raise UsageError(f"reward_bench: {path}: row {number}: no subset")
        names.append(name)
    if not pairs:
        raise UsageError(f"reward_bench: {path}: no rows in it")
    rewards = source.score(
        [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    ).rewards
    return reward_bench(names, list(zip(rewards[::2], rewards[1::2], strict=True)))


def _domain(items: Sequence[Item], source: Source, name: str) -> tuple[Domain, Tensor | None]:
    conversations = [
        [Message(role="user", content=item.prompt), Message(role="assistant", content=text)]
        for item in items
        for text in (*item.chosen, *item.rejected)
    ]
    scores = source.score(conversations)
    chosen, rejected = [], []
    for place in range(len(items)):
        own = scores.rewards[6 * place : 6 * place + 6]
        six = [reward for reward in own if reward is not None]
        if len(six) == 6:
            chosen.append(six[:3])
            rejected.append(six[3:])
    if not chosen:
        raise SumzeroError(f"rm_bench.{name}: no item has all six scores; set truncation")
    return domain(chosen, rejected, unscored=len(items) - len(chosen)), scores.hidden_NH


def _representation(
    hidden: Mapping[str, Tensor], draws: int, seed: int
) -> dict[str, Representation]:
    """erank depends on the number of rows, so every set gives as many as the smallest has."""
    if not hidden:
        return {}
    rows = min(len(hidden_NH) for hidden_NH in hidden.values())
    found = {}
    for name, hidden_NH in hidden.items():
        mean, std = effective_rank_draws(hidden_NH, rows, draws=draws, seed=seed)
        found[name] = Representation(rows, mean, std, norms(hidden_NH))
    return found


def _line(result: SetResult) -> str:
    parts = [f"{result.accuracy.pairs} pairs"]
    if result.accuracy.estimate.value is not None:
        parts.append(f"accuracy {result.accuracy.estimate.value:.3f}")
    if result.ranking is not None and result.ranking.estimate.value is not None:
        parts.append(f"τ-b {result.ranking.estimate.value:.3f}")
    return ", ".join(parts)
