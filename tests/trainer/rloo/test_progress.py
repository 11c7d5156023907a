"""The live view: numbers on a terminal, silence in a log."""

import io

from rich.console import Console

from trainer.rloo.progress import StepProgress, sparkline

VALUES = {
    "reward": 1.25, "kl": 3.5, "length": 40.0, "idle/learn": 0.125, "staleness": 1.0,
    "tokens_per_second": 512.0,
}  # fmt: skip


def shown(terminal: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=120)
    with StepProgress(10, 2, console) as progress:
        progress.show(3, VALUES)
        progress.show(4, VALUES | {"reward": 2.75})
    return file.getvalue()


def test_a_terminal_sees_how_far_and_how_well():
    text = shown(terminal=True)
    for part in ("4/10", "2.75", "3.5", "idle/learn", "0.125", "512", "1.25 … 2.75"):
        assert part in text, part


def test_a_log_sees_nothing():
    assert shown(terminal=False) == ""


def test_a_sparkline_spans_its_values():
    assert sparkline([0.0, 7.0, 3.0]) == "▁█▄"
    assert sparkline([2.0, 2.0]) == "▁▁"
