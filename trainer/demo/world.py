"""The town: what is true in the world of the demo, and what visitors ask about it.

A town has places, and each place has four things that are really there. A visitor asks about one
to three places and may ask to be brief. Because the truth is a table, the gold reward of any text
can be computed (:mod:`trainer.demo.gold`); because a small model has to learn that table from
few labelled pairs, a reward model learned from them is imperfect in realistic ways.
"""

import random
from dataclasses import dataclass
from itertools import combinations

PLACES: dict[str, tuple[str, ...]] = {
    "harbour": ("gulls", "ropes", "salt", "crates"),
    "mill": ("flour", "sacks", "wheels", "grain"),
    "library": ("maps", "shelves", "scrolls", "lamps"),
    "market": ("cheese", "apples", "stalls", "coins"),
    "forge": ("anvils", "sparks", "hammers", "iron"),
    "garden": ("roses", "bees", "hedges", "tulips"),
    "tower": ("bells", "stairs", "clocks", "ravens"),
    "bridge": ("arches", "planks", "tolls", "lanterns"),
    "inn": ("stew", "beds", "fiddles", "ale"),
    "school": ("chalk", "desks", "slates", "pupils"),
    "chapel": ("candles", "hymns", "pews", "saints"),
    "bakery": ("loaves", "ovens", "crusts", "honey"),
    "quarry": ("slabs", "chisels", "dust", "carts"),
    "stable": ("horses", "saddles", "hay", "oats"),
    "theatre": ("masks", "curtains", "actors", "plays"),
    "pond": ("ducks", "reeds", "frogs", "lilies"),
    "orchard": ("pears", "ladders", "blossoms", "cider"),
    "lighthouse": ("beams", "fog", "rocks", "keepers"),
    "workshop": ("saws", "nails", "glue", "benches"),
    "museum": ("bones", "vases", "statues", "portraits"),
    "vineyard": ("vines", "grapes", "barrels", "wine"),
    "station": ("trains", "tickets", "platforms", "whistles"),
    "hospital": ("nurses", "bandages", "wards", "herbs"),
    "laundry": ("soap", "tubs", "linen", "steam"),
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
    """Disjoint sets of questions, by name; no two sets share a set of places.

    Names starting with ``unseen`` also use wordings that the others never do. The same ``seed``
    and ``counts`` give the same questions.
    """
    rng = random.Random(f"questions {seed}")
    subsets = [subset for size in (1, 2, 3) for subset in combinations(PLACES, size)]
    rng.shuffle(subsets)
    if sum(counts.values()) > len(subsets):
        raise ValueError(f"{sum(counts.values())} questions asked for, {len(subsets)} exist")
    questions = {}
    for name, count in counts.items():
        wordings = WORDINGS + UNSEEN_WORDINGS if name.startswith("unseen") else WORDINGS
        drawn, subsets = subsets[:count], subsets[count:]
        questions[name] = [_question(subset, wordings, rng) for subset in drawn]
    return questions


def _question(subset: tuple[str, ...], wordings: tuple[str, ...], rng: random.Random) -> Question:
    places = rng.sample(subset, len(subset))
    named = [f"the {place}" for place in places]
    listed = " and ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)
    text = rng.choice(wordings).format(places=listed)
    brief = rng.random() < 0.3
    return Question(BRIEF + text if brief else text, tuple(places), brief)
