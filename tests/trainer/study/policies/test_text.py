"""Prompts drawn for a seed, and pairs and cells made of labelled samples."""

from pathlib import Path
from typing import Any

import pytest

from reward_model.errors import UsageError
from tests.trainer.study.policies.sources import write_source
from trainer.study.policies.config import TextSettings
from trainer.study.policies.text import draw_prompts, label


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path, 12, 8)


def settings(source: Path, **changes: Any) -> TextSettings:
    values = {
        "source": source, "policy": "p", "gold": "g", "labelled_prompts": 7, "policy_prompts": 5,
        "unseen_prompts": 3, "heldout_prompts": 4,
    }  # fmt: skip
    return TextSettings.model_validate(values | changes)


def asked(rows: list[dict[str, Any]]) -> set[str]:
    return {row["prompt"][0]["content"] for row in rows}


def test_no_prompt_has_two_uses_and_valid_ones_are_never_trained_on(source: Path) -> None:
    drawn = draw_prompts(settings(source), seed=1)
    train = asked(drawn.labelled) | asked(drawn.policy)
    valid = asked(drawn.unseen) | asked(drawn.heldout)
    assert [len(rows) for rows in (drawn.labelled, drawn.policy)] == [7, 5]
    assert train == {f"What is p{number}?" for number in range(12)}
    assert len(valid) == 7
    assert valid < {f"What is p{number}?" for number in range(12, 20)}
    assert draw_prompts(settings(source), seed=1) == drawn
    assert draw_prompts(settings(source), seed=2) != drawn


def test_too_few_prompts_are_said(source: Path) -> None:
    with pytest.raises(UsageError, match=r"labelled_prompts \+ policy_prompts are 13, but .* 12"):
        draw_prompts(settings(source, policy_prompts=6), seed=1)


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"prompts\.jsonl\.gz: no such file"):
        draw_prompts(settings(tmp_path), seed=1)


def row(prompt: str, gold: list[float | None]) -> dict[str, Any]:
    samples = [
        {"text": f"{prompt}{place}", "raw/reward": score} for place, score in enumerate(gold)
    ]
    return {"prompt": {"messages": [{"role": "user", "content": prompt}]}, "samples": samples}


def test_pairs_and_cells_by_hand() -> None:
    table = [
        row("a", [1.0, 2.0, 3.0, 3.0, 5.0, 4.0]),  # the second two are a tie
        row("b", [0.0, None, -1.0, 2.0, 1.0, 7.0]),  # without the one that has no score
        row("u", [1.0, 0.5, 0.0, 0.1, 0.2, 0.3]),
    ]
    found = label(table, {"a", "b"})
    pairs = [(pair["chosen"], pair["rejected"]) for pair in found["train_pairs"]]
    assert pairs == [("a1", "a0"), ("b0", "b2"), ("b3", "b4")]
    (cell,) = found["in_domain"]
    assert [one["text"] for one in cell["responses"]] == ["a4", "a5"]
    (unseen,) = found["prompt_ood"]
    assert [one["gold"] for one in unseen["responses"]] == [1.0, 0.5, 0.0, 0.1, 0.2, 0.3]
