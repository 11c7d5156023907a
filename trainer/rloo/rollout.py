"""From positions to groups: generate, score, and hold what is ready for the learner.

How far generation may run ahead is bounded when a prompt is started: the groups that are under way
or ready are no more than the batches that may still be trained within the staleness limit. A group
that gets too old all the same (its scoring was delayed) is dropped and its prompt started again.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

from trainer.rloo.generation import Generator, sampling_seed
from trainer.rloo.insight import BusyClock
from trainer.rloo.reward import Rewards
from trainer.rloo.samples import Group, Prompt


class Rollouts:
    """Owns all prompts that are under way. :meth:`run` is its task; the learner calls the rest.

    Args:
        positions: still to be trained, in order.
        prompt_of: the prompt at a position.
        skip: told of a position that is given up, and why.
        per_step: groups of a full batch.
        staleness: how many versions older than the learner's a sample may be.
        batches: batches taken in all, those of earlier runs included.
        total_batches: no more are prepared.
    """

    def __init__(
        self,
        generator: Generator,
        rewards: Rewards,
        positions: Iterable[int],
        prompt_of: Callable[[int], Prompt],
        skip: Callable[[int, str], None],
        *,
        samples_per_prompt: int,
        per_step: int,
        staleness: int,
        batches: int,
        total_batches: int,
        attempts: int,
        seed: int,
    ) -> None:
        self.generating = BusyClock()
        self.scoring = BusyClock()
        self.dropped_stale = 0
        self.retried = 0
        self._generator = generator
        self._rewards = rewards
        self._pending = deque(positions)
        self._prompt_of = prompt_of
        self._skip = skip
        self._samples = samples_per_prompt
        self._per_step = per_step
        self._staleness = staleness
        self._batches = batches
        self._published = batches
        self._total_batches = total_batches
        self._attempts = attempts
        self._seed = seed
        self._under_way = 0
        self._ready: dict[int, Group] = {}
        self._changed = asyncio.Condition()

    async def run(self) -> None:
        """Start prompts as they may be started, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                async with self._changed:
                    await self._changed.wait_for(self._may_start)
                    self._under_way += 1
                    position = self._pending.popleft()
                tasks.create_task(self._roll_out(position))

    async def take(self, version: int) -> list[Group] | None:
        """The next batch for the learner at ``version``; smaller at the very end, then None."""
        async with self._changed:
            while True:
                await self._changed.wait_for(self._batch_or_end)
                self._drop_stale(version)
                if self._batch_or_end():
                    break
                self._changed.notify_all()
            if not self._ready:
                return None
            positions = sorted(self._ready)[: self._per_step]
            self._batches += 1
            self._changed.notify_all()
            return [self._ready.pop(position) for position in positions]

    async def publish(self, version: int) -> None:
        """Generators have ``version`` now."""
        async with self._changed:
            self._published = version
            self._changed.notify_all()

    def _may_start(self) -> bool:
        ahead = min(self._published + self._staleness + 1, self._total_batches) - self._batches
        return bool(self._pending) and self._under_way + len(self._ready) < ahead * self._per_step

    def _batch_or_end(self) -> bool:
        at_end = not self._pending and self._under_way == 0
        return len(self._ready) >= self._per_step or at_end

    def _drop_stale(self, version: int) -> None:
        oldest = version - self._staleness
        stale = [position for position, group in self._ready.items() if group.version < oldest]
        for position in sorted(stale, reverse=True):
            del self._ready[position]
            self._pending.appendleft(position)
        self.dropped_stale += len(stale)

    async def _roll_out(self, position: int) -> None:
        group = await self._attempt(position)
        async with self._changed:
            self._under_way -= 1
            if group is not None:
                self._ready[position] = group
            self._changed.notify_all()

    async def _attempt(self, position: int) -> Group | None:
        prompt = self._prompt_of(position)
        for attempt in range(self._attempts):
            seed = sampling_seed(self._seed, position, attempt)
            with self.generating.busy():
                samples = await self._generator.generate(prompt.token_ids, self._samples, seed=seed)
            with self.scoring.busy():
                scored = await self._rewards.score(prompt.messages, samples)
            group = Group(position, prompt, samples, scored.rewards, scored.measured)
            if sum(group.finished) >= 2:
                return group
            self.retried += 1
        self._skip(position, f"fewer than 2 samples with a reward in {self._attempts} attempts")
        return None
