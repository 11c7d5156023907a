"""The contract: what must be equal in training and serving for a score to mean the same.

Written beside the weights as ``reward_model.json``; :func:`json_schema` is its JSON Schema.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reward_model import atomic
from reward_model.errors import CheckpointError

FILE_NAME = "reward_model.json"
ADAPTER_CONFIG = "adapter_config.json"
FORMAT_VERSION = 1

HASHED_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "chat_template.jinja",
    ADAPTER_CONFIG,
)
"""Files that decide a score besides the weights (``*.safetensors``) and the contract itself."""

WHERE_THE_BASE_IS = ("base_model_name_or_path", "revision")
"""Keys of an adapter's configuration that may change when files move; they decide no score."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class LossSpec(_Part):
    """The objective the model was trained with."""

    name: str
    lambda_: float | None = Field(default=None, alias="lambda")
    scope: Literal["global", "device", "micro"] | None = None
    scale: Literal["paper", "reference"] | None = None


class RewardStats(_Part):
    """Mean and standard deviation of the raw scores of ``n`` responses of ``split``."""

    mean: float
    std: float = Field(gt=0)
    n: int = Field(gt=0)
    split: str


class Contract(_Part):
    """Everything beside the weights that a score depends on, and where the model came from."""

    format_version: Literal[1] = 1
    template_source: Literal["tokenizer", "inferred"] = Field(
        default="tokenizer",
        description="inferred: nobody wrote this contract, it was read off the checkpoint",
    )
    bos: Literal["one", "none"] = Field(description="how many BOS (or CLS) tokens start a sequence")
    append_eos: bool = Field(
        description="true: a sequence ends with exactly one EOS (or SEP) and nothing after it"
    )
    pooling: Literal["last", "last_non_pad", "cls", "mean"]
    max_length: int = Field(gt=0, description="tokens, everything counted")
    head_dtype: Literal["float32"] = "float32"
    loss: LossSpec | None = None
    stats: RewardStats | None = None
    base_model: str | None = None
    created_with: str | None = None
    model_version: str | None = Field(
        default=None, description="sha256 over weights, tokenizer, configuration and this contract"
    )

    @classmethod
    def read(cls, directory: Path) -> "Contract":
        """Read ``reward_model.json`` of a checkpoint directory.

        Raises:
            CheckpointError: the file is missing, or is not a contract.
        """
        path = directory / FILE_NAME
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise CheckpointError(f"{path}: no such file") from None
        except ValidationError as error:
            detail = error.errors()[0]
            key = ".".join(str(part) for part in detail["loc"])
            raise CheckpointError(f"{path}: {key}: {detail['msg']}") from None

    def write(self, directory: Path) -> "Contract":
        """Write the contract with the version of what stands in ``directory``; return it."""
        versioned = self.model_copy(update={"model_version": self.compute_version(directory)})
        text = versioned.model_dump_json(indent=2, by_alias=True)
        atomic.write_text(directory / FILE_NAME, text + "\n")
        return versioned

    def compute_version(self, directory: Path, files: "hashlib._Hash | None" = None) -> str:
        """sha256 over the named files in a fixed order, and over this contract without version.

        Args:
            files: the digest of the files, where it is known.
        """
        digest = digest_files(directory) if files is None else files.copy()
        own = self.model_dump(mode="json", by_alias=True, exclude={"model_version"})
        digest.update(json.dumps(own, sort_keys=True).encode())
        return f"sha256:{digest.hexdigest()}"

    def verify(self, directory: Path, files: "hashlib._Hash | None" = None) -> "Contract":
        """The contract with its version filled in. ``files``: see :meth:`compute_version`.

        Raises:
            CheckpointError: the files or the contract are not those that were saved together.
        """
        version = self.compute_version(directory, files)
        if self.model_version not in (None, version):
            raise CheckpointError(
                f"{directory}: files have changed since {FILE_NAME} was written (model_version "
                "does not match); restore them, or remove model_version from it to accept them"
            )
        return self.model_copy(update={"model_version": version})

    def on_base(self, base_version: str) -> "Contract":
        """The contract of an adapter: its version covers the base too."""
        parts = f"{base_version}\0{self.model_version}".encode()
        version = f"sha256:{hashlib.sha256(parts).hexdigest()}"
        return self.model_copy(update={"model_version": version})


def digest_files(directory: Path) -> "hashlib._Hash":
    """sha256 over the files of a checkpoint, without its contract."""
    digest = hashlib.sha256()
    weights = sorted(path.name for path in directory.glob("*.safetensors"))
    for name in (*HASHED_FILES, *weights):
        path = directory / name
        if name == ADAPTER_CONFIG and path.is_file():
            digest.update(_adapter_config(path))
        elif path.is_file():
            digest.update(f"{name}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while chunk := file.read(1 << 22):
                    digest.update(chunk)
    return digest


def _adapter_config(path: Path) -> bytes:
    try:
        config = json.loads(path.read_text())
        kept = {key: value for key, value in config.items() if key not in WHERE_THE_BASE_IS}
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: not an adapter configuration: {error}") from None
    return json.dumps(kept, sort_keys=True).encode()


def json_schema() -> dict[str, Any]:
    """JSON Schema of ``reward_model.json``."""
    return Contract.model_json_schema(by_alias=True)
