"""What passes between the stages of a run."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from reward_model.encode import Message


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation to answer, as messages and as the token ids the policy continues."""

    index: int
    messages: tuple[Message, ...]
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One response. ``logprobs``: what the sampler reported, one per token, at temperature T.

    ``ended``: the last token is a stop token; otherwise the response was cut at its maximum length.
    ``version``: of the policy that wrote it, at its first token.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    ended: bool
    version: int
    text: str


@dataclass(frozen=True, slots=True)
class Group:
    """The k samples of one prompt with their rewards; None where a reward could not be had.

    ``position`` is the place in the sequence of all prompts of all epochs. ``measured`` holds the
    raw scores of each reward source and of gold, by name.
    """

    position: int
    prompt: Prompt
    samples: tuple[Sample, ...]
    rewards: tuple[float | None, ...]
    measured: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)

    @property
    def finished(self) -> tuple[bool, ...]:
        return tuple(reward is not None for reward in self.rewards)

    @property
    def version(self) -> int:
        """Of the oldest sample."""
        return min(sample.version for sample in self.samples)
