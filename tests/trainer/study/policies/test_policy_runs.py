"""Processes that share the seeds of a study."""

from pathlib import Path

import pytest

from trainer.lock import locked
from trainer.study.policies import runs
from trainer.study.policies.config import PolicyStudySettings
from trainer.study.policies.record import SeedRecord, identity_of


class Trained:
    """A seed that takes no time."""

    def __init__(self, settings: PolicyStudySettings, seed: int) -> None:
        self.settings, self.seed = settings, seed

    def record(self) -> SeedRecord:
        return SeedRecord(identity_of(self.settings, self.seed), {}, {}, [], {})


def test_a_seed_that_another_process_is_at_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "SeedRun", Trained)
    settings = PolicyStudySettings.model_validate(
        {
            "output_dir": tmp_path,
            "seeds": [1, 2, 3],
            "arms": {"bt": {"name": "bt"}, "bsr": {"name": "bt_bsr", "lambda": 1e-3}},
            "betas": [0.1],
            "primary_beta": 0.1,
        }
    )
    found = runs.run_all(settings)
    with locked(tmp_path / "seed-1.lock", wait=False) as ours:
        assert ours
        assert [next(found).identity["seed"] for _ in range(2)] == [2, 3]
    assert [record.identity["seed"] for record in found] == [1]
