"""The town: what is true in the world of the demo, and what visitors ask about it.

A town has places, and each place has three things that are really there. A visitor asks about one
to three places and may ask to be brief. Because the truth is a table, the gold reward of any text
can be computed (:mod:`trainer.demo.gold`); because a small model has to learn that table from
few labelled pairs, a reward model learned from them is imperfect in realistic ways.
"""

import random
from dataclasses import dataclass
from itertools import combinations

PLACES: dict[str, tuple[str, ...]] = {
    "harbour": ("gulls", "ropes", "crates"),
    "mill": ("flour", "sacks", "grain"),
    "library": ("maps", "shelves", "scrolls"),
    "market": ("cheese", "apples", "stalls"),
    "forge": ("anvils", "sparks", "hammers"),
    "garden": ("roses", "bees", "hedges"),
    "tower": ("bells", "stairs", "ravens"),
    "bridge": ("arches", "planks", "lanterns"),
    "inn": ("stew", "beds", "fiddles"),
    "school": ("chalk", "desks", "pupils"),
    "chapel": ("candles", "hymns", "pews"),
    "bakery": ("loaves", "ovens", "honey"),
    "quarry": ("slabs", "chisels", "carts"),
    "stable": ("horses", "saddles", "hay"),
    "theatre": ("masks", "curtains", "actors"),
    "pond": ("ducks", "reeds", "frogs"),
}
PLACE_OF: dict[str, str] = {thing: place for place, things in PLACES.items() for thing in things}

WORDINGS = (
    "Tell me about {places}.",
    "What is there to see at {places}?",
    "Please describe {places}.",
    "I would like to visit {places}. What will I find?",
)
UNSEEN_WORDINGS = (
    "My cousin asks about {places}. What should I say?",
    "Give me a note on {places}.",
)
BRIEF = "Briefly: "


@dataclass(frozen=True)
class Question:
    """A visitor's prompt: the places asked about, in order, and whether to be brief."""

    text: str
    places: tuple[str, ...]
    brief: bool


def read_question(text: str) -> Question:
    """What a prompt asks for, read back from its text."""
    words = text.lower().replace(".", " ").replace("?", " ").replace(",", " ").split()
    places = tuple(dict.fromkeys(word for word in words if word in PLACES))
    return Question(text, places, text.startswith(BRIEF))


def draw_questions(seed: int, counts: dict[str, int]) -> dict[str, list[Question]]:
    """Sets of questions by name; the same arguments give the same questions.

    The sets whose names start with ``unseen`` have a set of places of their own for every question,
    which no other question asks about, and use wordings that the others never do. The others draw
    from all the remaining sets of places; within one of them no text occurs twice.
    """
    rng = random.Random(f"questions {seed}")
    left = [subset for size in (1, 2, 3) for subset in combinations(PLACES, size)]
    rng.shuffle(left)
    questions = {}
    for name, count in counts.items():
        if name.startswith("unseen"):
            drawn, left = left[:count], left[count:]
            wordings = WORDINGS + UNSEEN_WORDINGS
            questions[name] = [_question(subset, wordings, rng) for subset in drawn]
    for name, count in counts.items():
        if not name.startswith("unseen"):
            if not left:
                raise ValueError("the unseen questions leave no places to ask about")
            questions[name] = _distinct(left, count, rng)
    return questions


def _distinct(subsets: list[tuple[str, ...]], count: int, rng: random.Random) -> list[Question]:
    found: dict[str, Question] = {}
    while len(found) < count:
        question = _question(rng.choice(subsets), WORDINGS, rng)
        found.setdefault(question.text, question)
    return list(found.values())


def _question(subset: tuple[str, ...], wordings: tuple[str, ...], rng: random.Random) -> Question:
    places = rng.sample(subset, len(subset))
    named = [f"the {place}" for place in places]
    listed = " and ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)
    text = rng.choice(wordings).format(places=listed)
    brief = rng.random() < 0.3
    return Question(BRIEF + text if brief else text, tuple(places), brief)
