"""Base models held once in memory, however many models of this process stand on them.

Whoever scores gets a module tree of its own (:func:`share_weights`) whose parameters are the base's
very own. So adapters, attention and configuration of one model are out of reach of the others, and
no forward has to wait for another's.
"""

import copy
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from huggingface_hub import snapshot_download
from transformers import PreTrainedModel

from reward_model.checkpoint import open_classifier
from reward_model.contract import ADAPTER_CONFIG, digest_files
from reward_model.errors import CheckpointError
from reward_model.lora import Adapter


@dataclass(frozen=True, eq=False)
class Base:
    """``classifier`` is nobody's own and never run; ``missing`` weights in it are random."""

    path: Path
    classifier: PreTrainedModel
    files: Any
    """The digest of the files, as :mod:`hashlib` has it."""
    missing: tuple[str, ...]

    @property
    def version(self) -> str:
        return f"sha256:{self.files.hexdigest()}"


class Bases:
    """Opens base models; one that is in use already is handed out again, not loaded anew."""

    def __init__(self) -> None:
        self._held: WeakValueDictionary[tuple[object, ...], Base] = WeakValueDictionary()
        self._lock = threading.Lock()

    def open(
        self,
        path: Path,
        *,
        labels: int,
        dtype: torch.dtype,
        device: torch.device | str,
        trust_remote_code: bool,
    ) -> Base:
        """The base in ``path`` as it is there now, with whatever weights it lacks random.

        Raises:
            CheckpointError: not a checkpoint, or one that cannot be opened.
        """
        with self._lock:
            files = digest_files(path)
            key = (files.hexdigest(), labels, dtype, str(device), trust_remote_code)
            base = self._held.get(key)
            if base is None:
                model, missing = open_classifier(path, labels, dtype, trust_remote_code)
                base = Base(path, model.to(device).eval(), files, missing)
                self._held[key] = base
            return base


def share_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the module tree on the same parameters; buffers, which are small, are copied."""
    memo = {id(parameter): parameter for parameter in model.parameters()}
    return copy.deepcopy(model, memo)


def is_adapter(path: Path) -> bool:
    """Whether a directory holds an adapter, and no model that could stand alone."""
    return (path / ADAPTER_CONFIG).is_file() and not (path / "config.json").is_file()


def find_base(adapter: Adapter, named: str | Path | None) -> Path:
    """The directory of the adapter's base.

    ``named``, else what the adapter names: a directory (seen from here, or from the adapter's own
    directory), else a model of the Hugging Face hub that lies in the local cache.

    Raises:
        CheckpointError: there is none.
    """
    name = str(named or adapter.base_name)
    if not name:
        raise CheckpointError(f"{adapter.path / ADAPTER_CONFIG}: names no base; give `base`")
    for path in (Path(name), adapter.path / name):
        if path.is_dir():
            if is_adapter(path):
                raise CheckpointError(f"{adapter.path}: its base {path} is an adapter itself")
            return path
    revision = None if named else adapter.config.get("revision")
    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except Exception:  # not there, or not a name that the hub could have
        raise CheckpointError(
            f"{adapter.path}: its base {name} is no directory here and no model in the Hugging "
            f"Face cache; fetch it with `hf download {name}`, or say where it is with `base`"
        ) from None
