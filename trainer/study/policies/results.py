"""What the records say: every arm against the baseline at each β, over seeds."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reward_model import atomic
from reward_model.errors import UsageError
from trainer.demo.outcome import Point
from trainer.study.comparison import Difference, holm, paired
from trainer.study.policies.config import PolicyStudySettings
from trainer.study.policies.record import SeedRecord, identity_of, record_path

RESULTS = "results.json"
PRIMARY = "gold at matched KL"

MEASURES: dict[str, Callable[[Sequence[Point], float], float]] = {
    PRIMARY: lambda points, reach: mean_over_kl(points, [one.gold for one in points], reach),
    "highest gold": lambda points, reach: _best(points).gold,
    "KL at the highest gold": lambda points, reach: _best(points).kl,
    "gold at the last step": lambda points, reach: points[-1].gold,
    "length at matched KL": lambda points, reach: mean_over_kl(
        points, [one.length for one in points], reach
    ),
}
"""Of one policy's measurements, and the KL that all arms of its seed and β reach."""


@dataclass(frozen=True)
class Comparison:
    """An arm against the baseline. ``holm``: corrected over all secondary comparisons; None for
    the primary one."""

    arm: str
    beta: float
    measure: str
    difference: Difference
    holm: float | None


@dataclass(frozen=True)
class Results:
    records: list[SeedRecord]
    comparisons: list[Comparison]


def mean_over_kl(points: Sequence[Point], values: Sequence[float], reach: float) -> float:
    """Mean of ``values`` over KL from 0 to ``reach``, by straight lines between measurements.

    Measurements are taken in the order of their KL, which need not be that of their steps.

    Raises:
        ValueError: ``reach`` is not positive.
    """
    if reach <= 0:
        raise ValueError(f"the policies did not move: a KL of {reach:g} is all that they share")
    kl = np.array([max(point.kl, 0.0) for point in points])
    order = np.argsort(kl, kind="stable")
    kl, found = kl[order], np.asarray(values, dtype=float)[order]
    knots = np.unique(np.concatenate([[0.0], kl[kl < reach], [reach]]))
    return float(np.trapezoid(np.interp(knots, kl, found), knots) / reach)


def shared_kl(courses: Iterable[Sequence[Point]]) -> float:
    """The KL that all policies of a seed and β reach."""
    return min(max(point.kl for point in points) for points in courses)


def analyse(settings: PolicyStudySettings) -> Results:
    """From the records of all finished seeds.

    Raises:
        UsageError: fewer than two are finished, a record is of other settings, or more gold
            models judged them than the settings allow.
    """
    records = [
        SeedRecord.read(path, identity_of(settings, seed))
        for seed in settings.seeds
        if (path := record_path(settings, seed)).is_file()
    ]
    if len(records) < 2:
        raise UsageError(f"{settings.output_dir}: {len(records)} seeds are finished, 2 needed")
    if len(judged := judges(records)) > settings.golds:
        raise UsageError(
            f"golds: {settings.golds}, but {len(judged)} gold models judged the seeds: "
            f"{describe(judged)}; remove the records of some, or raise golds and say so"
        )
    found = [
        Comparison(arm, beta, measure, _difference(settings, records, arm, beta, measure), None)
        for arm in settings.arms
        if arm != settings.baseline
        for beta in settings.betas
        for measure in MEASURES
    ]
    secondary = {_name(one): one.difference.p for one in found if not _is_primary(settings, one)}
    corrected = holm(secondary)
    return Results(
        records, [dataclasses.replace(one, holm=corrected.get(_name(one))) for one in found]
    )


def judges(records: Sequence[SeedRecord]) -> dict[str, list[int]]:
    """Versions of gold models, and the seeds that each judged, where records name them."""
    judged: dict[str, list[int]] = {}
    for record in records:
        if "gold" in record.ran:
            judged.setdefault(record.ran["gold"], []).append(record.identity["seed"])
    return judged


def describe(judged: Mapping[str, Sequence[int]]) -> str:
    """What ``judges`` found, in words."""
    return "; ".join(
        f"{version} {'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}"
        for version, seeds in judged.items()
    )


def write_results(path: Path, results: Results) -> None:
    """Comparisons as JSON; the courses are in the records."""
    content = [dataclasses.asdict(one) for one in results.comparisons]
    atomic.write_text(path / RESULTS, json.dumps(content, indent=1) + "\n")


def _difference(
    settings: PolicyStudySettings,
    records: Sequence[SeedRecord],
    arm: str,
    beta: float,
    measure: str,
) -> Difference:
    differences = []
    for record in records:
        courses = {name: record.course(name, beta).points for name in settings.arms}
        reach = shared_kl(courses.values())
        ours, theirs = (MEASURES[measure](courses[one], reach) for one in (arm, settings.baseline))
        differences.append(ours - theirs)
    return paired(differences)


def _best(points: Sequence[Point]) -> Point:
    return max(points, key=lambda point: point.gold)


def _is_primary(settings: PolicyStudySettings, one: Comparison) -> bool:
    return (one.arm, one.beta, one.measure) == (settings.primary, settings.primary_beta, PRIMARY)


def _name(one: Comparison) -> str:
    return f"{one.arm}/{one.beta:g}/{one.measure}"
