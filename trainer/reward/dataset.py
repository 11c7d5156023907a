"""What a run trains and validates on."""

from dataclasses import dataclass

from trainer.data.preferences import PairSet
from trainer.reward.examples import ExampleSet
from trainer.reward.validation import ValidationSet


@dataclass(frozen=True, slots=True)
class Data:
    """The source as read, its examples, and the validation sets."""

    source: PairSet
    examples: ExampleSet
    validation: list[ValidationSet]
    use_margin: bool
