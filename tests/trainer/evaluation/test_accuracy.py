import pytest

from trainer.evaluation.accuracy import accuracy, judge, length_balanced, longer_wins, pairs_by_gold


def test_hand_worked() -> None:
    pairs = [
        judge("a", ("xx", "x"), (1.0, 0.0)),
        judge("a", ("xx", "xx"), (0.5, 0.5)),
        judge("b", ("x", "xxxx"), (2.0, 3.0)),
        judge("c", ("xxxxxxxxxxx", "xxxxxxxxxx"), (2.0, -3.0)),
    ]
    result = accuracy(pairs, draws=200, seed=0)
    assert (result.pairs, result.prompts, result.ties) == (4, 3, 1)
    assert result.estimate.value == 0.5
    assert result.estimate.low is not None
    assert result.estimate.low < 0.5
    balanced = accuracy(length_balanced(pairs), draws=200, seed=0)
    assert (balanced.pairs, balanced.estimate.value) == (2, 0.5)
    assert longer_wins(pairs) == 0.5


def test_nothing_to_judge_is_no_number() -> None:
    result = accuracy([], draws=10, seed=0)
    assert (result.pairs, result.estimate.value, result.estimate.low) == (0, None, None)
    assert longer_wins([]) is None


def test_an_empty_response_is_never_length_balanced() -> None:
    assert length_balanced([judge("a", ("x", ""), (1.0, 0.0))]) == []


@pytest.mark.parametrize(
    ("gold", "gap", "expected"),
    [
        ([1.0, 3.0, 2.0], 0.0, [(1, 0), (2, 0), (1, 2)]),
        ([1.0, 3.0, 2.0], 1.5, [(1, 0)]),
        ([1.0, 1.0], 0.0, []),
    ],
)
def test_pairs_by_gold(gold: list[float], gap: float, expected: list[tuple[int, int]]) -> None:
    assert list(pairs_by_gold(gold, gap)) == expected
