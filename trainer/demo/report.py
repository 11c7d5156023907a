"""The demo's ending: a table on the terminal and an HTML report with plots."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich.table import Table

from trainer.demo.cells import CELLS
from trainer.demo.outcome import Arm, read_samples
from trainer.report import Report, curves
from trainer.report_parts import Cell, format_cell

COLOURS = {"BT": "#b0413e", "BSR": "#2f6f9f"}
INTRODUCTION = (
    "A small town where the truth is a table, so that the gold reward of any text is known. A "
    "policy was trained from scratch on conversations; two reward models started from it and "
    "learned from gold-labelled pairs, one with the Bradley-Terry loss (BT), one with batch-wise "
    "sum-to-zero regularisation (BSR). Each was served, and RLOO trained the policy against it; "
    "gold was measured beside it and never trained on. One seed and a tiny model: the demo shows "
    "that the system works, not which loss is better."
)


def rows(arms: Sequence[Arm]) -> tuple[list[str], list[list[Cell]]]:
    """Header and rows of the closing table: a row per measurement, a column per reward model."""
    table: list[list[Cell]] = []
    for cell in CELLS:
        label = cell.replace("_", " ")
        table.append([f"accuracy, {label}", *(_round(arm.accuracy(cell)) for arm in arms)])
        table.append([f"Kendall τ-b, {label}", *(_round(arm.tau(cell)) for arm in arms)])
    for name, values in {
        "reward, before → after": [f"{a.first.reward:+.2f} → {a.last.reward:+.2f}" for a in arms],
        "gold, before → after": [f"{a.first.gold:.2f} → {a.last.gold:.2f}" for a in arms],
        "best gold, at step": [f"{a.best_gold.gold:.2f} at {a.best_gold.step}" for a in arms],
        "KL to the SFT policy, nats": [f"{a.last.kl:.1f}" for a in arms],
        "response tokens": [f"{a.first.length:.0f} → {a.last.length:.0f}" for a in arms],
    }.items():
        table.append([name, *values])
    return ["", *(arm.name.upper() for arm in arms)], table


def terminal_table(arms: Sequence[Arm]) -> Table:
    header, body = rows(arms)
    table = Table(title="Reward models and the policies trained against them")
    for place, name in enumerate(header):
        table.add_column(name, justify="left" if place == 0 else "right")
    for row in body:
        table.add_row(*(format_cell(cell) for cell in row))
    return table


def build_report(
    arms: Sequence[Arm],
    sft: Mapping[str, Sequence[float]],
    rloo: Mapping[str, Path],
    seconds: Mapping[str, float],
) -> Report:
    """The whole report. ``sft``: steps and losses; ``rloo``: run directories by reward model."""
    report = Report("Sumzero demo", INTRODUCTION)
    header, body = rows(arms)
    report.table(header, body, "Reward is standardised; gold is in points of the formula.")
    report.heading("The policies")
    report.figure(against_kl(arms), "Held-out prompts: proxy reward and gold against √KL.")
    for name, label in (("reward", "reward"), ("raw/gold", "gold"), ("kl", "KL, nats"),
                        ("length", "response tokens")):  # fmt: skip
        series = {arm.name.upper(): _series(arm.rloo, name) for arm in arms}
        report.figure(_curves(series, "RLOO step", label), f"Training samples: {label}.")
    report.heading("The reward models")
    report.figure(cell_bars(arms), "Pair accuracy on the five-way split, with 95 % intervals.")
    series = {arm.name.upper(): _series(arm.training, "loss/preference") for arm in arms}
    report.figure(_curves(series, "step", "nats per pair"), "Preference loss.")
    series = {arm.name.upper(): _series(arm.training, "train/batch_mean") for arm in arms}
    report.figure(_curves(series, "step", "reward"), "M, the mean reward of a batch.")
    report.heading("The SFT policy")
    report.figure(
        curves({"sft": (sft["step"], sft["loss"])}, "step", "nats per token"), "Training loss."
    )
    report.heading("Samples")
    for arm in arms:
        _samples(report, arm, rloo[arm.name])
    report.heading("Time")
    report.table(["stage", "seconds"], [[name, value] for name, value in seconds.items()])
    return report


def against_kl(arms: Sequence[Arm]) -> Figure:
    """Two panels over √KL: the proxy, which is trained on, and gold, which is not."""
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for arm in arms:
        roots = [point.root_kl for point in arm.points]
        style = {
            "color": COLOURS.get(arm.name.upper()),
            "marker": "o",
            "markersize": 3,
            "linewidth": 1.6,
        }
        left.plot(roots, [point.reward for point in arm.points], label=arm.name.upper(), **style)
        right.plot(roots, [point.gold for point in arm.points], label=arm.name.upper(), **style)
    left.set(xlabel="√KL to the SFT policy", ylabel="standardised reward", title="proxy")
    right.set(xlabel="√KL to the SFT policy", ylabel="points", title="gold")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    return figure


def cell_bars(arms: Sequence[Arm]) -> Figure:
    """Grouped bars: cells by reward model."""
    figure = Figure(figsize=(7.6, 3.4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(arms)
    for offset, arm in enumerate(arms):
        places = [place + (offset - (len(arms) - 1) / 2) * width for place in range(len(CELLS))]
        values = [arm.accuracy(cell) or 0.0 for cell in CELLS]
        axes.bar(places, values, width, label=arm.name.upper(), color=COLOURS.get(arm.name.upper()))
        for place, cell in zip(places, CELLS, strict=True):
            estimate = arm.cells[cell]["accuracy"]["estimate"]
            if estimate["low"] is not None:
                axes.vlines(place, estimate["low"], estimate["high"], color="#1c2430")
    axes.axhline(0.5, color="#586273", linewidth=1, linestyle="--")
    axes.set_xticks(range(len(CELLS)), [cell.replace("_", " ") for cell in CELLS])
    axes.set_ylabel("pair accuracy")
    axes.legend(frameon=False, loc="upper right")
    return figure


def _samples(report: Report, arm: Arm, directory: Path) -> None:
    for point in (arm.first, arm.last):
        report.text(f"{arm.name.upper()}, step {point.step}:")
        shown = read_samples(directory, point.step, 2)
        report.sample("\n\n".join(f"{p}\n→ {text}   [gold {g:.2f}]" for p, text, g in shown))


def _curves(
    series: Mapping[str, tuple[list[float], list[float]]], x_label: str, y_label: str
) -> Figure:
    return curves(series, x_label, y_label, colours=COLOURS)


def _series(lines: Sequence[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    kept = [line for line in lines if line.get(name) is not None]
    return [line["step"] for line in kept], [line[name] for line in kept]


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
