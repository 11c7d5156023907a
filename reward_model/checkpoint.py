"""Hugging Face checkpoints in and out: loading with every doubt refused, and fresh heads."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from reward_model.backbone import is_causal, position_offset
from reward_model.contract import Contract
from reward_model.custom import is_custom
from reward_model.errors import CheckpointError
from reward_model.head import find_last_linear, last_linear

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}"
    "{{ sep_token or eos_token }}{% endfor %}"
)
"""For backbones without a chat template: each turn is ``role: content`` and a separator."""

FALLBACK_MAX_LENGTH = 2048


def load_classifier(path: Path, dtype: torch.dtype, trust_remote_code: bool) -> PreTrainedModel:
    """Load a sequence classifier with one label and no missing weight.

    Raises:
        CheckpointError: with the reason and the remedy.
    """
    model, missing = open_classifier(path, stored_labels(path), dtype, trust_remote_code)
    require_trained(path, model, missing)
    return model


def open_classifier(
    path: Path, labels: int, dtype: torch.dtype, trust_remote_code: bool
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Open any checkpoint as a sequence classifier; also the names of weights that it lacks.

    Raises:
        CheckpointError: with the reason and the remedy.
    """
    if not any(path.glob("*.safetensors")):
        raise CheckpointError(f"{path}: no *.safetensors file; other weight formats are not read")
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path,
            dtype=dtype,
            num_labels=labels,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
        )
    except Exception as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: cannot be opened as a reward model: {reason}") from error
    return model, tuple(sorted(info["missing_keys"]))


def require_trained(path: Path, model: PreTrainedModel, missing: Sequence[str]) -> None:
    """Refuse what is no whole reward model.

    Raises:
        CheckpointError: weights would be random, not one label, or a head that is not understood.
    """
    own_code = _stored_config(path).get("auto_map", {}).get("AutoModelForSequenceClassification")
    if missing and own_code and not is_custom(model):
        raise CheckpointError(
            f"{path}: its score head is code of its own ({own_code}), which is run only where "
            "trust_remote_code is set; read it first"
        )
    if missing:
        raise CheckpointError(
            f"{path}: no trained reward head: {', '.join(missing[:3])} not in the weights and "
            "would be random; train one with `python -m trainer.reward` or give another checkpoint"
        )
    if is_custom(model) and find_last_linear(model) is None:
        return
    if model.config.num_labels != 1:
        raise CheckpointError(
            f"{path}: {model.config.num_labels} labels; a reward model has exactly one"
        )
    last_linear(model)


def stored_labels(path: Path) -> int:
    """How many labels the configuration tells of; one where it tells nothing."""
    config = _stored_config(path)
    return config.get("num_labels") or len(config.get("id2label", ())) or 1


def brings_own_code(path: Path) -> bool:
    """Whether the checkpoint has Python code of its own, run only where that is allowed."""
    return bool(_stored_config(path).get("auto_map"))


