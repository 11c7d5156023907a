"""The report of an SFT run: loss and token accuracy over its steps."""

from pathlib import Path

from trainer.metrics import read_metrics
from trainer.report import Report, curves


def write_report(run_dir: Path) -> None:
    """Write ``report.html`` from the run's ``metrics.jsonl``."""
    lines = [line for line in read_metrics(run_dir) if line.get("loss") is not None]
    if not lines:
        return
    steps = [line["step"] for line in lines]
    report = Report("Supervised fine-tuning", f"{steps[-1]} optimiser steps.")
    losses = [line["loss"] for line in lines]
    report.figure(curves({"loss": (steps, losses)}, "step", "nats per token"), "Training loss.")
    accuracies = [line.get("token_accuracy") or 0.0 for line in lines]
    report.figure(
        curves({"accuracy": (steps, accuracies)}, "step", "share of tokens"),
        "Token accuracy: how often the most likely token is the next one.",
    )
    report.write(run_dir / "report.html")
