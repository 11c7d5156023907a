import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from trainer.demo.cells import CELLS
from trainer.demo.outcome import Arm, read_arm, read_samples
from trainer.demo.report import build_report, terminal_table
from trainer.metrics import MetricsWriter

GOLD = {0: 1.0, 5: 2.5, 10: 1.5}


@pytest.fixture
def arm(tmp_path: Path) -> Arm:
    estimate = {"value": 0.7512, "low": 0.7, "high": 0.8}
    cell = {"accuracy": {"estimate": estimate}, "ranking": {"estimate": estimate}}
    (tmp_path / "evaluation").mkdir()
    results = {"sets": dict.fromkeys(CELLS, cell)}
    (tmp_path / "evaluation" / "results.json").write_text(json.dumps(results))
    with MetricsWriter(tmp_path / "reward", tensorboard=False) as metrics:
        metrics.log(1, {"loss/preference": 0.69, "train/batch_mean": 0.1})
    with MetricsWriter(tmp_path / "rloo", tensorboard=False) as metrics:
        for step, gold in GOLD.items():
            values = {"reward": step / 5, "raw/gold": gold, "kl": step / 2, "length": 20 + step}
            metrics.log(step, {f"heldout/{name}": value for name, value in values.items()})
            metrics.log(step + 1, values | {"loss": 0.1})
    sample = {"text": "It has <flour>.", "raw/gold": 1.5}
    row = {"prompt": {"messages": [{"content": "The mill?"}]}, "samples": [sample]}
    for step in (0, 10):
        (tmp_path / "rloo" / f"heldout-{step}.jsonl").write_text(json.dumps(row) + "\n")
    return read_arm("bt", tmp_path / "evaluation", tmp_path / "reward", tmp_path / "rloo")


def test_gold_turning_down_is_read(arm: Arm) -> None:
    assert (arm.first.gold, arm.best_gold.gold, arm.last.gold) == (1.0, 2.5, 1.5)
    assert (arm.best_gold.step, arm.last.root_kl) == (5, 5**0.5)
    assert len(arm.rloo) == 3


def test_the_table_shows_every_measurement(arm: Arm) -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(terminal_table([arm, arm]))
    text = console.export_text()
    for expected in ("accuracy, mutual ood", "0.751", "+0.00 → +2.00", "1.00 → 1.50", "2.50 at 5"):
        assert expected in text


def test_the_report_holds_plots_and_samples(arm: Arm, tmp_path: Path) -> None:
    assert read_samples(tmp_path / "rloo", 10, 1) == [("The mill?", "It has <flour>.", 1.5)]
    sft = {"step": [1.0, 2.0], "loss": [3.0, 2.0]}
    report = build_report([arm], sft, {"bt": tmp_path / "rloo"}, {"sft": 12.0})
    report.write(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert text.count("data:image/png") == 9
    assert "It has &lt;flour&gt;." in text
