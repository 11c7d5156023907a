import json
import math
from pathlib import Path

from trainer.metrics import FILE_NAME, MetricsWriter, read_metrics


def test_one_object_per_line(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as metrics:
        metrics.log(1, {"loss/total": 0.5})
        metrics.log(2, {"loss/total": math.nan, "lr": 1e-5})
    first, second = read_metrics(tmp_path)
    assert (first["step"], first["loss/total"]) == (1, 0.5)
    assert (second["step"], second["loss/total"], second["lr"]) == (2, None, 1e-5)
    assert list((tmp_path / "tensorboard").iterdir())


def test_resuming_drops_later_and_torn_lines(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, tensorboard=False) as metrics:
        for step in range(1, 6):
            metrics.log(step, {"loss": step})
    with (tmp_path / FILE_NAME).open("a") as file:
        file.write('{"step": 6, "lo')
    with MetricsWriter(tmp_path, resume_step=3, tensorboard=False) as metrics:
        metrics.log(4, {"loss": 40})
    lines = [json.loads(line) for line in (tmp_path / FILE_NAME).read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 40),
    ]


def test_a_new_run_starts_the_files_anew(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        with MetricsWriter(tmp_path) as metrics:
            metrics.log(1, {"loss": value})
    assert [line["loss"] for line in read_metrics(tmp_path)] == [2.0]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
