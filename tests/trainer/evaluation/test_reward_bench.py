import pytest

from trainer.evaluation.reward_bench import reward_bench


def test_sections_weigh_subsets_by_items_and_math_as_published() -> None:
    names = ["math-prm"] * 2 + ["hep-cpp"] * 4 + ["mt-bench-easy"] * 3 + ["alpacaeval-easy"]
    rewards = [
        (1.0, 0.0), (0.0, 1.0),  # math-prm: 1/2
        (1.0, 0.0), (1.0, 0.0), (1.0, 0.0), (1.0, 1.0),  # hep-cpp: 3/4, the tie is wrong
        (1.0, 0.0), (0.0, 1.0), (0.0, 1.0),  # mt-bench-easy: 1/3
        (1.0, 0.0),  # alpacaeval-easy: 1
    ]  # fmt: skip
    found = reward_bench(names, rewards)
    assert found.subsets["hep-cpp"].accuracy == pytest.approx(0.75)
    assert found.sections["Reasoning"] == pytest.approx((984 * 0.5 + 4 * 0.75) / 988)
    assert found.sections["Chat"] == pytest.approx((3 * 1 / 3 + 1 * 1) / 4)
    assert found.overall == pytest.approx(sum(found.sections.values()) / 2)
    assert set(found.sections) == {"Chat", "Reasoning"}
    assert "donotanswer" in found.missing
    assert "hep-cpp" not in found.missing


def test_other_subsets_are_reported_and_unscored_items_counted() -> None:
    found = reward_bench(["mine", "mine"], [(1.0, 0.0), (None, 0.0)])
    assert (found.subsets["mine"].items, found.subsets["mine"].unscored) == (1, 1)
    assert found.overall is None
