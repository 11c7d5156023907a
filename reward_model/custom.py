"""Score heads that only a checkpoint's own code knows (ArmoRM's gated objectives, for one).

The classifier is run as it is, one sequence per forward, and its ``score``, else its ``logits``, is
the reward. Such code is loaded only where remote code was allowed.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from reward_model.errors import CheckpointError
from reward_model.packing import PackedBatch


def is_custom(classifier: PreTrainedModel) -> bool:
    """Whether the class came with the checkpoint instead of with transformers."""
    return type(classifier).__module__.partition(".")[0] == "transformers_modules"


def custom_rewards(classifier: PreTrainedModel, packed: PackedBatch) -> Tensor:
    """Rewards [N], float32.

    Raises:
        CheckpointError: the model does not answer one number per sequence.
    """
    scores: list[Tensor] = []
    for n in range(len(packed)):
        ids_L = packed.token_ids_T[packed.rows(n)]
        output = classifier(input_ids=ids_L[None], attention_mask=torch.ones_like(ids_L)[None])
        score = getattr(output, "score", None)
        score = output.logits if score is None else score
        if score.numel() != 1:
            raise CheckpointError(
                f"{type(classifier).__name__}: answers {score.numel()} numbers for a sequence, "
                "neither `score` nor `logits` is a single one"
            )
        scores.append(score.reshape(()).float())
    return torch.stack(scores)
