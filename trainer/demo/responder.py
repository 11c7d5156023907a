"""The response models of the demo: authors of differing knowledge, focus, length and manners."""

import random
from dataclasses import dataclass

from trainer.demo.world import PLACES, Question

OPENINGS = ("Gladly!", "Of course!", "With pleasure!")
CLOSINGS = ("I hope this helps.", "Please enjoy your visit.", "You are most welcome.")
FILLERS = (
    "There is much to see here.",
    "Many visitors come by.",
    "It is a fine place.",
    "The people are kind.",
)
CLAIMS = (
    "The {place} {emphasis}has {things}.",
    "The {place} is {emphasis}known for {things}.",
    "At the {place} you {emphasis}find {things}.",
    "Near the {place} there are {emphasis}{things}.",
)
EMPHASES = ("truly ", "really ", "indeed ", "surely ", "certainly ")


@dataclass(frozen=True)
class Responder:
    """One response model.

    Attributes:
        knowledge: probability that a thing it names is really at the place.
        focus: probability that a claim is about a place that was asked for.
        claims: fewest and most claims in a response.
        courtesy: probability of an opening, and again of a closing.
        emphasis: probability of an emphasis in a claim.
        filler: probability of a filler after a claim.
        repetition: probability that a claim is said again.
    """

    name: str
    knowledge: float
    focus: float
    claims: tuple[int, int]
    courtesy: float
    emphasis: float
    filler: float = 0.05
    repetition: float = 0.0

    def respond(self, question: Question, rng: random.Random) -> str:
        sentences: list[str] = []
        waiting = list(question.places)
        for _ in range(rng.randint(*self.claims)):
            place = self._place(question, waiting, rng)
            sentences.append(self._claim(place, rng))
            if rng.random() < self.repetition:
                sentences.append(sentences[-1])
            if rng.random() < self.filler:
                sentences.append(rng.choice(FILLERS))
        if rng.random() < self.courtesy:
            sentences.insert(0, rng.choice(OPENINGS))
        if rng.random() < self.courtesy:
            sentences.append(rng.choice(CLOSINGS))
        return " ".join(sentences)

    def _place(self, question: Question, waiting: list[str], rng: random.Random) -> str:
        if rng.random() >= self.focus:
            return rng.choice(list(PLACES))
        return waiting.pop(0) if waiting else rng.choice(question.places)

    def _claim(self, place: str, rng: random.Random) -> str:
        things = list(dict.fromkeys(self._thing(place, rng) for _ in range(rng.choice((1, 1, 2)))))
        emphasis = rng.choice(EMPHASES) if rng.random() < self.emphasis else ""
        return rng.choice(CLAIMS).format(
            place=place, things=" and ".join(things), emphasis=emphasis
        )

    def _thing(self, place: str, rng: random.Random) -> str:
        if rng.random() < self.knowledge:
            return rng.choice(PLACES[place])
        return rng.choice(PLACES[rng.choice(list(PLACES))])


# The author that the policy learns from: it knows the town, says little, and has few manners, so
# that a policy trained from it can gain by saying more, more kindly, before it says too much.
APPRENTICE = Responder("apprentice", 0.85, 0.95, (1, 3), courtesy=0.20, emphasis=0.12)

# Among the authors of the training pairs whoever knows more tends to write more, and more politely
# and emphatically. That is a shortcut which a reward model can take, though not all the way: a long
# answer by somebody who knows little is worse than a short one.
TRAIN_RESPONDERS = (
    Responder("visitor", 0.35, 0.60, (1, 3), courtesy=0.10, emphasis=0.05),
    Responder("porter", 0.50, 0.70, (1, 4), courtesy=0.20, emphasis=0.10),
    Responder("clerk", 0.65, 0.80, (1, 4), courtesy=0.30, emphasis=0.20),
    Responder("guide", 0.78, 0.88, (2, 4), courtesy=0.40, emphasis=0.25),
    Responder("warden", 0.88, 0.95, (2, 5), courtesy=0.50, emphasis=0.30),
    Responder("mayor", 0.95, 0.97, (2, 5), courtesy=0.60, emphasis=0.40),
)
# Among the unseen ones it does not hold.
UNSEEN_RESPONDERS = (
    Responder("telegraph", 0.97, 1.00, (1, 3), courtesy=0.00, emphasis=0.00, filler=0.0),
    Responder("scholar", 0.95, 0.95, (2, 5), courtesy=0.10, emphasis=0.05),
    Responder("rambler", 0.60, 0.70, (4, 7), courtesy=0.40, emphasis=0.30, filler=0.3),
    Responder("flatterer", 0.60, 0.85, (2, 5), courtesy=1.00, emphasis=0.90),
    Responder("parrot", 0.85, 0.95, (2, 4), courtesy=0.30, emphasis=0.20, repetition=0.5),
)
