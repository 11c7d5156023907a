"""From a directory to the parts of a reward model: a checkpoint, or an adapter on a base."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reward_model.bases import Base, Bases, find_base, share_weights
from reward_model.checkpoint import (
    brings_own_code,
    infer_contract,
    load_classifier,
    load_tokenizer,
    require_trained,
    stored_labels,
)
from reward_model.contract import FILE_NAME, Contract
from reward_model.custom import is_custom
from reward_model.errors import CheckpointError
from reward_model.head import last_linear
from reward_model.lora import Adapter, LoraLinear


@dataclass(frozen=True)
class Options:
    """How weights are loaded, whichever they are."""

    dtype: torch.dtype
    device: torch.device | str
    trust_remote_code: bool


@dataclass(frozen=True, eq=False)
class Opened:
    """The parts. ``base`` is set where the weights are a shared base's."""

    classifier: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    contract: Contract
    base: Base | None = None
    adapter: Adapter | None = None


def open_checkpoint(path: Path, options: Options, bases: Bases | None) -> Opened:
    """A whole sequence classifier; with ``bases`` on weights that others may use too.

    Raises:
        CheckpointError: with the reason and the remedy.
    """
    base = None
    if bases is None or brings_own_code(path):
        classifier = load_classifier(path, options.dtype, options.trust_remote_code)
    else:
        base = _open_base(path, options, bases, stored_labels(path))
        require_trained(path, base.classifier, base.missing)
        classifier = share_weights(base.classifier)
    tokenizer = load_tokenizer(path, options.trust_remote_code)
    contract = _contract(path, classifier, tokenizer).verify(path, base.files if base else None)
    return Opened(classifier, tokenizer, contract, base)


def open_adapter(path: Path, options: Options, bases: Bases, named: str | Path | None) -> Opened:
    """An adapter on a base's weights; ``named`` is where that is, if not where the adapter says.

    Its tokenizer is its own where it brings one, else the base's. Its version covers the base.

    Raises:
        CheckpointError: with the reason and the remedy.
    """
    adapter = Adapter.read(path)
    base = _open_base(find_base(adapter, named), options, bases, labels=1)
    if is_custom(base.classifier):
        raise CheckpointError(f"{path}: its base {base.path} runs its own code; merge the adapter")
    _require_head(adapter, base)
    classifier = share_weights(base.classifier)
    adapter.put_into(classifier)
    if isinstance(last_linear(classifier), LoraLinear):
        raise CheckpointError(
            f"{path}: the score head itself has low-rank matrices; train it whole "
            "(modules_to_save), or merge the adapter with PEFT's merge_and_unload"
        )
    brings_tokenizer = any((path / f"tokenizer{end}.json").is_file() for end in ("", "_config"))
    tokenizer = load_tokenizer(path if brings_tokenizer else base.path, options.trust_remote_code)
    if tokenizer.pad_token_id is not None:
        classifier.config.pad_token_id = tokenizer.pad_token_id
    contract = _contract(path, classifier, tokenizer).verify(path).on_base(base.version)
    return Opened(classifier, tokenizer, contract, base, adapter)


def _open_base(path: Path, options: Options, bases: Bases, labels: int) -> Base:
    return bases.open(
        path,
        labels=labels,
        dtype=options.dtype,
        device=options.device,
        trust_remote_code=options.trust_remote_code,
    )


def _contract(
    path: Path, classifier: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Contract:
    own = (path / FILE_NAME).exists()
    return Contract.read(path) if own else infer_contract(classifier, tokenizer)


def _require_head(adapter: Adapter, base: Base) -> None:
    if lost := [name for name in base.missing if name not in adapter.whole]:
        raise CheckpointError(
            f"{adapter.path}: no trained reward head: {', '.join(lost[:3])} stands neither in the "
            f"adapter nor in its base {base.path}; train with modules_to_save: "
            f"[{lost[0].split('.')[0]}]"
        )