def load_tokenizer(path: Path, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Load the tokenizer beside the weights.

    Raises:
        CheckpointError: there is none.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except Exception as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: no usable tokenizer: {reason}") from error
    return tokenizer


def infer_contract(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Contract:
    """The contract of a foreign checkpoint: what its own tokenizer and architecture do."""
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
    probe: list[int] = tokenizer("a")["input_ids"]
    if tokenizer.chat_template:
        starts_with_bos = _template_starts_with(tokenizer, bos)
    else:
        starts_with_bos = bos is not None and probe[:1] == [bos]
    causal = _reads_last(model)
    return Contract(
        template_source="inferred",
        bos="one" if starts_with_bos else "none",
        append_eos=not causal and tokenizer.sep_token_id is not None,
        pooling="last" if causal else _encoder_pooling(model.config),
        max_length=_max_length(model, tokenizer),
    )


def new_classifier(
    name_or_path: str,
    *,
    seed: int,
    dtype: torch.dtype,
    chat_template: str | None,
    max_length: int | None,
    trust_remote_code: bool,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Contract]:
    """A backbone's weights under a fresh head. See ``RewardModel.from_backbone``.

    Raises:
        CheckpointError: the backbone cannot be opened, or its own weights are incomplete.
    """
    try:
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
        _remove_dropout(config)
        config.num_labels = 1
        config.problem_type = "regression"
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model, info = AutoModelForSequenceClassification.from_pretrained(
                name_or_path,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                trust_remote_code=trust_remote_code,
            )
    except Exception as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{name_or_path}: cannot be opened as a backbone: {reason}"
        ) from error
    linear = last_linear(model)
    _refuse_missing(name_or_path, model, info["missing_keys"])
    _init_head(linear, seed)
    _complete_tokenizer(model, tokenizer, chat_template)
    causal = _reads_last(model)
    limit = _max_length(model, tokenizer)
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
    contract = Contract(
        bos="one" if not causal or _template_starts_with(tokenizer, bos) else "none",
        append_eos=True,
        pooling="last" if causal else _encoder_pooling(config),
        max_length=min(max_length or limit, limit),
        base_model=name_or_path,
    )
    return model, tokenizer, contract


def _stored_config(path: Path) -> dict[str, Any]:
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path}: not a checkpoint directory (no config.json)")
    try:
        config: dict[str, Any] = json.loads((path / "config.json").read_text())
    except ValueError as error:
        raise CheckpointError(f"{path / 'config.json'}: not valid JSON: {error}") from None
    return config


def _reads_last(model: PreTrainedModel) -> bool:
    """Whether the score is read at the last token: decoders, whose head transformers calls score.

    What attention says of itself comes first; a few old architectures say nothing.
    """
    told = is_causal(model)
    return hasattr(model, "score") if told is None else told


def _encoder_pooling(config: PretrainedConfig) -> Any:
    return "mean" if getattr(config, "classifier_pooling", "cls") == "mean" else "cls"


def _max_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    positions = getattr(model.config, "max_position_embeddings", None) or FALLBACK_MAX_LENGTH
    positions -= position_offset(getattr(model, model.base_model_prefix, model))
    return int(min(positions, tokenizer.model_max_length))


def _template_starts_with(tokenizer: PreTrainedTokenizerBase, bos: int | None) -> bool:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:
        return False
    return bos is not None and tokenizer(text, add_special_tokens=False)["input_ids"][:1] == [bos]


def _remove_dropout(config: PretrainedConfig) -> None:
    for name, value in config.to_dict().items():
        if isinstance(value, float) and ("dropout" in name or name.endswith("pdrop")):
            setattr(config, name, 0.0)
    if hasattr(config, "classifier_dropout") and config.classifier_dropout is None:
        config.classifier_dropout = 0.0


def _refuse_missing(name: str, model: PreTrainedModel, missing: Any) -> None:
    prefix = f"{model.base_model_prefix}."
    lost = [key for key in missing if key.startswith(prefix) and ".pooler." not in key]
    if lost:
        raise CheckpointError(f"{name}: the backbone lacks weights: {', '.join(sorted(lost)[:3])}")


def _init_head(linear: nn.Linear, seed: int) -> None:
    """W_p ~ N(0, 1/(H+1)): ‖W_p‖ starts near 1."""
    generator = torch.Generator().manual_seed(seed)
    hidden = linear.weight.shape[1]
    weight = torch.randn(linear.weight.shape, generator=generator) / (hidden + 1) ** 0.5
    with torch.no_grad():
        linear.weight.copy_(weight)
        if linear.bias is not None:
            linear.bias.zero_().requires_grad_(False)


def _complete_tokenizer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chat_template: str | None
) -> None:
    """A chat template where there is none, and a pad token that is not EOS."""
    tokenizer.chat_template = chat_template or tokenizer.chat_template or PLAIN_TEMPLATE
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": "<|sumzero_pad|>"})
        if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(len(tokenizer))
    model.config.pad_token_id = tokenizer.pad_token_id
