"""Portions of lines on their way to scores, a few at a time, written in their order."""

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import Any

from service.offline.lines import Line
from service.offline.output import Output
from service.offline.progress import Progress
from service.offline.settings import OfflineSettings
from service.routes.score import results
from service.scoring import Answer, ScoringPath

PORTION_CHARACTERS, PORTION_LINES = 1 << 18, 256
"""What is asked for at once, at most; three portions are in flight, so the replica never waits."""
NEVER = 10.0**9


class Work:
    """Keeps portions of lines in flight and writes them in their order."""

    def __init__(self, settings: OfflineSettings, path: ScoringPath, name: str) -> None:
        self._settings = settings
        self._path = path
        self._model = path.scorer.models()[name]
        self._stats = self._model.contract.stats if settings.normalize else None

    async def score(self, lines: Iterator[Line], output: Output, progress: Progress) -> None:
        waiting: deque[tuple[list[Line], asyncio.Task[Answer]]] = deque()
        try:
            for portion in _portions(lines):
                waiting.append((portion, asyncio.create_task(self._ask(portion))))
                # One computes, one waits behind it, one is being tokenized.
                if len(waiting) == 3:
                    await self._write(*waiting.popleft(), output, progress)
            while waiting:
                await self._write(*waiting.popleft(), output, progress)
        finally:
            for _, task in waiting:
                task.cancel()

    async def _ask(self, portion: list[Line]) -> Answer:
        inputs = [one for line in portion for one in line.inputs]
        return await self._path.score(
            self._model, inputs, truncation=self._settings.truncation, timeout=NEVER
        )

    async def _write(
        self,
        portion: list[Line],
        task: asyncio.Task[Answer],
        output: Output,
        progress: Progress,
    ) -> None:
        answer = await task
        found = results(answer, [len(line.inputs) for line in portion], self._stats)
        output.append(
            [
                result if line.id is None else {"id": line.id, **result}
                for line, result in zip(portion, found, strict=True)
            ]
        )
        progress.add(len(portion), sum(answer.num_tokens))


def _portions(lines: Iterator[Line]) -> Iterator[list[Line]]:
    """Runs of lines of about a portion's size, by characters: tokens are counted later."""
    portion: list[Line] = []
    size = 0
    for line in lines:
        portion.append(line)
        size += sum(_characters(one) for one in line.inputs)
        if len(portion) == PORTION_LINES or size > PORTION_CHARACTERS:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


def _characters(one: Any) -> int:
    return sum(len(getattr(one, name, "")) for name in ("response", "text", "token_ids"))
