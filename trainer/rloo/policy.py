"""The policy: a causal language model whose log-probabilities come from the packed forward.

Prompt and responses of a group share their leading tiles, so a prompt is computed once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from reward_model.backbone import packed_hidden_states, use_packed_attention
from reward_model.errors import CheckpointError
from reward_model.linear import use_onednn
from reward_model.memory import keep_freed_memory
from reward_model.packing import pack

MAX_LOGITS = 1 << 26
"""Logits held at once; more rows than that are recomputed in the backward pass."""


@dataclass(frozen=True, eq=False)
class TokenLogprobs:
    """Response tokens of all samples laid end to end (suffix R).

    ``logprobs_R``: log softmax(logits / T) at the token, float32. ``entropy_R``: of that
    distribution in nats, without a gradient. ``sample_R``: the sample each token belongs to.
    """

    logprobs_R: Tensor
    entropy_R: Tensor
    sample_R: Tensor
    computed_tokens: int


class Policy(nn.Module):
    """A causal language model at a temperature; the learner and the reference are two of these."""

    def __init__(self, model: PreTrainedModel, temperature: float) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError("temperature must be positive")
        self.model = model
        self.temperature = temperature
        use_packed_attention(model)
        use_onednn(model)
        model.eval()  # no dropout: the sampler has none

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    def forward(
        self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
    ) -> TokenLogprobs:
        """Log-probabilities of ``responses[n]`` after ``prompts[n]``; both hold token ids."""
        sequences = [[*p, *r] for p, r in zip(prompts, responses, strict=True)]
        packed = pack(sequences, causal=True)
        rows = [
            packed.rows(n)[len(prompt) - 1 : len(sequences[n]) - 1]
            for n, prompt in enumerate(prompts)
        ]
        targets_R = torch.tensor([token for response in responses for token in response])
        sample_R = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(r) for r in rows]))
        hidden_TH = packed_hidden_states(self.model.base_model, packed.to(self.device))
        hidden_RH = hidden_TH[torch.cat(rows).to(self.device)]
        logprobs_R, entropy_R = self._read(hidden_RH, targets_R.to(self.device))
        return TokenLogprobs(
            logprobs_R, entropy_R, sample_R.to(self.device), packed.computed_tokens
        )

    def _read(self, hidden_RH: Tensor, targets_R: Tensor) -> tuple[Tensor, Tensor]:
        chunk = max(1, MAX_LOGITS // self.model.config.vocab_size)
        if len(hidden_RH) <= chunk:
            return self._read_chunk(hidden_RH, targets_R)
        parts = [
            checkpoint(self._read_chunk, hidden, targets, use_reentrant=False)
            for hidden, targets in zip(
                torch.split(hidden_RH, chunk), torch.split(targets_R, chunk), strict=True
            )
        ]
        logprobs, entropies = zip(*parts, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)

    def _read_chunk(self, hidden_RH: Tensor, targets_R: Tensor) -> tuple[Tensor, Tensor]:
        logits_RV: Tensor = self.model.get_output_embeddings()(hidden_RH).float()
        if cap := getattr(self.model.config, "final_logit_softcapping", None):
            logits_RV = cap * torch.tanh(logits_RV / cap)
        log_softmax_RV = torch.log_softmax(logits_RV / self.temperature, -1)
        logprobs_R = log_softmax_RV.gather(1, targets_R[:, None])[:, 0]
        with torch.no_grad():
            entropy_R = -(log_softmax_RV.exp() * log_softmax_RV).sum(-1)
        return logprobs_R, entropy_R


def load_policy(
    name: str, *, device: str = "cpu", trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in float32 with its own output matrix, and its tokenizer.

    Embeddings that serve as the output matrix too are copied into one of its own: vLLM's CPU build
    reloads tied weights wrongly, without a word.

    Raises:
        CheckpointError: it cannot be opened, or has weights missing.
    """
    if device == "cpu":
        keep_freed_memory()
    if (Path(name).exists() or name.startswith((".", "/"))) and not (
        Path(name) / "config.json"
    ).is_file():
        raise CheckpointError(f"policy: {name}: not a checkpoint directory (no config.json)")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
        model, info = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except Exception as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"policy: {name}: cannot be opened as a policy: {reason}") from error
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise CheckpointError(f"policy: {name}: not in the weights and would be random: {missing}")
    return untie(model).to(device), tokenizer


def untie(model: PreTrainedModel) -> PreTrainedModel:
    """Give ``model`` an output matrix of its own where it used its embeddings."""
    if getattr(model.config, "tie_word_embeddings", False):
        head = model.get_output_embeddings()
        head.weight = nn.Parameter(model.get_input_embeddings().weight.detach().clone())
        model.config.tie_word_embeddings = False
        model.all_tied_weights_keys = {}
    return model


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that end a response: those of the generation config, else the tokenizer's EOS."""
    config: GenerationConfig | None = getattr(model, "generation_config", None)
    ids = None if config is None else config.eos_token_id
    if ids is None:
        ids = tokenizer.eos_token_id
    if ids is None:
        raise CheckpointError("policy: neither generation config nor tokenizer names an EOS token")
    return tuple(ids) if isinstance(ids, list) else (int(ids),)
