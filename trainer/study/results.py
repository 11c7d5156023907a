"""From the runs of a study to its tables: trajectories, and every arm against the baseline."""

import dataclasses
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from reward_model import atomic
from reward_model.errors import UsageError
from trainer.evaluation.intervals import Estimate
from trainer.study.cells import MEASURED
from trainer.study.comparison import Difference, crossed_bootstrap, holm, paired
from trainer.study.config import StudySettings
from trainer.study.measures import CellPrompt, Values, per_prompt
from trainer.study.runs import has_record, prepare, read_cells, read_record

PRIMARY_CELL = "mutual_ood"
RESULTS = "results.json"

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
    """``trajectories[arm][cell][step]`` has the values of every replicate in turn."""

    replicates: list[int]
    trajectories: dict[str, dict[str, dict[int, list[Values]]]]
    comparisons: list[Comparison]


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
    cells = [read_cells(settings, number) for number in numbers]
    trajectories: dict[str, dict[str, dict[int, list[Values]]]] = {}
    last: dict[tuple[str, str], list[Rewards]] = defaultdict(list)
    for arm in settings.arms:
        if not all(has_record(settings, arm, number) for number in numbers):
            continue
        table: dict[str, dict[int, list[Values]]] = {name: defaultdict(list) for name in MEASURED}
        for place, replicate in enumerate(complete):
            record = read_record(settings, arm, replicate)
            for step, found in record.trajectory.items():
                for name in MEASURED:
                    table[name][step].append(found[name])
            for name in MEASURED:
                last[arm, name].append(per_prompt(cells[place][name], record.rewards[name]))
        trajectories[arm] = {name: dict(found) for name, found in table.items()}
    by_cell = {name: [found[name] for found in cells] for name in MEASURED}
    return Results(numbers, trajectories, _compare(settings, by_cell, trajectories, last))


def write_results(settings: StudySettings, results: Results) -> None:
    """``results.json``."""
    content = {
        "replicates": results.replicates,
        "comparisons": [dataclasses.asdict(one) for one in results.comparisons],
        "trajectories": {
            arm: {
                cell: {
                    str(step): [dataclasses.asdict(v) for v in found] for step, found in s.items()
                }
                for cell, s in cells.items()
            }
            for arm, cells in results.trajectories.items()
        },
    }
    atomic.write_text(settings.output_dir / RESULTS, json.dumps(content, indent=1) + "\n")


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
        for name in MEASURED:
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
