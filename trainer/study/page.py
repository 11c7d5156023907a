"""``report.html`` of a study, and the same as Markdown: the arms compared, and how they went."""

import statistics
from collections.abc import Mapping, Sequence
from typing import TypeVar

from trainer.report import Curve, Report, curves
from trainer.report_parts import Cell
from trainer.study.benchmark_results import BenchmarkResults
from trainer.study.comparison import paired
from trainer.study.config import StudySettings
from trainer.study.results import PRIMARY_CELL, Results

T = TypeVar("T")

PAGE = "report.html"
MEASURES = ("tau", "partial_tau", "accuracy", "balanced")
COURSE = {
    "head_norm": "‖W_p‖",
    "probe/accuracy": "accuracy on train pairs",
    "probe/reward_std": "spread of rewards on train pairs",
    "probe/h_difference_mean": "mean ‖h_w − h_l‖ on train pairs",
    "probe/h_difference_std": "spread of ‖h_w − h_l‖ on train pairs",
}


def write_page(settings: StudySettings, results: Results) -> None:
    """Write the report with its pictures into ``output_dir``, and to ``page`` if one is named."""
    page = build_page(settings, results)
    page.write(settings.output_dir / PAGE)
    if settings.page is not None:
        page.write(settings.page)


def build_page(settings: StudySettings, results: Results) -> Report:
    """All tables and plots."""
    design, training = settings.design, settings.training
    page = Report(
        "Reward models compared",
        f"{len(results.replicates)} of {design.replicates} replicates, arms "
        f"{', '.join(results.trajectories)}; {design.train_pairs} pairs, {training.epochs} epochs, "
        f"learning rate {training.lr:g}, {training.precision}, backbone {settings.backbone}. The "
        f"primary endpoint is the difference in Kendall's τ-b between {settings.primary} and "
        f"{settings.baseline} on {PRIMARY_CELL} at the last step.",
    )
    page.text(_effort(results))
    _comparisons(page, results)
    _last_step(page, results)
    _course(page, settings, results)
    _training(page, settings, results)
    if results.benchmarks is not None:
        _benchmarks(page, settings, results.benchmarks)
    return page


def _effort(results: Results) -> str:
    minutes = [ran["training"]["seconds"] / 60 for ran in results.ran]
    threads = sorted({ran["threads"] for ran in results.ran})
    processors = sorted({ran["processor"] for ran in results.ran})
    return (
        f"{len(minutes)} runs of {statistics.median(minutes):.1f} minutes (median; all together "
        f"{sum(minutes) / 60:.1f} hours); CPU threads each: {', '.join(map(str, threads))}; "
        f"processor: {', '.join(processors)}."
    )


def _comparisons(page: Report, results: Results) -> None:
    page.heading("Against the baseline")
    page.table(
        ["arm", "cell", "Δτ", "95 % (t)", "p", "p (Holm)", "detectable", "95 % (crossed)"],
        [
            [
                one.arm,
                one.cell + (" (primary)" if one.holm is None else ""),
                f"{one.difference.mean:+.4f}",
                interval(one.difference.low, one.difference.high),
                f"{one.difference.p:.3f}",
                None if one.holm is None else f"{one.holm:.3f}",
                f"{one.difference.detectable:.4f}",
                interval(one.crossed.low, one.crossed.high),
            ]
            for one in results.comparisons
        ],
        "Paired differences over replicates at the last step. t: over replicates. Crossed: prompts "
        "and lineages of response models drawn anew, their weights alike in all replicates. "
        "Detectable: the true difference that would be found four times in five. Holm: over all "
        "but the primary endpoint.",
    )


def _last_step(page: Report, results: Results) -> None:
    page.heading("At the last step")
    page.text(
        "Below the arms what needs no further training: the longer response; Bradley-Terry on "
        "n-grams and style, from the same pairs; and the baseline's reward with log length taken "
        "off, as fitted on dev."
    )
    for cell in next(iter(results.trajectories.values())):
        found = {arm: final(cells[cell]) for arm, cells in results.trajectories.items()}
        found |= {name: cells[cell] for name, cells in results.references.items()}
        page.table(
            ["arm", "τ-b", "partial τ given length", "accuracy", "length-balanced"],
            [
                [arm, *(spread([getattr(one, name) for one in own]) for name in MEASURES)]
                for arm, own in found.items()
            ],
            f"{cell}: mean ± standard deviation over replicates.",
        )


