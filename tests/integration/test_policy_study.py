"""A whole study of policies in small: two seeds, two arms; ended by SIGTERM, and gone on with."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from trainer.rloo.sample_table import read_table
from trainer.study.policies.config import PolicyStudySettings
from trainer.study.policies.results import analyse

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]


def test_a_study_is_stopped_and_goes_on(tmp_path: Path) -> None:
    values = {
        "output_dir": str(tmp_path / "study"),
        "seeds": [1, 2],
        "arms": {"bt": {"name": "bt"}, "bsr": {"name": "bt_bsr", "lambda": 1e-3}},
        "betas": [0.03],
        "primary_beta": 0.03,
        "steps": 4,
        "every": 2,
        "standard_samples": 2,
        "scale": "ci",
    }
    config = tmp_path / "study.yaml"
    config.write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "trainer.study.policies", "--config", str(config)]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    begun = tmp_path / "study/seed-1/rloo/bt-beta-0.03/metrics.jsonl"
    while not begun.exists():
        assert first.poll() is None
        time.sleep(0.1)
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=120) == 130
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    settings = PolicyStudySettings.model_validate(values)
    found = analyse(settings)
    assert len(found.records) == 2
    for record in found.records:
        for arm in settings.arms:
            points = record.course(arm, 0.03).points
            assert [point.step for point in points] == [0, 2, 4]
            assert points[0].kl == 0.0
            # The samples that standardise the rewards and those of step 0 are of one policy.
            assert abs(points[0].reward) < 1.5
        bt, bsr = (record.course(arm, 0.03).points[0] for arm in settings.arms)
        assert bt.gold == bsr.gold
    assert (tmp_path / "study/report.html").is_file()
    samples = read_table(tmp_path / "study/seed-1/samples/heldout-0.jsonl")
    assert {len(row["samples"]) for row in samples} == {2}
