"""What every generator offers, and the gate that keeps two policies out of one sample."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from trainer.rloo.samples import Sample


@dataclass(frozen=True, slots=True)
class Sampling:
    """How responses are drawn: from softmax(logits / temperature), nothing cut off."""

    temperature: float
    max_new_tokens: int
    stop_token_ids: tuple[int, ...]


class Generator(Protocol):
    """Writes samples with the policy it was last given."""

    version: int

    async def generate(
        self, prompt_ids: Sequence[int], count: int, *, seed: int
    ) -> tuple[Sample, ...]:
        """``count`` responses to one prompt, all by one version of the policy."""

    async def publish(self, path: Path, version: int) -> None:
        """Take over the weights in ``path``; return once every sample to come uses them."""

    async def aclose(self) -> None: ...


def response_text(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], ended: bool) -> str:
    """The text of a response, without the stop token that ended it.

    Decoded here rather than taken from a server, whose streaming decoder holds back the bytes of a
    character that the last token left unfinished.
    """
    kept = list(token_ids[:-1] if ended else token_ids)
    text = tokenizer.decode(kept, skip_special_tokens=True)
    assert isinstance(text, str)
    return text


def sampling_seed(run_seed: int, *parts: int | str) -> int:
    """A seed of 63 bits for one group, so that a resumed run samples what it would have sampled."""
    text = "/".join(str(part) for part in (run_seed, *parts))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class Gate:
    """Lets requests through until it is closed; closing waits for those already inside.

    A sample is written inside the gate and weights change while it is closed, so the version read
    on the way in is the one of every token.
    """

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._inside = 0
        self._closed = False

    @property
    def inside(self) -> int:
        return self._inside

    @asynccontextmanager
    async def entered(self) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._closed)
            self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            async with self._changed:
                self._changed.notify_all()

    @asynccontextmanager
    async def closed(self) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._closed)
            self._closed = True
            try:
                await self._changed.wait_for(lambda: self._inside == 0)
            except BaseException:
                self._closed = False
                self._changed.notify_all()
                raise
        try:
            yield
        finally:
            self._closed = False
            async with self._changed:
                self._changed.notify_all()
