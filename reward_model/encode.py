"""From what people send to token ids, in one place for training and serving."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from reward_model.chat_format import ChatFormat
from reward_model.contract import Contract
from reward_model.errors import ItemError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Truncation = Literal["error", "left", "right"]


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class TokenizedItem:
    """One sequence as the model reads it."""

    token_ids: tuple[int, ...]
    truncated: bool = False


class Encoder:
    """Tokenises every form of input by the rules of one contract. Safe to use from any thread.

    Args:
        tokenizer: with a chat template where messages are to be encoded.
        contract: BOS and EOS rule and maximum length.
        vocab_size: rows of the embedding matrix; ids at or above it are refused.
        chat_format: the template in which texts come, if not the model's own: they are read back
            into messages and rendered in the model's template.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        contract: Contract,
        vocab_size: int,
        chat_format: ChatFormat | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.contract = contract
        self.vocab_size = vocab_size
        self.chat_format = chat_format
        # A fast tokenizer's padding and truncation state is shared and not thread safe.
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled without its lock, to pass from a Ray replica to its ingress."""
        return Encoder, (self.tokenizer, self.contract, self.vocab_size, self.chat_format)

    def reading(self, chat_format: str | None) -> "Encoder":
        """The same encoder for texts in another chat format (see :meth:`ChatFormat.of`)."""
        form = None if chat_format is None else ChatFormat.of(chat_format)
        return Encoder(self.tokenizer, self.contract, self.vocab_size, form)

    def messages(
        self, messages: Sequence[Mapping[str, Any]], truncation: Truncation = "error"
    ) -> TokenizedItem:
        """A conversation that ends with the response to be scored, in the model's own template.

        Raises:
            ItemError: ``template_failed``, ``too_long`` or ``empty``.
        """
        return self._tokenize(self.render(messages), truncation)

    def prompt_response(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        response: str,
        truncation: Truncation = "error",
    ) -> TokenizedItem:
        """A response to a prompt; a prompt given as text is one turn of the user."""
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        return self.messages([*turns, {"role": "assistant", "content": response}], truncation)

    def text(self, text: str, truncation: Truncation = "error") -> TokenizedItem:
        """Text that already holds a template's special tokens: the model's, or ``chat_format``'s.

        Raises:
            ItemError: ``too_long`` or ``empty``; ``template_failed`` where ``chat_format`` is set
                and the text is not in it.
        """
        if self.chat_format is not None:
            return self.messages(self.chat_format.parse(text), truncation)
        return self._tokenize(text, truncation)

    def _tokenize(self, text: str, truncation: Truncation) -> TokenizedItem:
        with self._lock:
            ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return self._fit(self._delimit(list(ids)), truncation)

    def token_ids(self, ids: Sequence[int], truncation: Truncation = "error") -> TokenizedItem:
        """Token ids, taken verbatim.

        Raises:
            ItemError: ``invalid_token_id``, ``too_long`` or ``empty``.
        """
        if ids and not (min(ids) >= 0 and max(ids) < self.vocab_size):
            place, token = next(
                (place, token)
                for place, token in enumerate(ids)
                if not 0 <= token < self.vocab_size
            )
            raise ItemError(
                "invalid_token_id",
                f"token_ids[{place}] = {token} is outside 0..{self.vocab_size - 1}",
            )
        return self._fit(list(ids), truncation)

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The conversation as text in the model's chat template.

        Raises:
            ItemError: ``template_failed``, with the template's own reason.
        """
        try:
            rendered = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False
            )
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ItemError("template_failed", f"the chat template refused: {reason}") from None
        return str(rendered)

    @property
    def bos_id(self) -> int | None:
        """The token that may start a sequence: BOS, or CLS of an encoder."""
        bos: int | None = self.tokenizer.bos_token_id
        return self.tokenizer.cls_token_id if bos is None else bos

    @property
    def eos_id(self) -> int | None:
        """The token that may end a sequence: EOS, or SEP of an encoder."""
        eos: int | None = self.tokenizer.eos_token_id
        return self.tokenizer.sep_token_id if eos is None else eos

    def _delimit(self, ids: list[int]) -> list[int]:
        """Exactly one BOS or none, and exactly one EOS at the end where the contract wants it."""
        bos, eos = self.bos_id, self.eos_id
        start = 0
        while start < len(ids) and bos is not None and ids[start] == bos:
            start += 1
        ids = ids[start:]
        if self.contract.append_eos and eos is not None:
            ids = self._end_with(ids, eos)
        if self.contract.bos == "one" and bos is not None and ids:
            ids = [bos, *ids]
        return ids

    def _end_with(self, ids: list[int], eos: int) -> list[int]:
        """Templates end with white space after EOS; the head must read EOS itself."""
        end = len(ids)
        while end and ids[end - 1] != eos and not self._visible(ids[end - 1]):
            end -= 1
        if end and ids[end - 1] == eos:
            while end > 1 and ids[end - 2] == eos:
                end -= 1
            return ids[:end]
        return [*ids, eos] if ids else ids

    def _visible(self, token: int) -> bool:
        return bool(str(self.tokenizer.decode([token])).strip())

    def _fit(self, ids: list[int], truncation: Truncation) -> TokenizedItem:
        if not ids:
            raise ItemError("empty", "no tokens to score")
        limit = self.contract.max_length
        if len(ids) <= limit:
            return TokenizedItem(tuple(ids))
        if truncation == "error":
            raise ItemError(
                "too_long",
                f"{len(ids)} tokens, the model reads {limit}; shorten it or ask for truncation",
            )
        return TokenizedItem(tuple(self._cut(ids, limit, truncation)), truncated=True)

    def _cut(self, ids: list[int], limit: int, truncation: Truncation) -> list[int]:
        """Drop tokens on one side, keeping the BOS and EOS that the contract asks for."""
        head = ids[:1] if self.contract.bos == "one" and ids[0] == self.bos_id else []
        tail = ids[-1:] if self.contract.append_eos and ids[-1] == self.eos_id else []
        room = limit - len(head) - len(tail)
        if room < 1:
            return ids[-limit:] if truncation == "left" else ids[:limit]
        body = ids[len(head) : len(ids) - len(tail)]
        return [*head, *(body[-room:] if truncation == "left" else body[:room]), *tail]
