"""The reward model: a plain Hugging Face sequence classifier behind one packed forward."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reward_model import atomic, head
from reward_model.backbone import (
    packed_hidden_states,
    packing_obstacle,
    use_own_attention,
    use_packed_attention,
)
from reward_model.bases import Base, Bases, is_adapter
from reward_model.checkpoint import new_classifier
from reward_model.contract import Contract
from reward_model.custom import custom_rewards, is_custom
from reward_model.device import as_device
from reward_model.encode import Encoder
from reward_model.errors import CheckpointError
from reward_model.kernels.use import use_kernels
from reward_model.linear import use_onednn
from reward_model.lora import Adapter
from reward_model.memory import keep_freed_memory
from reward_model.numerics import fix_cuda_sums
from reward_model.opening import Options, open_adapter, open_checkpoint
from reward_model.packing import PackedBatch, pack
from reward_model.parity import agrees
from reward_model.row_cuts import use_row_cuts


@dataclass(frozen=True, eq=False)
class RewardOutput:
    """``rewards_N``: raw scores, float32. ``hidden_NH``: h, what entered the last linear layer.

    The hidden states of a head that only its own code knows are not known: [N, 0].
    """

    rewards_N: Tensor
    hidden_NH: Tensor


class RewardModel(nn.Module):
    """r(x, y) = W_pᵀ h(x, y) for every sequence of a packed batch.

    Training, evaluation and serving all go through :meth:`forward`. ``obstacle`` says why a model
    gets one sequence per forward; None: batches are packed and prefixes shared. ``base`` holds the
    weights where other models may use them too, ``adapter`` is what this one puts on them.
    """

    base: Base | None = None
    adapter: Adapter | None = None

    def __init__(
        self,
        classifier: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        contract: Contract,
    ) -> None:
        super().__init__()
        if classifier.device.type == "cpu":
            keep_freed_memory()
        self.classifier = classifier
        self.tokenizer = tokenizer
        self.contract = contract
        self.encoder = Encoder(
            tokenizer, contract, classifier.get_input_embeddings().weight.shape[0]
        )
        self.custom = is_custom(classifier) and head.find_last_linear(classifier) is None
        if not self.custom:  # code of its own is computed as it would compute itself
            use_onednn(classifier)
            use_row_cuts(classifier)
            use_kernels(classifier)
        self.obstacle = (
            "the score head is the checkpoint's own code"
            if self.custom
            else packing_obstacle(classifier)
        )
        if self.obstacle is None:
            use_packed_attention(classifier)
        else:
            use_own_attention(classifier)

    @classmethod
    def load(
        cls,
        directory: str | Path,
        *,
        dtype: str | torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        trust_remote_code: bool = False,
        bases: Bases | None = None,
        base: str | Path | None = None,
    ) -> "RewardModel":
        """Load a checkpoint for scoring, ours or any sequence classifier with one label, or an
        adapter as PEFT writes it.

        Without ``reward_model.json`` the contract is inferred from tokenizer and configuration.

        Args:
            bases: models loaded through the same one share the weights that are equal.
            base: an adapter's base, if it is not where the adapter says.

        Raises:
            CheckpointError: not a checkpoint, more than one label, weights missing that would be
                freshly initialised (the head among them), files changed since they were saved, or
                an adapter without its base.
            UsageError: ``device`` is not there.
        """
        device = as_device(device)
        if device.type == "cuda":
            fix_cuda_sums()
        path, options = Path(directory), Options(as_dtype(dtype), device, trust_remote_code)
        if is_adapter(path):
            opened = open_adapter(path, options, bases or Bases(), base)
        elif base is not None:
            raise CheckpointError(f"{path}: is no adapter, so it has no use for the base {base}")
        else:
            opened = open_checkpoint(path, options, bases)
        model = cls(opened.classifier, opened.tokenizer, opened.contract).to(device).eval()
        model.base, model.adapter = opened.base, opened.adapter
        return model._check_parity(path)

    @classmethod
    def from_backbone(
        cls,
        name_or_directory: str | Path,
        *,
        seed: int = 0,
        dtype: str | torch.dtype = torch.float32,
        chat_template: str | None = None,
        max_length: int | None = None,
        trust_remote_code: bool = False,
    ) -> "RewardModel":
        """A backbone with a fresh head, for training.

        W_p ~ N(0, 1/(H+1)), seeded; no dropout anywhere; a bias is 0 and frozen; the tokenizer
        gets a chat template and a pad token other than EOS where it lacks them.

        Args:
            chat_template: Jinja text to use instead of the tokenizer's own.
            max_length: tokens per sequence; by default what the backbone can read.
        """
        classifier, tokenizer, contract = new_classifier(
            str(name_or_directory),
            seed=seed,
            dtype=as_dtype(dtype),
            chat_template=chat_template,
            max_length=max_length,
            trust_remote_code=trust_remote_code,
        )
        return cls(classifier, tokenizer, contract)._check_parity(name_or_directory)

    @property
    def causal(self) -> bool:
        """Whether a token sees only what precedes it, so that prefixes can be shared."""
        return self.contract.pooling in ("last", "last_non_pad")

    @property
    def head(self) -> nn.Linear:
        """W_p, and a bias where a foreign model has one."""
        return head.last_linear(self.classifier)

    @property
    def backbone(self) -> nn.Module:
        """The transformers model underneath the head."""
        backbone: nn.Module = getattr(self.classifier, self.classifier.base_model_prefix)
        return backbone

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def model_version(self) -> str | None:
        return self.contract.model_version

    def pack(self, sequences: Sequence[Sequence[int]], *, share_prefix: bool = True) -> PackedBatch:
        """Pack token ids for :meth:`forward`, on the model's device."""
        share_prefix = share_prefix and self.obstacle is None
        return pack(sequences, causal=self.causal, share_prefix=share_prefix).to(self.device)

    def forward(self, packed: PackedBatch) -> RewardOutput:
        """Rewards [N], float32, and the hidden states [N, H] they were read from."""
        if self.custom:
            rewards_N = custom_rewards(self.classifier, packed)
            return RewardOutput(rewards_N, rewards_N.new_empty(len(packed), 0))
        pad_id = self.classifier.config.pad_token_id
        rows_N = head.pooled_rows(packed, self.contract.pooling, pad_id)
        hidden_NH = packed_hidden_states(self.backbone, packed, rows_N)
        if rows_N is None:
            hidden_NH = head.mean_pool(hidden_NH, packed)
        if (function := head.transform(self.classifier)) is not None:
            hidden_NH = head.apply_transform(function, hidden_NH)
        return RewardOutput(head.rewards(hidden_NH, self.head), hidden_NH)

    def _check_parity(self, name: str | Path) -> "RewardModel":
        """Take the model's own attention where ours does not compute the same; refuse the rest."""
        if self.custom or agrees(self):
            return self
        if self.obstacle is None:
            self.obstacle = "packed attention does not compute what this model's own does"
            use_own_attention(self.classifier)
            if agrees(self):
                return self
        raise CheckpointError(
            f"{name}: how {type(self.classifier).__name__} makes a score of its hidden states is "
            "not understood here: its own forward gives another one"
        )

    def save(
        self,
        directory: str | Path,
        contract: Contract | None = None,
        *,
        weights: dict[str, Tensor] | None = None,
    ) -> Contract:
        """Write a checkpoint that transformers, vLLM and the service open; atomic.

        Args:
            weights: of the classifier, where they are not simply its own: merged, or gathered.

        Returns:
            The contract as written, with the new ``model_version``.
        """
        with atomic.directory(Path(directory)) as temporary:
            self.classifier.save_pretrained(temporary, state_dict=weights)
            self.tokenizer.save_pretrained(temporary)
            return (contract or self.contract).write(temporary)


def as_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """``"bfloat16"`` as :data:`torch.bfloat16`."""
    return dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype)
