"""The JSON of ``POST /score``, in and out. An unknown key is an error; an item has one form."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

from reward_model.encode import Truncation
from reward_model.errors import ItemErrorType

MAX_TIMEOUT_MS = 3_600_000


def _encodable(text: str) -> str:
    """JSON can spell half of a surrogate pair, which is no character and has no UTF-8."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("not valid Unicode: half of a surrogate pair") from None
    return text


Unicode = Annotated[str, AfterValidator(_encodable)]


class Request(BaseModel):
    """Base of what clients of ``/score`` send: strict types, no unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ForeignRequest(BaseModel):
    """Base of what clients of other protocols send: keys we have no use for are ignored."""

    model_config = ConfigDict(extra="ignore")


class ForeignMessage(ForeignRequest):
    """One turn, of which we read role and content."""

    role: Unicode
    content: Unicode


class ChatMessage(Request):
    role: Unicode
    content: Unicode


class PromptItem(Request):
    """Responses to one prompt, rendered in the model's own chat template; one score each."""

    prompt: Unicode | Annotated[list[ChatMessage], Field(min_length=1)]
    responses: list[Unicode] = Field(min_length=1)


class MessagesItem(Request):
    """A conversation that ends with the response to be scored."""

    messages: list[ChatMessage] = Field(min_length=1)


class TextItem(Request):
    """Text that already holds the template's special tokens."""

    text: Unicode


class TokenIdsItem(Request):
    """Token ids, taken verbatim."""

    token_ids: list[int] = Field(min_length=1)


def _form(item: Any) -> str | None:
    """The form an item shows by its keys; a second form in it is then an unknown key."""
    if isinstance(item, BaseModel):
        return next(tag for tag, form in FORMS.items() if type(item) is form)
    if isinstance(item, dict):
        for key in FORMS:
            if key in item:
                return key
    return None


FORMS: dict[str, type[Request]] = {
    "prompt": PromptItem,
    "messages": MessagesItem,
    "text": TextItem,
    "token_ids": TokenIdsItem,
}

Item = Annotated[
    Annotated[PromptItem, Tag("prompt")]
    | Annotated[MessagesItem, Tag("messages")]
    | Annotated[TextItem, Tag("text")]
    | Annotated[TokenIdsItem, Tag("token_ids")],
    Discriminator(
        _form,
        custom_error_type="item_form",
        custom_error_message="an item has one of the forms prompt + responses, messages, text, "
        "token_ids",
    ),
]


class ScoreRequest(Request):
    """What ``POST /score`` reads."""

    model: str | None = Field(None, description="the default model otherwise")
    items: list[Item] = Field(min_length=1)
    truncation: Truncation = Field(
        "error", description="error: too long is an item error, never a silent cut"
    )
    normalize: bool = Field(
        False,
        description="(score − mean)/std of the checkpoint's own statistics, where it has them",
    )
    timeout_ms: int | None = Field(None, ge=1, le=MAX_TIMEOUT_MS)


class ItemErrorBody(BaseModel):
    """Why one score is null."""

    type: ItemErrorType
    message: str


class ItemResult(BaseModel):
    """Parallel lists, one entry per response; one entry for the other forms."""

    scores: list[float | None]
    errors: list[ItemErrorBody | None]
    num_tokens: list[int]
    truncated: list[bool]


class Usage(BaseModel):
    tokens: int = Field(description="the sequences' true lengths added up")
    computed_tokens: int = Field(description="what sharing and the cache leave of them")


class Timing(BaseModel):
    """Milliseconds."""

    queue: float
    tokenize: float
    forward: float


class ScoreResponse(BaseModel):
    """What ``POST /score`` answers. Scores are raw float32 logits, always finite."""

    id: str
    model: str
    model_version: str
    results: list[ItemResult]
    usage: Usage
    timing_ms: Timing


class ErrorDetail(BaseModel):
    type: str
    message: str
    details: dict[str, Any]


class ErrorBody(BaseModel):
    """Every error of every route."""

    error: ErrorDetail


class Health(BaseModel):
    status: Literal["alive", "broken"]


class ReadinessBody(BaseModel):
    ready: bool
    reason: str = Field(description="empty when ready")
    models: dict[str, dict[str, str | int | float | bool]]


class ModelBody(BaseModel):
    """One entry of ``/v1/models``."""

    id: str
    object: Literal["model"] = "model"
    owned_by: str = "sumzero"
    default: bool
    version: str = Field(description="sha256 over weights, tokenizer, configuration and contract")
    contract: dict[str, Any]
    details: dict[str, str | int | float | bool]


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelBody]
