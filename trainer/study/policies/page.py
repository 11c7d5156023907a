"""``report.html`` of a policy study, and the same as Markdown."""

import statistics
from collections.abc import Mapping, Sequence

from trainer.demo.outcome import Point
from trainer.report import Report, curves
from trainer.study.page import interval
from trainer.study.policies.config import PolicyStudySettings
from trainer.study.policies.results import (
    PRIMARY,
    Results,
    describe,
    judges,
    mean_over_kl,
    shared_kl,
)

PAGE = "report.html"
MATCHED = ("gold", "reward", "length")


def write_page(settings: PolicyStudySettings, results: Results) -> None:
    """Write the report with its pictures into ``output_dir``, and to ``page`` if one is named."""
    page = Report(
        "Policies against reward models compared",
        f"{len(results.records)} of {len(settings.seeds)} seeds, {settings.steps} steps of RLOO "
        f"each, {_world(settings)}. The primary endpoint is the difference in {PRIMARY} between "
        f"{settings.primary} and {settings.baseline} at β = {settings.primary_beta:g}.",
    )
    page.text(_effort(results))
    if len(judged := judges(results.records)) > 1:
        page.text(f"Gold was not one model in all seeds, but one in each: {describe(judged)}.")
    page.heading("Against the baseline")
    page.table(
        ["arm", "β", "measure", "Δ", "95 % (t)", "p", "p (Holm)", "detectable"],
        [
            [
                one.arm,
                f"{one.beta:g}",
                one.measure + (" (primary)" if one.holm is None else ""),
                f"{one.difference.mean:+.3f}",
                interval(one.difference.low, one.difference.high),
                f"{one.difference.p:.3f}",
                None if one.holm is None else f"{one.holm:.3f}",
                f"{one.difference.detectable:.3f}",
            ]
            for one in results.comparisons
        ],
        "Paired differences over seeds; t over seeds. Detectable: the true difference that would "
        "be found four times in five.",
    )
    for beta in settings.betas:
        page.heading(f"β = {beta:g}")
        found = {
            arm: [record.course(arm, beta).points for record in results.records]
            for arm in settings.arms
        }
        page.table(
            ["arm", "gold before", "highest", "at the last step", "KL", "proxy", "length"],
            [
                [
                    arm,
                    spread([points[0].gold for points in courses]),
                    spread([max(point.gold for point in points) for points in courses]),
                    *(
                        spread([getattr(points[-1], name) for points in courses])
                        for name in ("gold", "kl", "reward", "length")
                    ),
                ]
                for arm, courses in found.items()
            ],
            "Mean ± standard deviation over seeds; KL, proxy and length at the last step.",
        )
        page.table(
            ["arm", "gold", "proxy", "length"],
            [
                [arm, *(spread(_at_matched_kl(found, arm, name)) for name in MATCHED)]
                for arm in found
            ],
            "At matched KL: means over KL up to where all arms of a seed come; mean ± standard "
            "deviation over seeds.",
        )
        gold = {arm: _course(courses, "gold") for arm, courses in found.items()}
        page.figure(
            curves(gold, "KL from the SFT policy", "gold", markers=True),
            "Gold against KL: means over seeds, step by step.",
        )
        proxy = {arm: _course(courses, "reward") for arm, courses in found.items()}
        page.figure(
            curves(proxy, "KL from the SFT policy", "proxy", markers=True),
            "The standardised proxy reward that was trained on, likewise.",
        )
    page.write(settings.output_dir / PAGE)
    if settings.page is not None:
        page.write(settings.page)


def _world(settings: PolicyStudySettings) -> str:
    if (text := settings.text) is None:
        return "in the demo's town"
    proxies = text.backbone or text.policy
    return f"on {text.source}; policy {text.policy}, proxies from {proxies}, gold {text.gold}"


def _effort(results: Results) -> str:
    minutes = [sum(record.ran["seconds"].values()) / 60 for record in results.records]
    processors = sorted({record.ran["processor"] for record in results.records})
    return (
        f"{statistics.median(minutes):.1f} minutes a seed (median), every arm and β of it; "
        f"processor: {', '.join(processors)}."
    )


def spread(numbers: Sequence[float]) -> str:
    return f"{statistics.mean(numbers):.2f} ± {statistics.stdev(numbers):.2f}"


def _at_matched_kl(
    found: Mapping[str, Sequence[Sequence[Point]]], arm: str, name: str
) -> list[float]:
    """A value of an arm's policies, one a seed."""
    seeds = zip(*found.values(), strict=True)
    return [
        mean_over_kl(points, [getattr(point, name) for point in points], shared_kl(courses))
        for points, courses in zip(found[arm], seeds, strict=True)
    ]


def _course(courses: Sequence[Sequence[Point]], name: str) -> tuple[list[float], list[float]]:
    """KL and a value, both means over seeds at every measurement."""
    steps = list(zip(*courses, strict=True))
    return (
        [statistics.fmean(point.kl for point in points) for points in steps],
        [statistics.fmean(getattr(point, name) for point in points) for points in steps],
    )
