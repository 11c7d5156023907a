"""A batch of groups cut into parts, each as much as one forward pass takes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.rloo.samples import Group


@dataclass(frozen=True, eq=False)
class Part:
    """The finished samples of some whole groups.

    ``rewards_GK`` and ``finished_GK`` are padded to the largest group; ``place_B`` is the place of
    each sample in their flattened form. An ``idle`` part is computed and counts for nothing: it
    keeps a rank in step that has fewer parts than another.
    """

    prompts: list[tuple[int, ...]]
    responses: list[tuple[int, ...]]
    sampler_R: Tensor
    rewards_GK: Tensor
    finished_GK: Tensor
    place_B: Tensor
    idle: bool = False


def cut(groups: Sequence[Group], max_tokens: int, device: torch.device) -> Iterator[Part]:
    """``groups`` cut so that each part's tokens fit one forward; a larger group goes alone."""
    gathered: list[Group] = []
    size = 0
    for group in groups:
        tokens = sum(len(group.prompt.token_ids) + len(s.token_ids) for s in group.samples)
        if gathered and size + tokens > max_tokens:
            yield part_of(gathered, device)
            gathered, size = [], 0
        gathered.append(group)
        size += tokens
    if gathered:
        yield part_of(gathered, device)


def part_of(groups: Sequence[Group], device: torch.device, *, idle: bool = False) -> Part:
    """All finished samples of ``groups``."""
    width = max(len(group.samples) for group in groups)
    rewards_GK = torch.zeros(len(groups), width)
    finished_GK = torch.zeros(len(groups), width, dtype=torch.bool)
    prompts, responses, places = [], [], []
    sampler: list[float] = []
    for row, group in enumerate(groups):
        for column, (sample, reward) in enumerate(zip(group.samples, group.rewards, strict=True)):
            if reward is None:
                continue
            rewards_GK[row, column], finished_GK[row, column] = reward, True
            places.append(row * width + column)
            prompts.append(group.prompt.token_ids)
            responses.append(sample.token_ids)
            sampler += sample.logprobs
    return Part(
        prompts,
        responses,
        torch.tensor(sampler, device=device),
        rewards_GK.to(device),
        finished_GK.to(device),
        torch.tensor(places, device=device),
        idle,
    )
