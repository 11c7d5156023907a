import gzip
import json
from pathlib import Path

import pytest

from reward_model.errors import UsageError
from trainer.evaluation.rm_bench import domain, domain_of, read_items, summary

# Two items; the reward is all style (concise 0, plain 1, markdown 2) plus substance.
CHOSEN = [[0.5, 1.5, 2.5], [0.0, 1.0, 2.0]]
REJECTED = [[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]


def test_hand_worked() -> None:
    result = domain(CHOSEN, REJECTED)
    # Item 1 wins on and below the diagonal; item 2 ties on it, which is wrong.
    assert result.matrix == [[0.5, 0.0, 0.0], [1.0, 0.5, 0.0], [1.0, 1.0, 0.5]]
    assert (result.hard, result.normal, result.easy) == (0.0, 0.5, 1.0)


def test_the_matrix_is_chosen_by_rejected() -> None:
    result = domain([[1.0, 0.0, 0.0]], [[0.5, 0.5, 2.0]])
    assert result.matrix == [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert result.hard == pytest.approx(1 / 3)
    assert result.normal == pytest.approx(1 / 3)
    assert result.easy == 0.0


def test_overall_is_a_mean_over_domains_and_says_what_is_missing() -> None:
    chat = domain(CHOSEN, REJECTED)
    code = domain([[9.0, 9.0, 9.0]], [[0.0, 0.0, 0.0]])
    result = summary({"chat": chat, "code": code})
    assert (result.hard, result.normal, result.easy) == (0.5, 0.75, 1.0)
    assert result.overall == pytest.approx((0.5 + 1.0) / 2)
    assert result.missing == ["math", "safety"]


def test_safety_is_pooled() -> None:
    names = ["chat", "safety-refuse", "safety-response", "safety-refuse_filtered"]
    assert [domain_of(name) for name in names] == ["chat", "safety", "safety", "safety"]


def test_reading(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"], "id": 1}]
    path = tmp_path / "chat.json.gz"
    path.write_bytes(gzip.compress(json.dumps(rows).encode()))
    (item,) = read_items(path)
    assert (item.prompt, item.chosen, item.rejected) == ("p", ("a", "b", "c"), ("d", "e", "f"))
    path.write_bytes(gzip.compress(json.dumps([{"prompt": "p", "chosen": ["a"]}]).encode()))
    with pytest.raises(UsageError, match=r"chat\.json\.gz: not a list"):
        read_items(path)
    with pytest.raises(UsageError, match="no such file"):
        read_items(tmp_path / "absent.json")
