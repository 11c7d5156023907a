"""From the runs of a study to its tables: trajectories, and every arm against the baseline."""

import dataclasses
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reward_model import atomic
from reward_model.errors import UsageError
from trainer.evaluation.intervals import Estimate
from trainer.study.benchmark_results import BenchmarkResults, benchmark_results
from trainer.study.cells import measured
from trainer.study.comparison import Difference, crossed_bootstrap, holm, paired
from trainer.study.config import StudySettings
from trainer.study.measures import CellPrompt, Values, per_prompt
from trainer.study.records import Record
from trainer.study.references import references
from trainer.study.runs import cells_directory, has_record, prepare, read_cells, read_record

PRIMARY_CELL = "mutual_ood"
RESULTS = "results.json"
LOGGED = (
    "head_norm",
    "probe/accuracy",
    "probe/reward_std",
    "probe/h_difference_mean",
    "probe/h_difference_std",
)
"""What is shown of training itself, beside ‖h‖ by cell. The probe: a sample of the train pairs."""

Rewards = list[list[float]]


@dataclass(frozen=True)
class Comparison:
    """An arm against the baseline in one cell, τ at the last step. ``holm``: corrected over all
    secondary comparisons; None for the primary one."""

    arm: str
    cell: str
    difference: Difference
    crossed: Estimate
    holm: float | None


@dataclass(frozen=True)
class Results:
    """``trajectories[arm][cell][step]`` has the values of every replicate in turn.

    ``logged[arm][metric][step]``: likewise, of :data:`LOGGED` and ‖h‖. ``references[name][cell]``:
    likewise, see :mod:`trainer.study.references`. ``benchmarks``: None if there are none. ``ran``:
    what every run ran on, and for how long.
    """

    replicates: list[int]
    trajectories: dict[str, dict[str, dict[int, list[Values]]]]
    comparisons: list[Comparison]
    logged: dict[str, dict[str, dict[int, list[float]]]]
    references: dict[str, dict[str, list[Values]]]
    benchmarks: BenchmarkResults | None
    ran: list[dict[str, Any]]


def analyse(settings: StudySettings) -> Results:
    """From the records of every replicate whose primary arms are finished.

    Other arms are in the results when they have a record of each of these replicates.

    Raises:
        UsageError: fewer than two are, or a record is of other settings or other data.
    """
    complete = list(prepare(settings, complete=True))
    numbers = [one.number for one in complete]
    if len(numbers) < 2:
        raise UsageError(f"{settings.output_dir}: {len(numbers)} replicates are finished, 2 needed")
    names = measured(settings.design)
    cells = [read_cells(settings, number) for number in numbers]
    records = {
        arm: [read_record(settings, arm, replicate) for replicate in complete]
        for arm in settings.arms
        if all(has_record(settings, arm, number) for number in numbers)
    }
    trajectories: dict[str, dict[str, dict[int, list[Values]]]] = {}
    last: dict[tuple[str, str], list[Rewards]] = defaultdict(list)
    for arm, own in records.items():
        table: dict[str, dict[int, list[Values]]] = {name: defaultdict(list) for name in names}
        for place, record in enumerate(own):
            for step, found in record.trajectory.items():
                for name in names:
                    table[name][step].append(found[name])
            for name in names:
                last[arm, name].append(per_prompt(cells[place][name], record.rewards[name]))
        trajectories[arm] = {name: dict(found) for name, found in table.items()}
    by_cell = {name: [found[name] for found in cells] for name in names}
    return Results(
        numbers,
        trajectories,
        _compare(settings, by_cell, trajectories, last),
        {arm: _logged(own, names) for arm, own in records.items()},
        _references(settings, numbers, cells, records[settings.baseline]),
        benchmark_results(settings, numbers, list(records)),
        [record.ran for own in records.values() for record in own],
    )


def _logged(records: Sequence[Record], cells: Sequence[str]) -> dict[str, dict[int, list[float]]]:
    """Of every metric the steps at which all runs logged it."""
    return {
        metric: {
            step: [record.metrics[step][metric] for record in records]
            for step in records[0].metrics
            if all(metric in record.metrics[step] for record in records)
        }
        for metric in (*LOGGED, *(f"validation/{name}/h_norm_mean" for name in cells))
    }


def _references(
    settings: StudySettings,
    numbers: Sequence[int],
    cells: Sequence[dict[str, list[CellPrompt]]],
    baselines: Sequence[Record],
) -> dict[str, dict[str, list[Values]]]:
    found: dict[str, dict[str, list[Values]]] = {}
    for number, own, record in zip(numbers, cells, baselines, strict=True):
        for name, by_cell in references(
            cells_directory(settings, number),
            own,
            settings.baseline,
            record.rewards,
            settings.design.min_gold_gap,
        ).items():
            for cell, values in by_cell.items():
                found.setdefault(name, {}).setdefault(cell, []).append(values)
    return found


def write_results(settings: StudySettings, results: Results) -> None:
    """``results.json``."""
    content = json.dumps(dataclasses.asdict(results), indent=1)
    atomic.write_text(settings.output_dir / RESULTS, content + "\n")


def _compare(
    settings: StudySettings,
    cells: dict[str, list[list[CellPrompt]]],
    trajectories: dict[str, dict[str, dict[int, list[Values]]]],
    last: dict[tuple[str, str], list[Rewards]],
) -> list[Comparison]:
    found = []
    for arm in trajectories:
        if arm == settings.baseline:
            continue
        for name in cells:
            ours, theirs = (_final(trajectories[one][name]) for one in (arm, settings.baseline))
            difference = paired([a.tau - b.tau for a, b in zip(ours, theirs, strict=True)])
            crossed = crossed_bootstrap(
                cells[name],
                (last[arm, name], last[settings.baseline, name]),
                draws=settings.draws,
                seed=settings.design.seed,
            )
            found.append(Comparison(arm, name, difference, crossed, None))
    secondary = [one for one in found if not _is_primary(settings, one)]
    corrected = holm({f"{one.arm}/{one.cell}": one.difference.p for one in secondary})
    return [dataclasses.replace(one, holm=corrected.get(f"{one.arm}/{one.cell}")) for one in found]


def _is_primary(settings: StudySettings, one: Comparison) -> bool:
    return one.arm == settings.primary and one.cell == PRIMARY_CELL


def _final(steps: dict[int, list[Values]]) -> Sequence[Values]:
    return steps[max(steps)]
