"""What the protocols hand to the scoring path, and its way to token ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reward_model.encode import Encoder, TokenizedItem, Truncation
from reward_model.errors import ItemError
from service.scorer import ItemFailure

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class PromptResponse:
    """One response to a prompt: text of the user, or a conversation so far."""

    prompt: str | Messages
    response: str

    def encode(self, encoder: Encoder, truncation: Truncation) -> TokenizedItem:
        return encoder.prompt_response(self.prompt, self.response, truncation)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages of which the last is the response to be scored."""

    messages: Messages

    def encode(self, encoder: Encoder, truncation: Truncation) -> TokenizedItem:
        return encoder.messages(self.messages, truncation)


@dataclass(frozen=True, slots=True)
class Text:
    """Text that already holds the template's special tokens."""

    text: str

    def encode(self, encoder: Encoder, truncation: Truncation) -> TokenizedItem:
        return encoder.text(self.text, truncation)


@dataclass(frozen=True, slots=True)
class TokenIds:
    """Token ids, taken verbatim."""

    token_ids: Sequence[int]

    def encode(self, encoder: Encoder, truncation: Truncation) -> TokenizedItem:
        return encoder.token_ids(self.token_ids, truncation)


Input = PromptResponse | Conversation | Text | TokenIds


def encode_all(
    inputs: Sequence[Input], encoder: Encoder, truncation: Truncation
) -> list[TokenizedItem | ItemFailure]:
    """Tokenize each input; one that cannot be is a failure of its own."""
    return [_encode(item, encoder, truncation) for item in inputs]


def _encode(item: Input, encoder: Encoder, truncation: Truncation) -> TokenizedItem | ItemFailure:
    try:
        return item.encode(encoder, truncation)
    except ItemError as error:
        return ItemFailure(error.type, error.message)
