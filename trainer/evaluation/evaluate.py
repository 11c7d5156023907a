"""The evaluation from end to end: sources and sets in, results, JSON and report out."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from reward_model.atomic import write_text
from reward_model.encode import Message
from reward_model.errors import SumzeroError
from trainer.evaluation.config import EvaluationSettings
from trainer.evaluation.report import build_report
from trainer.evaluation.representation import effective_rank_draws, norms
from trainer.evaluation.results import Representation, Results
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
    bench = _rm_bench(settings.rm_bench, source, settings.limit)
    hidden = {
        name: found.hidden_NH
        for name, found in measured.items()
        if settings.representation and found.hidden_NH is not None
    }
    results = Results(
        source=source.name,
        model_version=source.model_version,
        sets={name: found.result for name, found in measured.items()},
        rm_bench=bench,
        representation=_representation(hidden, settings.erank_draws, settings.seed),
    )
    write_results(results, settings.output_dir, settings.title)
    return results


def write_results(results: Results, output_dir: Path, title: str) -> None:
    """``results.json`` and ``report.html`` with its plots."""
    write_text(output_dir / RESULTS, json.dumps(asdict(results), indent=2) + "\n")
    build_report(results, title).write(output_dir / REPORT)


def _rm_bench(files: Mapping[str, Path], source: Source, limit: int | None) -> RmBench | None:
    """Items of files whose names begin alike (safety-refuse, safety-response) are one domain."""
    if not files:
        return None
    items: dict[str, list[Item]] = defaultdict(list)
    for name, path in files.items():
        items[domain_of(name)] += read_items(path)[:limit]
    return summary({name: _domain(found, source, name) for name, found in items.items()})


def _domain(items: Sequence[Item], source: Source, name: str) -> Domain:
    conversations = [
        [Message(role="user", content=item.prompt), Message(role="assistant", content=text)]
        for item in items
        for text in (*item.chosen, *item.rejected)
    ]
    rewards = source.score(conversations).rewards
    chosen, rejected = [], []
    for place in range(len(items)):
        six = [reward for reward in rewards[6 * place : 6 * place + 6] if reward is not None]
        if len(six) == 6:
            chosen.append(six[:3])
            rejected.append(six[3:])
    if not chosen:
        raise SumzeroError(f"rm_bench.{name}: no item has all six scores; set truncation")
    return domain(chosen, rejected, unscored=len(items) - len(chosen))


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
