"""Gold over KL by hand, and a study of made-up records."""

import json
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ttest_rel

from reward_model.errors import UsageError
from trainer.demo.outcome import Point
from trainer.study.policies.config import PolicyStudySettings
from trainer.study.policies.page import write_page
from trainer.study.policies.record import Course, SeedRecord, identity_of, record_path
from trainer.study.policies.results import (
    PRIMARY,
    analyse,
    judges,
    mean_over_kl,
    write_results,
)

GAINS = {1: 0.5, 2: 0.1, 3: 0.4}
"""What bsr has more of gold than bt, by seed."""


def point(step: int, kl: float, gold: float, length: float = 30.0) -> Point:
    return Point(step=step, kl=kl, reward=gold, gold=gold, length=length)


@pytest.fixture
def settings(tmp_path: Path) -> PolicyStudySettings:
    values: dict[str, Any] = {
        "output_dir": tmp_path / "study",
        "seeds": [1, 2, 3, 4],
        "arms": {"bt": {"name": "bt"}, "bsr": {"name": "bt_bsr"}},
        "betas": [0.01, 0.1],
        "primary_beta": 0.1,
        "steps": 20,
    }
    settings = PolicyStudySettings.model_validate(values)
    for seed, gain in GAINS.items():
        courses = [
            Course(arm, beta, [point(0, 0.0, 1.0), point(10, 2.0, 1.0 + more), point(20, end, 0.0)])
            for beta in settings.betas
            for arm, more, end in (("bt", 0.0, 4.0), ("bsr", gain, 8.0))
        ]
        identity = identity_of(settings, seed)
        ran = {"seconds": {"sft": 30.0, "rloo": 30.0 * seed}, "processor": f"number {seed % 2}"}
        record = SeedRecord(identity, {"bt": (0.0, 1.0)}, {}, courses, ran)
        record.write(record_path(settings, seed))
    return settings


def test_seeds_of_more_gold_models_than_are_allowed(settings: PolicyStudySettings) -> None:
    def judge(seed: int, by: str) -> None:
        path = record_path(settings, seed)
        record = SeedRecord.read(path, identity_of(settings, seed))
        record.ran["gold"] = by
        record.write(path)

    for seed in (1, 3):
        judge(seed, "sha256:a")
    assert len(analyse(settings).records) == 3
    judge(2, "sha256:b")
    said = "golds: 1, but 2 gold models judged the seeds: sha256:a seeds 1, 3; sha256:b seed 2;"
    with pytest.raises(UsageError, match=said):
        analyse(settings)
    both = settings.model_copy(update={"golds": 2})
    found = analyse(both)
    assert judges(found.records) == {"sha256:a": [1, 3], "sha256:b": [2]}
    write_page(both, found)
    assert "one in each: sha256:a seeds 1, 3; " in (settings.output_dir / "report.html").read_text()


def test_the_mean_over_kl_is_the_area_under_straight_lines() -> None:
    points = [point(0, 0.0, 1.0), point(10, 2.0, 3.0), point(20, 6.0, 1.0)]
    gold = [one.gold for one in points]
    assert mean_over_kl(points, gold, 2.0) == pytest.approx(2.0)
    assert mean_over_kl(points, gold, 4.0) == pytest.approx((4.0 + 5.0) / 4)
    assert mean_over_kl(points, gold, 6.0) == pytest.approx((4.0 + 8.0) / 6)


def test_measurements_count_in_the_order_of_their_kl() -> None:
    points = [point(0, 0.0, 1.0), point(20, 6.0, 1.0), point(10, 2.0, 3.0)]
    assert mean_over_kl(points, [one.gold for one in points], 4.0) == pytest.approx(9 / 4)


def test_a_policy_that_did_not_move_has_no_mean() -> None:
    with pytest.raises(ValueError, match="did not move"):
        mean_over_kl([point(0, 0.0, 1.0)], [1.0], 0.0)


def test_the_primary_endpoint_by_hand(settings: PolicyStudySettings) -> None:
    """To a KL of 4: bt 1, 1, 0; bsr 1, 1 + g at 2, and on to 0 at 8, (1 + g) 2/3 at 4."""
    found = analyse(settings)
    assert [record.identity["seed"] for record in found.records] == [1, 2, 3]
    (primary,) = [one for one in found.comparisons if one.holm is None]
    assert (primary.arm, primary.beta, primary.measure) == ("bsr", 0.1, PRIMARY)
    bt = (2.0 + 1.0) / 4
    bsr = [((2.0 + g) + (1 + g) * (1 + 2 / 3)) / 4 for g in GAINS.values()]
    wanted = [one - bt for one in bsr]
    assert primary.difference.differences == pytest.approx(wanted)
    assert primary.difference.p == pytest.approx(ttest_rel(bsr, [bt] * 3).pvalue)


def test_the_other_measures_by_hand(settings: PolicyStudySettings) -> None:
    found = {
        (one.beta, one.measure): one.difference.differences for one in analyse(settings).comparisons
    }
    assert found[0.01, "highest gold"] == pytest.approx(list(GAINS.values()))
    assert found[0.01, "KL at the highest gold"] == pytest.approx([2.0] * 3)
    assert found[0.01, "gold at the last step"] == [0.0] * 3
    assert found[0.01, "length at matched KL"] == pytest.approx([0.0] * 3)


def test_the_pages_are_written(settings: PolicyStudySettings) -> None:
    found = analyse(settings)
    write_results(settings.output_dir, found)
    page = settings.output_dir / "page.md"
    write_page(settings.model_copy(update={"page": page}), found)
    assert "| bsr | 0.1 |" in page.read_text()
    # To a KL of 4, bt by hand: gold, and the proxy that equals it, (2 + 1) / 4.
    assert "| bt | 0.75 ± 0.00 | 0.75 ± 0.00 | 30.00 ± 0.00 |" in page.read_text()
    written = json.loads((settings.output_dir / "results.json").read_text())
    assert len(written) == 10
    text = (settings.output_dir / "report.html").read_text()
    assert "3 of 4 seeds" in text
    assert (
        "1.5 minutes a seed (median), every arm and β of it; processor: number 0, number 1." in text
    )
    assert "(primary)" in text


def test_a_record_of_other_settings_is_refused(settings: PolicyStudySettings) -> None:
    with pytest.raises(UsageError, match=r"seed-1\.json: the record of a seed with another steps;"):
        analyse(settings.model_copy(update={"steps": 30}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"primary": "bsr2"}, "arms: bsr2 is missing"),
        ({"primary_beta": 0.5}, "betas: 0.5 is missing"),
        ({"seeds": [1, 1]}, "stands there twice"),
    ],
)
def test_settings_that_do_not_fit(
    settings: PolicyStudySettings, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        PolicyStudySettings.model_validate(settings.model_dump(by_alias=True) | change)
