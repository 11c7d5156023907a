"""What a run trains and validates on."""

from dataclasses import dataclass

from reward_model.errors import UsageError
from reward_model.model import RewardModel
from trainer.data.preferences import PairSet, read_pairs
from trainer.reward.config import USES_MARGIN, RewardSettings
from trainer.reward.examples import ExampleSet, tokenise_pairs
from trainer.reward.validation import ValidationSet, load_validation_sets


@dataclass(frozen=True, slots=True)
class Data:
    """The source as read, its examples, and the validation sets."""

    source: PairSet
    examples: ExampleSet
    validation: list[ValidationSet]
    use_margin: bool


def load_data(settings: RewardSettings, model: RewardModel) -> Data:
    """Read and tokenise the train pairs and the validation sets.

    Raises:
        UsageError: nothing that can be trained on, or a margin column the loss has no place for.
    """
    options = settings.data
    source = read_pairs(
        options.train,
        split=options.split,
        limit=options.limit,
        max_fault_share=options.max_fault_share,
    )
    use_margin = options.use_margin and source.has_margin
    if use_margin and settings.loss.name not in USES_MARGIN:
        raise UsageError(
            f"{options.train} has a margin column, which {settings.loss.name} has no place for: "
            "set data.use_margin to false"
        )
    examples = tokenise_pairs(
        source.pairs, model.encoder, causal=model.causal, too_long=options.too_long
    )
    if not examples.examples:
        raise UsageError(
            f"{options.train}: none of {len(source.pairs)} pairs fits into "
            f"{model.contract.max_length} tokens ({dict(examples.lost)}): raise data.max_length"
        )
    validation = load_validation_sets(
        options, model.encoder, causal=model.causal, seed=settings.seed
    )
    return Data(source, examples, validation, use_margin)
