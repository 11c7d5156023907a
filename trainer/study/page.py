"""``report.html`` of a study: every arm against the baseline, and how all of them went."""

import statistics
from collections.abc import Sequence

from trainer.report import Report, curves
from trainer.study.config import StudySettings
from trainer.study.measures import Values
from trainer.study.results import PRIMARY_CELL, Results

PAGE = "report.html"


def write_page(settings: StudySettings, results: Results) -> None:
    """Write the report, and a picture per cell beside it."""
    design = settings.design
    page = Report(
        "Reward models compared",
        f"{len(results.replicates)} of {design.replicates} replicates; {design.train_pairs} pairs, "
        f"{settings.training.epochs} epochs, backbone {settings.backbone}. The primary endpoint is "
        f"the difference in Kendall's tau-b between {settings.primary} and {settings.baseline} on "
        f"{PRIMARY_CELL} at the last step.",
    )
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
        "Detectable: the true difference that would be found four times in five.",
    )
    page.heading("At the last step")
    for cell in next(iter(results.trajectories.values())):
        page.table(
            ["arm", "τ-b", "partial τ given length", "accuracy", "length-balanced"],
            [
                [
                    arm,
                    *(
                        spread(final(cells[cell]), name)
                        for name in ("tau", "partial_tau", "accuracy", "balanced")
                    ),
                ]
                for arm, cells in results.trajectories.items()
            ],
            f"{cell}: mean ± standard deviation over replicates.",
        )
    page.heading("Over training")
    for cell in next(iter(results.trajectories.values())):
        series = {
            arm: (
                sorted(cells[cell]),
                [
                    statistics.mean(one.tau for one in cells[cell][step])
                    for step in sorted(cells[cell])
                ],
            )
            for arm, cells in results.trajectories.items()
        }
        page.figure(curves(series, "step", "τ-b", markers=True), f"{cell}: mean over replicates.")
    page.write(settings.output_dir / PAGE)


def final(steps: dict[int, list[Values]]) -> list[Values]:
    return steps[max(steps)]


def spread(found: Sequence[Values], name: str) -> str | None:
    numbers = [value for one in found if (value := getattr(one, name)) is not None]
    if len(numbers) < 2:
        return None
    return f"{statistics.mean(numbers):.4f} ± {statistics.stdev(numbers):.4f}"


def interval(low: float | None, high: float | None) -> str | None:
    return None if low is None or high is None else f"[{low:+.4f}, {high:+.4f}]"
