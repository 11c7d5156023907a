"""``report.html``: the curves of a finished run and its final measurements."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.metrics import read_metrics
from trainer.report import Curve, Report, curves

Lines = Sequence[dict[str, Any]]

FIGURES: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("loss", ("loss/total", "loss/preference", "loss/weighted_penalty"), "Loss and its terms."),
    ("accuracy", ("train/accuracy", "{set}/accuracy"), "Pair accuracy; ties count as wrong."),
    ("Kendall τ-b", ("{set}/tau",), "Mean τ-b over the prompts of each validation set."),
    (
        "reward",
        ("train/reward_mean", "train/reward_std", "train/margin"),
        "Mean and spread of the rewards of each batch, and the mean of r_chosen − r_rejected.",
    ),
    (
        "variance and mean",
        ("train/batch_mean", "train/pair_variance"),
        "M, the mean of all rewards of the batch, and v, the variance of pair means.",
    ),
    (
        "norm",
        ("train/h_norm_mean", "train/h_norm_std", "probe/h_difference_mean", "head_norm"),
        "Mean and spread of ‖h‖, ‖h_w − h_l‖ on the train probe, and ‖W_p‖.",
    ),
)


def write_page(run_dir: Path, report: dict[str, Any]) -> None:
    """Write ``report.html`` and its plots from ``metrics.jsonl`` and the run's report."""
    lines = read_metrics(run_dir)
    loss = report["settings"]["loss"]
    terms = ", ".join(f"{key} {value}" for key, value in loss.items() if key != "name")
    title = f"Reward model, {loss['name']}" + (f" ({terms})" if terms else "")
    page = Report(title, _introduction(report))
    _measured_table(page, report["measured"])
    for label, names, caption in FIGURES:
        series = _series(lines, names)
        if series:
            sparse = max(len(x) for x, _ in series.values()) < 40
            page.figure(curves(series, "step", label, markers=sparse), caption)
    counts = {**report["data"], **report["training"]}
    page.heading("Data and training")
    page.table(
        ["", ""], [[name.replace("_", " "), _plain(value)] for name, value in counts.items()]
    )
    page.write(run_dir / "report.html")


def _introduction(report: dict[str, Any]) -> str:
    weights = report["objective"]
    return (
        f"{report['data']['pairs_trained']} pairs, {report['training']['steps']} steps, backbone "
        f"{report['settings']['backbone']}. The penalty weighs {weights['squared_mean']:g} on the "
        f"squared mean reward and {weights['pair_variance']:g} on the variance of pair means."
    )


def _measured_table(page: Report, measured: dict[str, dict[str, float]]) -> None:
    columns = ("accuracy", "ties", "tau", "reward_mean", "reward_std", "h_norm_mean", "h_norm_std")
    rows = [
        [name.removeprefix("validation/"), *(values.get(column) for column in columns)]
        for name, values in measured.items()
    ]
    header = ["set", *(column.replace("_", " ") for column in columns)]
    page.table(header, rows, "At the last step; probe: a fixed sample of the train pairs.")


def _series(lines: Lines, names: Sequence[str]) -> dict[str, Curve]:
    found: dict[str, Curve] = {}
    for name in names:
        for column in _columns(lines, name):
            points = [
                (line["step"], line[column]) for line in lines if line.get(column) is not None
            ]
            if points:
                found[column] = ([x for x, _ in points], [y for _, y in points])
    return found


def _columns(lines: Lines, name: str) -> list[str]:
    """``{set}/accuracy`` stands for that column of the probe and of every validation set."""
    if not name.startswith("{set}"):
        return [name]
    end = name.removeprefix("{set}")
    columns = {column: None for line in lines for column in line if column.endswith(end)}
    return [column for column in columns if column.startswith(("probe/", "validation/"))]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {count}" for name, count in value.items()) or "none"
    return str(value)
