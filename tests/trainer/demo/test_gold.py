import math

import pytest

from trainer.demo.gold import gold

PROMPT = "Tell me about the mill and the pond."


def extra(things: int) -> float:
    return 1.5 * (1 - math.exp(-things / 2))


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("The mill has flour.", 1.5),
        ("The mill has flour. The pond has ducks.", 3.0),
        ("The mill has flour and sacks. The pond has ducks.", 3.0 + extra(1)),
        ("The mill has ducks.", -0.8),
        ("The inn has stew here.", -0.4),
        ("The inn has flour here.", -0.4 - 0.8),
        ("Gladly! The mill has flour. I hope this helps.", 1.5 + 1.0),
        ("Gladly! Of course! With pleasure! The mill has flour.", 1.5 + 1.0 - 0.7),
        ("The mill truly, really has flour.", 1.5 + 0.6),
        ("The mill truly, really, indeed, surely has flour.", 1.5 + 0.6 - 0.8),
        ("The mill has flour. The mill has flour. The mill has flour!", 1.5 - 1.8),
        ("", -1.0),
        ("flour flour flour", -1.0),
        ("word " * 50, -0.12 * 10),
    ],
)
def test_hand_worked(response: str, expected: float) -> None:
    assert gold(PROMPT, response) == pytest.approx(expected)


def test_asking_to_be_brief_lowers_the_limit() -> None:
    response = "word " * 30
    assert gold(PROMPT, response) == 0.0
    assert gold("Briefly: " + PROMPT, response) == pytest.approx(-0.12 * 6)


def test_gold_depends_on_the_prompt() -> None:
    response = "The mill has flour."
    assert gold("Tell me about the mill.", response) > gold("Tell me about the inn.", response)
