"""The report of an RLOO run: what the policy gained on held-out prompts, and how it got there."""

import math
from pathlib import Path
from typing import Any

from trainer.metrics import read_metrics
from trainer.report import Report, curves
from trainer.report_parts import Cell
from trainer.rloo.evaluation import gain, mean_over_prompts, read_prompt_means
from trainer.rloo.ledger import read_ledger
from trainer.rloo.run_directory import REPORT, SAMPLES
from trainer.rloo.sample_table import last_message, read_table

PLOTS = (
    (("reward",), "reward", "Mean shaped reward of the training samples."),
    (("kl",), "nats", "KL to the reference, per sequence."),
    (("entropy",), "nats per token", "Entropy of the policy at its temperature."),
    (("length",), "tokens", "Response length."),
    (
        ("eos_share", "truncated_share"),
        "share",
        "Responses that ended; importance ratios cut at C.",
    ),
    (("ratio_mean", "ratio_max", "ratio_min"), "ratio", "Importance ratios against the sampler."),
    (("staleness",), "versions", "Age of the samples."),
    (("idle/generate", "idle/score", "idle/learn"), "share of time", "Idle time of each stage."),
)

SHOWN_PROMPTS, SHOWN_TRAINED = 4, 2


def write_report(run_dir: Path) -> None:
    """Write ``report.html`` from what the run left in its directory."""
    lines = read_metrics(run_dir)
    steps = [line for line in lines if "loss" in line]
    heldout = [line for line in lines if "heldout/reward" in line]
    report = Report("RLOO", f"{len(steps)} optimiser steps.")
    if heldout:
        _heldout(report, run_dir, heldout)
    for names, unit, caption in PLOTS:
        series = {name: _curve(steps, name) for name in names}
        if any(x for x, _ in series.values()):
            report.figure(curves(series, "step", unit), caption)
    _trained_samples(report, run_dir)
    _skipped(report, run_dir)
    report.write(run_dir / REPORT)


def heldout_files(run_dir: Path) -> list[Path]:
    """What the held-out evaluations wrote, in the order of their steps."""
    return sorted(run_dir.glob("heldout-*.jsonl"), key=lambda path: int(path.stem[8:]))


def heldout_gain(run_dir: Path, name: str = "reward") -> tuple[float, float, float, int]:
    """Before, after, standard error of the gain over prompts, and prompts, of held-out ``name``.

    ``name`` is ``reward`` or ``raw/<source>``. Raises FileNotFoundError without two evaluations.
    """
    files = heldout_files(run_dir)
    if len(files) < 2:
        raise FileNotFoundError(f"{run_dir}: fewer than two held-out evaluations")
    before, after = (read_prompt_means(path, name) for path in (files[0], files[-1]))
    both = before.keys() & after.keys()
    first = mean_over_prompts({n: before[n] for n in both}).mean
    change = gain(before, after)
    return first, first + change.mean, change.error, change.prompts


def _heldout(report: Report, run_dir: Path, lines: list[dict[str, Any]]) -> None:
    report.heading("Held-out prompts")
    names = ("reward", *(n[8:] for n in lines[0] if n.startswith("heldout/raw/")))
    rows: list[list[Cell]] = []
    if len(heldout_files(run_dir)) >= 2:
        for name in names:
            before, after, error, prompts = heldout_gain(run_dir, name)
            rows.append([name, before, after, after - before, error, prompts])
    report.table(
        ["", "before", "after", "gain", "standard error", "prompts"],
        rows,
        "The standard error is that of the mean gain, over prompts.",
    )
    roots = [math.sqrt(max(0.0, line["heldout/kl"] or 0.0)) for line in lines]
    series = {name: (roots, [line[f"heldout/{name}"] for line in lines]) for name in names}
    report.figure(
        curves(series, "sqrt(KL)", "score", markers=True), "Held-out scores against sqrt(KL)."
    )
    for name in ("kl", "length", "eos_share"):
        curve = ([line["step"] for line in lines], [line[f"heldout/{name}"] for line in lines])
        report.figure(curves({name: curve}, "step", name, markers=True), f"Held-out {name}.")
    _samples(report, run_dir)


def _samples(report: Report, run_dir: Path) -> None:
    """The first answers to a few held-out prompts, before and after."""
    files = heldout_files(run_dir)
    first, last = read_table(files[0]), read_table(files[-1])
    for before, after in list(zip(first, last, strict=True))[:SHOWN_PROMPTS]:
        report.sample(last_message(before))
        table: list[list[Cell]] = [
            [when, row["samples"][0]["text"], row["samples"][0]["reward"]]
            for when, row in (("before", before), ("after", after))
        ]
        report.table(["", "answer", "reward"], table)


def _trained_samples(report: Report, run_dir: Path) -> None:
    """What a few prompts of the first and of the last table of training samples got."""
    files = sorted((run_dir / SAMPLES).glob("step-*.jsonl"), key=lambda path: int(path.stem[5:]))
    if not files:
        return
    report.heading("Training samples")
    for path in dict.fromkeys((files[0], files[-1])):
        for row in read_table(path)[:SHOWN_TRAINED]:
            report.sample(last_message(row))
            names = ["text", "tokens", "ended", "version", "reward"]
            table: list[list[Cell]] = [
                [one[name] if name != "ended" else str(one[name]) for name in names]
                for one in row["samples"]
            ]
            report.table(names, table, f"Step {path.stem[5:]}.")


def _skipped(report: Report, run_dir: Path) -> None:
    skipped = {
        position: reason
        for line in read_ledger(run_dir)
        for position, reason in line.get("skipped", {}).items()
    }
    if skipped:
        report.heading("Skipped")
        report.table(["position", "reason"], [[p, reason] for p, reason in skipped.items()])


def _curve(lines: list[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    known = [line for line in lines if line.get(name) is not None]
    return [line["step"] for line in known], [line[name] for line in known]