def _course(page: Report, settings: StudySettings, results: Results) -> None:
    page.heading("Over training")
    for cell in next(iter(results.trajectories.values())):
        taus = {
            arm: {step: [one.tau for one in found] for step, found in cells[cell].items()}
            for arm, cells in results.trajectories.items()
        }
        _figure(page, taus, "τ-b", f"{cell}: mean over replicates.")
    _differences(page, settings, results)
    rows: list[list[Cell]] = []
    for arm, cells in results.trajectories.items():
        means = {
            step: statistics.mean(one.tau for one in found)
            for step, found in cells[PRIMARY_CELL].items()
        }
        best, last = max(means, key=means.__getitem__), max(means)
        rows.append([arm, means[best], best, means[last], means[best] - means[last]])
    page.table(
        ["arm", "highest τ-b", "at step", "at the last step", "lost"],
        rows,
        f"{PRIMARY_CELL}: means over replicates. The highest of several noisy means is somewhat "
        "too high, and so is what is lost; alike for all arms.",
    )


def _differences(page: Report, settings: StudySettings, results: Results) -> None:
    """Δτ in the primary cell over training."""
    means: dict[str, Curve] = {}
    bands: dict[str, Curve] = {}
    theirs = results.trajectories[settings.baseline][PRIMARY_CELL]
    for arm, cells in results.trajectories.items():
        if arm == settings.baseline:
            continue
        steps = sorted(cells[PRIMARY_CELL])
        found = [
            paired(
                [
                    a.tau - b.tau
                    for a, b in zip(cells[PRIMARY_CELL][step], theirs[step], strict=True)
                ]
            )
            for step in steps
        ]
        means[arm] = steps, [one.mean for one in found]
        bands[arm] = [one.low for one in found], [one.high for one in found]
    page.figure(
        curves(means, "step", f"Δτ-b against {settings.baseline}", markers=True, bands=bands),
        f"{PRIMARY_CELL}: paired differences over training, with 95 % intervals (t over "
        "replicates, each step for itself).",
    )


def _training(page: Report, settings: StudySettings, results: Results) -> None:
    page.heading("Weights and hidden states")
    for metric, label in COURSE.items():
        steps = {arm: found[metric] for arm, found in results.logged.items()}
        _figure(page, steps, label, f"{label}: mean over replicates.")
    cells = list(results.trajectories[settings.baseline])
    rows: list[list[Cell]] = []
    for arm, found in results.logged.items():
        norms = [final(found[f"validation/{cell}/h_norm_mean"]) for cell in cells]
        rows.append([arm, *map(spread, norms)])
    page.table(
        ["arm", *cells],
        rows,
        "Mean ‖h‖ over the responses of each cell at the last step, ± over replicates.",
    )


def _benchmarks(page: Report, settings: StudySettings, found: BenchmarkResults) -> None:
    page.heading("Benchmarks")
    others = list(found.differences)
    names = list(next(iter(found.values.values())))
    rows: list[list[Cell]] = []
    for name in names:
        row: list[Cell] = [name, *(spread(found.values[arm][name]) for arm in found.values)]
        for arm in others:
            one = found.differences[arm][name]
            row.append(f"{one.mean:+.4f} {interval(one.low, one.high)}")
        rows.append(row)
    page.table(
        ["measure", *found.values, *(f"{arm} − {settings.baseline}" for arm in others)],
        rows,
        f"{len(found.replicates)} replicates, at the last step. Accuracies of pairs, and hard, "
        "normal and easy of RM-Bench; erank of equally many hidden states of each set, and mean "
        "‖h‖. Differences with 95 % intervals (t over replicates), not corrected: these are no "
        "endpoints of the design.",
    )
    page.table(
        ["counted", "items"],
        [[name, count] for name, count in found.counts.items() if not name.startswith("train/")],
        "What is longer than the backbone reads has no score and is left out whole.",
    )


def _figure(
    page: Report, arms: Mapping[str, Mapping[int, Sequence[float]]], label: str, caption: str
) -> None:
    series = {
        arm: (sorted(steps), [statistics.mean(steps[step]) for step in sorted(steps)])
        for arm, steps in arms.items()
    }
    page.figure(curves(series, "step", label, markers=True), caption)


def final(steps: Mapping[int, list[T]]) -> list[T]:
    return steps[max(steps)]


def spread(found: Sequence[float] | Sequence[float | None]) -> str | None:
    """Mean ± standard deviation of those that are not None."""
    numbers = [value for value in found if value is not None]
    if len(numbers) < 2:
        return None
    return f"{statistics.mean(numbers):.4f} ± {statistics.stdev(numbers):.4f}"


def interval(low: float | None, high: float | None) -> str | None:
    return None if low is None or high is None else f"[{low:+.4f}, {high:+.4f}]"
