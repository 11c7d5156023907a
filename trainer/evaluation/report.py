"""The report of an evaluation: a table per kind of measurement, and a plot of the cells."""

from matplotlib.figure import Figure

from trainer.evaluation.intervals import Estimate
from trainer.evaluation.results import Results
from trainer.evaluation.reward_bench import RewardBench
from trainer.evaluation.rm_bench import STYLES
from trainer.report import Curve, Report, curves
from trainer.report_parts import Cell, format_cell


def build_report(results: Results, title: str) -> Report:
    """Tables and plots of ``results``."""
    version = results.model_version or "without a version"
    report = Report(title, f"Evaluation of {results.source} ({version}).")
    if results.sets:
        _sets(report, results)
    if results.rm_bench is not None:
        _rm_bench(report, results)
    if results.reward_bench is not None:
        _reward_bench(report, results.reward_bench)
    if results.representation:
        _representation(report, results)
    return report


def interval(estimate: Estimate) -> str:
    """``0.712 [0.690, 0.733]``."""
    value = format_cell(estimate.value)
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _sets(report: Report, results: Results) -> None:
    rows: list[list[Cell]] = [
        [
            name,
            one.accuracy.pairs,
            interval(one.accuracy.estimate),
            one.accuracy.ties,
            interval(one.balanced.estimate),
            one.longer_wins,
            interval(one.given_length),
            None if one.ranking is None else interval(one.ranking.estimate),
            None if one.ranking is None else one.ranking.undefined,
            one.unscored,
        ]
        for name, one in results.sets.items()
    ]
    header = ["set", "pairs", "accuracy", "ties", "accuracy, balanced", "longer wins"]
    header += ["r given length", "τ-b"]
    report.heading("Accuracy and ranking")
    report.table(
        [*header, "τ undefined", "unscored"],
        rows,
        "95 % intervals by bootstrap over prompts. A tie counts as wrong. Balanced: pairs whose "
        "lengths differ by less than a factor of 1.2. r given length: partial correlation of "
        "reward and gold, within prompts, given log length.",
    )
    estimates = {name: one.accuracy.estimate for name, one in results.sets.items()}
    report.figure(bars(estimates, "pair accuracy", reference=0.5), "Pair accuracy by set.")
    _best_of_n(report, results)


def _best_of_n(report: Report, results: Results) -> None:
    curves_by_set = {
        name: one.best_of_n for name, one in results.sets.items() if one.best_of_n is not None
    }
    if not curves_by_set:
        return
    report.heading("Best of n")
    rows: list[list[Cell]] = [
        [name, point.n, f"{point.kl:.2f}", interval(point.gold), point.possible]
        for name, curve in curves_by_set.items()
        for point in curve.points
    ]
    report.table(
        ["set", "n", "KL, at most", "gold gained", "gold possible"],
        rows,
        "Gold score of the response with the highest reward of n, less the prompt's mean; "
        "possible: when gold itself chooses. Exact over all subsets, intervals by prompt.",
    )
    series: dict[str, Curve] = {
        name: (
            [point.n for point in curve.points],
            [point.gold.value or 0.0 for point in curve.points],
        )
        for name, curve in curves_by_set.items()
    }
    report.figure(curves(series, "n", "gold gained", markers=True), "Best of n, by set.")


def _reward_bench(report: Report, bench: RewardBench) -> None:
    report.heading("RewardBench")
    overall = format_cell(bench.overall)
    report.table(
        ["section", "score"],
        [[name, value] for name, value in bench.sections.items()],
        f"Overall {overall}. Subsets missing: {', '.join(bench.missing) or 'none'}.",
    )
    report.table(
        ["subset", "items", "unscored", "accuracy"],
        [[name, one.items, one.unscored, one.accuracy] for name, one in bench.subsets.items()],
    )


def _rm_bench(report: Report, results: Results) -> None:
    bench = results.rm_bench
    assert bench is not None
    report.heading("RM-Bench")
    rows: list[list[Cell]] = [
        [name, part.items, part.unscored, part.hard, part.normal, part.easy]
        for name, part in bench.domains.items()
    ]
    rows.append(["mean", None, None, bench.hard, bench.normal, bench.easy])
    missing = ", ".join(bench.missing) or "none"
    report.table(
        ["domain", "items", "unscored", "hard", "normal", "easy"],
        rows,
        f"Overall {bench.overall:.4g}. Domains missing: {missing}.",
    )
    for name, part in bench.domains.items():
        report.table(
            [f"{name}: chosen", *(f"rejected {style}" for style in STYLES)],
            [[style, *values] for style, values in zip(STYLES, part.matrix, strict=True)],
        )


def _representation(report: Report, results: Results) -> None:
    report.heading("Hidden states")
    rows: list[list[Cell]] = [
        [
            name,
            one.rows,
            f"{one.erank_mean:.3f} ± {one.erank_std:.3f}",
            one.norms.mean,
            one.norms.std,
            one.norms.quantiles["0.05"],
            one.norms.quantiles["0.95"],
        ]
        for name, one in results.representation.items()
    ]
    report.table(
        ["set", "rows", "erank", "‖h‖ mean", "std", "5 %", "95 %"],
        rows,
        "erank over random subsets of equal size (mean ± standard deviation of the draws).",
    )


def bars(estimates: dict[str, Estimate], y_label: str, *, reference: float | None = None) -> Figure:
    """A bar per name with its interval, and a line at ``reference``."""
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axes = figure.subplots()
    for place, estimate in enumerate(estimates.values()):
        if estimate.value is None:
            continue
        axes.bar(place, estimate.value, width=0.6, color="#4c78a8")
        if estimate.low is not None and estimate.high is not None:
            axes.vlines(place, estimate.low, estimate.high, color="#1c2430")
    if reference is not None:
        axes.axhline(reference, color="#b0413e", linewidth=1, linestyle="--")
    axes.set_xticks(range(len(estimates)), list(estimates))
    axes.set_ylabel(y_label)
    axes.grid(axis="y", alpha=0.3)
    return figure
