"""Whole studies of policies in small: in the demo's town, ended by SIGTERM and gone on with by two
processes, and of text."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.checkpoints import tiny_checkpoint
from tests.trainer.study.policies.sources import write_source
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
    shared = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    for process in shared:
        said, _ = process.communicate()
        assert process.returncode == 0, said
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


def test_a_study_of_text(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    policy = tiny_checkpoint(tmp_path / "policy", "qwen2", task="causal")
    gold = tiny_checkpoint(tmp_path / "gold", "llama", seed=3)
    values = {
        "output_dir": str(tmp_path / "study"),
        "seeds": [1, 2],
        "arms": {"bt": {"name": "bt"}, "bsr": {"name": "bt_bsr", "lambda": 1e-3}},
        "betas": [0.03],
        "primary_beta": 0.03,
        "steps": 2,
        "every": 1,
        "standard_samples": 2,
        "text": {
            "source": str(write_source(tmp_path / "source", 24, 16)),
            "policy": str(policy),
            "gold": str(gold),
            "labelled_prompts": 16,
            "unseen_prompts": 6,
            "policy_prompts": 8,
            "heldout_prompts": 4,
            "max_prompt_tokens": 64,
            "max_new_tokens": 12,
            "temperature": 1.0,
            "batch_pairs": 8,
            "batch_size": 8,
        },
    }
    config = tmp_path / "study.yaml"
    config.write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "trainer.study.policies", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    settings = PolicyStudySettings.model_validate(values)
    found = analyse(settings)
    for record in found.records:
        bt, bsr = (record.course(arm, 0.03).points for arm in settings.arms)
        assert [point.step for point in bt] == [0, 1, 2]
        # Both start from one policy, judged by one gold model.
        assert bt[0].gold == bsr[0].gold
        assert bt[-1].kl != bsr[-1].kl
        assert set(record.accuracy["bsr"]) == {"in_domain", "prompt_ood"}
    seed = tmp_path / "study/seed-1"
    pairs = [json.loads(line) for line in (seed / "pairs/train_pairs.jsonl").open()]
    assert 0 < len(pairs) <= 32
    samples = read_table(seed / "responses/heldout-0.jsonl")
    assert len(samples) == 22
    chosen = {one["text"]: one["raw/reward"] for row in samples for one in row["samples"]}
    assert all(chosen[pair["chosen"]] > chosen[pair["rejected"]] for pair in pairs)
