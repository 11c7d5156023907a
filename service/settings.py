"""The settings of ``python -m service``."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode

from reward_model.chat_format import ChatFormat
from reward_model.command import Section, Settings
from reward_model.encode import Truncation
from reward_model.errors import UsageError

Dtype = Literal["float32", "bfloat16", "float16"]


def _known_format(source: str) -> str:
    try:
        ChatFormat.of(source)
    except UsageError as error:
        raise ValueError(str(error).removeprefix("chat_format: ")) from None
    return source


ChatFormatName = Annotated[str, AfterValidator(_known_format)]


class ModelSettings(Section):
    """One served model.

    ``NAME=DIR`` and ``DIR`` (named after the directory) are short forms, and so is
    ``NAME=DIR@BASE`` for an adapter.
    """

    path: Path
    """A checkpoint, or an adapter as PEFT writes it."""
    name: str
    base: str | None = None
    """What an adapter stands on, if it is not where the adapter says: a served model's name, a
    directory, or a model in the Hugging Face cache."""
    truncation: Truncation | None = None
    chat_format: ChatFormatName | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_short_form(cls, value: Any) -> Any:
        if isinstance(value, str):
            name, equals, path = value.partition("=")
            value = {"name": name, "path": path} if equals else {"path": value}
            path, at, base = value["path"].rpartition("@")
            if at and not Path(value["path"]).exists():
                value = {**value, "path": path, "base": base}
        if isinstance(value, dict) and "path" in value and not value.get("name"):
            value = {**value, "name": Path(value["path"]).resolve().name}
        return value


class ScoringSettings(Settings):
    """How scores are computed, whoever asks for them."""

    dtype: Dtype = "float32"
    device: str = "cpu"
    """A torch device: cpu, cuda, cuda:1."""
    trust_remote_code: bool = False
    """Run Python code that a checkpoint brings along."""
    share_prefix: bool = True
    """Compute a common token prefix once; changes no score."""
    max_batch_tokens: int | None = Field(None, ge=1)
    """Tokens computed in one forward; bounds the peak memory. By default 4,096 on a CPU (3,072
    in float32), which gains nothing by more, and 16,384 elsewhere. A CPU takes 2,048 while little
    waits."""
    cache_mib: int = Field(64, ge=0)
    """Memory for exact results of earlier requests, all models together; 0 turns it off."""
    chat_format: ChatFormatName | None = None
    """The chat template of the texts that clients send, if not the model's own: chatml, gemma,
    llama2, llama3, mistral, zephyr or a directory with the policy's tokenizer. Such texts are read
    back into messages and rendered in the model's template. A model may say otherwise."""
    log_format: Literal["plain", "json"] = "plain"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def batch_tokens(self) -> int:
        """``max_batch_tokens``, or what suits device and dtype."""
        # Imported here: the help text and a wrong flag should not wait for torch.
        import torch

        from reward_model.scoring import default_batch_tokens

        dtype = getattr(torch, self.dtype)
        return self.max_batch_tokens or default_batch_tokens(self.device, dtype)

    @property
    def quick_batch_tokens(self) -> int:
        """The budget of a batch while little waits; at most :attr:`batch_tokens`."""
        from reward_model.scoring import quick_batch_tokens

        return min(self.batch_tokens, quick_batch_tokens(self.device))


class ServiceSettings(ScoringSettings):
    """Serve reward models behind POST /score and the protocols of other trainers."""

    model: Annotated[tuple[ModelSettings, ...], NoDecode, Field(min_length=1)]
    """[NAME=]DIR of a reward model checkpoint or adapter ([NAME=]DIR@BASE where its base is not
    where it says); several may be given, the first is the default."""
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    """0 takes a free port and logs it."""
    metrics_port: int | None = Field(None, ge=0, le=65535)
    """Serve /metrics on a port of its own, without a key, instead of beside /score."""
    metrics_host: str = "127.0.0.1"
    """Where metrics_port listens: where Prometheus comes by, and clients do not."""
    max_queue_tokens: int = Field(262144, ge=1)
    """Tokens that may wait per model; beyond it requests are answered 429."""
    max_requests: int = Field(4096, ge=1)
    """Requests inside at once; beyond it they are answered 429 before their bodies are read."""
    max_items: int = Field(4096, ge=1)
    """Scores one request may ask for; an item gives one, or one per response."""
    max_body_mib: int = Field(16, ge=1)
    """Size of a request body."""
    timeout: float = Field(180.0, gt=0)
    """Seconds after which a request without timeout_ms of its own is answered 504."""
    drain_seconds: float = Field(60.0, ge=0)
    """How long SIGTERM waits for accepted requests."""
    truncation: Truncation = "error"
    """What the foreign protocols do with a too long item, unless the model says otherwise."""
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """Keys of which a request must carry one; none means no authentication."""
    telemetry: bool = False
    """Send one OpenTelemetry span per request to OTEL_EXPORTER_OTLP_ENDPOINT."""
    ssl_certfile: Path | None = None
    """Serve HTTPS with this certificate (PEM; its key may stand in the same file)."""
    ssl_keyfile: Path | None = None
    ray: bool = False
    """Run the same app and replicas on Ray Serve."""

    @field_validator("model", "api_keys", mode="before")
    @classmethod
    def _split_words(cls, value: Any) -> Any:
        """From the environment: words separated by spaces or commas."""
        return value.replace(",", " ").split() if isinstance(value, str) else value

    @field_validator("model")
    @classmethod
    def _check_names(cls, models: tuple[ModelSettings, ...]) -> tuple[ModelSettings, ...]:
        names = [model.name for model in models]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two models are named {name!r}; give them names: NAME=DIR")
        paths = {model.name: str(model.path) for model in models}
        return tuple(
            model.model_copy(update={"base": paths[model.base]}) if model.base in paths else model
            for model in models
        )
