"""Does the one forward path compute what transformers computes for this very checkpoint?

Heads and attention of an architecture that was never tried here can differ in ways that give
plausible numbers. So every checkpoint is compared once, on one sequence, when it is opened.
"""

import random
from typing import TYPE_CHECKING

import torch

from reward_model.backbone import use_own_attention, use_packed_attention

if TYPE_CHECKING:
    from reward_model.model import RewardModel

LENGTH = 48
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Of the size of the terms that make up a score; half precision gets 0.05."""


@torch.inference_mode()
def agrees(model: "RewardModel") -> bool:
    """Whether a score equals the classifier's own at batch size 1, up to rounding."""
    training = model.training
    model.eval()
    try:
        ids = _sequence(model)
        output = model(model.pack([ids]))
        own = _own_score(model, ids)
    finally:
        model.train(training)
    weight_H = model.head.weight[0].float()
    size = float((output.hidden_NH[0].float() * weight_H).abs().sum())
    tolerance = TOLERANCE.get(model.dtype, 0.05) * max(size, 1e-6)
    return abs(float(output.rewards_N[0]) - own) <= tolerance


def _own_score(model: "RewardModel", ids: list[int]) -> float:
    packed = model.obstacle is None
    if packed:
        use_own_attention(model.classifier)
    try:
        inputs = torch.tensor([ids], device=model.device)
        return float(model.classifier(input_ids=inputs).logits[0, 0])
    finally:
        if packed:
            use_packed_attention(model.classifier)


def _sequence(model: "RewardModel") -> list[int]:
    """Tokens none of which means anything to pooling."""
    rng = random.Random(0)
    special = {model.classifier.config.pad_token_id, *model.tokenizer.all_special_ids}
    ordinary = [token for token in range(model.encoder.vocab_size) if token not in special]
    return rng.choices(ordinary, k=min(LENGTH, model.contract.max_length))
