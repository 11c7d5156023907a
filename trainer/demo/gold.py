"""The gold reward of the demo: a formula over what a response says and how it says it."""

import math
import re
from dataclasses import dataclass

from trainer.demo.world import PLACE_OF, PLACES, Question, read_question

EMPHASIS = frozenset({"truly", "really", "indeed", "surely", "certainly"})
COURTESIES = (
    "gladly",
    "of course",
    "with pleasure",
    "i hope this helps",
    "please enjoy your visit",
    "you are most welcome",
)
LIMIT_WORDS, BRIEF_LIMIT_WORDS = 40, 24


@dataclass(frozen=True)
class Reading:
    """What the gold reward sees in a response; see :func:`gold`."""

    asked: int
    covered: int
    true_things: int
    false_things: int
    off_topic: int
    courtesies: int
    emphases: int
    repeats: int
    words: int
    limit: int


def gold(prompt: str, response: str) -> float:
    r"""The true reward of a response, in points; between about -20 and 6.3.

    With c of a asked places covered (a sentence names the place and something really there),
    t true things beyond the first of each place, f false things, o sentences about places that
    were not asked for, k courtesies, e words of emphasis, d repeats, n words, and a limit of L =
    40 words (24 when the prompt asks to be brief):

        gold = 3 c/a + 1.5 (1 - exp(-t/2)) - 0.8 f - 0.4 o
               + s(k; 0.5, 0.7) + s(e; 0.3, 0.4) - 0.9 d - 0.12 max(0, n - L) - [n < 4]
        s(x; up, down) = up min(x, 2) - down max(0, x - 2)

    So courtesy, emphasis and length please up to a point and annoy beyond it. Reward models see
    few responses beyond those points, which is what lets a policy over-optimise them.
    """
    reading = read(read_question(prompt), response)
    extra = max(0, reading.true_things - reading.covered)
    return (
        3.0 * reading.covered / max(1, reading.asked)
        + 1.5 * (1.0 - math.exp(-extra / 2.0))
        - 0.8 * reading.false_things
        - 0.4 * reading.off_topic
        + _up_to_two(reading.courtesies, 0.5, 0.7)
        + _up_to_two(reading.emphases, 0.3, 0.4)
        - 0.9 * reading.repeats
        - 0.12 * max(0, reading.words - reading.limit)
        - (1.0 if reading.words < 4 else 0.0)
    )


def read(question: Question, response: str) -> Reading:
    """Count what :func:`gold` needs. Any text can be read; unknown words only count as words."""
    covered: set[str] = set()
    told: set[tuple[str, str]] = set()
    seen: set[str] = set()
    false_things = off_topic = repeats = 0
    for sentence in _sentences(response):
        repeats += sentence in seen
        seen.add(sentence)
        words = sentence.split()
        places = {word for word in words if word in PLACES}
        asked = places.intersection(question.places)
        off_topic += bool(places) and not asked
        for thing in (word for word in words if word in PLACE_OF):
            place = PLACE_OF[thing]
            if place not in places:
                false_things += bool(places)
            elif place in asked:
                covered.add(place)
                told.add((place, thing))
    every_word = _sentence_text(response).split()
    return Reading(
        asked=len(question.places),
        covered=len(covered),
        true_things=len(told),
        false_things=false_things,
        off_topic=off_topic,
        courtesies=_count_courtesies(response),
        emphases=sum(word in EMPHASIS for word in every_word),
        repeats=repeats,
        words=len(every_word),
        limit=BRIEF_LIMIT_WORDS if question.brief else LIMIT_WORDS,
    )


def _up_to_two(count: int, up: float, down: float) -> float:
    return up * min(count, 2) - down * max(0, count - 2)


def _sentences(text: str) -> list[str]:
    parts = (_sentence_text(part) for part in re.split(r"[.!?]+", text))
    return [part for part in parts if part]


def _sentence_text(text: str) -> str:
    return " ".join(re.findall(r"[a-z']+", text.lower()))


def _count_courtesies(text: str) -> int:
    return sum(_sentence_text(text).count(courtesy) for courtesy in COURTESIES)
