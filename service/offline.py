"""``python -m service.offline IN.jsonl OUT.jsonl --model DIR``: score a file as the server would.

Each line of the input is an item of ``POST /score`` (``prompt`` and ``responses``, ``messages``,
``text`` or ``token_ids``), with an ``id`` of yours if you like. Each line of the output is the
result of the same line: ``scores``, ``errors``, ``num_tokens``, ``truncated``, and the ``id``.
The items go the server's own way to their scores, so they get the same bits.

Results gather in ``OUT.jsonl.part``; the same command goes on after the last whole line of it, and
it becomes ``OUT.jsonl`` when all are there.
"""

import asyncio
import hashlib
import json
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError
from pydantic_settings import CliPositionalArg
from tqdm import tqdm

from reward_model.command import run
from reward_model.encode import Truncation
from reward_model.errors import UsageError
from service.answers import explain_schema
from service.embedded import EmbeddedScorer
from service.inputs import Input
from service.logs import FIELDS, configure_logging
from service.metrics import Metrics
from service.routes.score import inputs_of, results
from service.schemas import Item
from service.scoring import Answer, ScoringPath
from service.settings import ModelSettings, ScoringSettings, ServiceSettings

logger = logging.getLogger("service.offline")

PORTION_CHARACTERS, PORTION_LINES = 1 << 18, 256
"""What is asked for at once, at most; three portions are in flight, so the replica never waits."""
REPORT_SECONDS = 30.0
"""How often a log says how far it is; a terminal sees it all the time."""
NEVER = 10.0**9

_ITEM: TypeAdapter[Item] = TypeAdapter(Item)


class OfflineSettings(ScoringSettings):
    """Score the items of a JSON Lines file with one reward model."""

    input: CliPositionalArg[Path]
    """JSON Lines, one item of POST /score per line."""
    output: CliPositionalArg[Path]
    """JSON Lines, one result per line of the input."""
    model: str
    """[NAME=]DIR of a reward model checkpoint."""
    truncation: Truncation = "error"
    """What happens to an item that is too long: an error in its place, or cut on one side."""
    normalize: bool = False
    """(score − mean)/std of the checkpoint's own statistics, where it has them."""

    @property
    def served(self) -> ModelSettings:
        return ModelSettings.model_validate(self.model)

    def as_service(self) -> ServiceSettings:
        """The server's settings that give the same scores, with room for every line in flight."""
        shared = {name: getattr(self, name) for name in ScoringSettings.model_fields}
        return ServiceSettings(model=(self.served,), max_queue_tokens=2**62, **shared)


@dataclass(frozen=True, slots=True)
class Line:
    """One item of the input."""

    id: str | int | float | None
    inputs: list[Input]


@dataclass(frozen=True, slots=True)
class Source:
    """The input file: its lines, and what tells it from another."""

    path: Path
    lines: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "Source":
        """Read the file once, so that a bad line is heard of before anything is computed.

        Raises:
            UsageError: no such file, or a line that is no item; names it.
        """
        content, lines = hashlib.sha256(), 0
        try:
            with path.open("rb") as file:
                for lines, text in enumerate(file, 1):
                    content.update(text)
                    _line(f"{path}:{lines}", text)
        except OSError as error:
            raise UsageError(f"input {path}: {error.strerror}") from None
        return cls(path, lines, content.hexdigest())

    def read(self, skip: int) -> Iterator[Line]:
        """The items after the first ``skip`` lines."""
        with self.path.open("rb") as file:
            for number, text in enumerate(file, 1):
                if number > skip:
                    yield _line(f"{self.path}:{number}", text)


def _line(place: str, text: bytes) -> Line:
    try:
        content = json.loads(text)
    except ValueError:
        raise UsageError(f"{place}: not a line of JSON in UTF-8") from None
    if not isinstance(content, dict):
        raise UsageError(f"{place}: expected a JSON object, an item of POST /score")
    own = content.pop("id", None)
    if own is not None and not isinstance(own, str | int | float):
        raise UsageError(f"{place}: id: expected text or a number")
    try:
        return Line(own, list(inputs_of(_ITEM.validate_python(content))))
    except ValidationError as error:
        raise UsageError(f"{place}: {explain_schema(error.errors()).message}") from None


class Output:
    """``OUT.jsonl.part`` while it grows. ``done`` counts its whole lines.

    The first line tells what the results belong to; it stays behind when the file is finished.
    """

    def __init__(self, path: Path, belongs_to: dict[str, Any]) -> None:
        self.path = path
        self.part = path.with_name(f"{path.name}.part")
        self._head = json.dumps(belongs_to).encode() + b"\n"
        self.done = 0

    @contextmanager
    def open(self) -> Iterator["Output"]:
        """Go on where an earlier run stopped.

        Raises:
            UsageError: the results so far are of another input, model or setting.
        """
        self.part.parent.mkdir(parents=True, exist_ok=True)
        self.part.touch()
        with self.part.open("r+b") as file:
            self._file = file
            self._recover(file)
            yield self

    def append(self, lines: list[dict[str, Any]]) -> None:
        self._file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        self._file.flush()
        self.done += len(lines)

    def finish(self) -> None:
        """Leave the results alone under their final name."""
        whole = self.path.with_name(f".{self.path.name}.whole")
        self._file.seek(len(self._head))
        with whole.open("wb") as file:
            while block := self._file.read(1 << 20):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        os.replace(whole, self.path)
        self.part.unlink()

    def _recover(self, file: BufferedRandom) -> None:
        head = file.readline()
        if not head.endswith(b"\n"):  # new, or killed at its very first line
            file.seek(0)
            file.truncate()
            file.write(self._head)
            return
        if head != self._head:
            raise UsageError(
                f"{self.part}: results of another input, model or setting; remove it to start anew"
            )
        end = file.tell()
        for line in file:
            if not line.endswith(b"\n"):
                break
            end += len(line)
            self.done += 1
        file.seek(end)
        file.truncate()


def score_file(settings: OfflineSettings) -> None:
    """Score every line of the input; see the module.

    Raises:
        UsageError: a file or line that cannot be read, results that exist already.
    """
    configure_logging(settings.log_format, settings.log_level)
    if settings.output.exists():
        raise UsageError(f"output {settings.output}: exists; remove it or choose another name")
    source = Source.of(settings.input)
    asyncio.run(_score_file(settings, source))


async def _score_file(settings: OfflineSettings, source: Source) -> None:
    service = settings.as_service()
    metrics = Metrics()
    scorer = EmbeddedScorer(service, metrics)
    await scorer.load()
    model = scorer.models()[settings.served.name]
    if settings.normalize and model.contract.stats is None:
        raise UsageError(f"normalize: model {model.name} has no statistics")
    belongs_to = {
        "input_sha256": source.sha256,
        "model_version": model.version,
        "dtype": model.details["dtype"],
        "truncation": settings.truncation,
        "normalize": settings.normalize,
        "chat_format": model.details["chat_format"],
    }
    work = _Work(settings, ScoringPath(scorer, metrics), model.name)
    try:
        with Output(settings.output, belongs_to).open() as output:
            with _Progress(source.lines, output.done) as progress:
                await work.score(source.read(output.done), output, progress)
            output.finish()
    finally:
        await scorer.close(drain=False)
    fields = {"lines": source.lines, "output": str(settings.output), "version": model.version}
    logger.info("done", extra={FIELDS: fields})


class _Work:
    """Keeps portions of lines in flight and writes them in their order."""

    def __init__(self, settings: OfflineSettings, path: ScoringPath, name: str) -> None:
        self._settings = settings
        self._path = path
        self._model = path.scorer.models()[name]
        self._stats = self._model.contract.stats if settings.normalize else None

    async def score(self, lines: Iterator[Line], output: Output, progress: "_Progress") -> None:
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
        progress: "_Progress",
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


class _Progress:
    """A bar on a terminal, a line now and then in a log."""

    def __init__(self, lines: int, done: int) -> None:
        self._bar = tqdm(
            total=lines, initial=done, unit="line", disable=not sys.stderr.isatty(), leave=False
        )
        self._lines, self._done, self._tokens = lines, done, 0
        self._started = self._said = time.monotonic()

    def __enter__(self) -> "_Progress":
        if self._done:
            self._say("going on")
        return self

    def __exit__(self, *_: object) -> Literal[False]:
        self._bar.close()
        return False

    def add(self, lines: int, tokens: int) -> None:
        self._done += lines
        self._tokens += tokens
        self._bar.set_postfix_str(f"{self._rate():,.0f} tokens/s", refresh=False)
        self._bar.update(lines)
        if self._bar.disable and time.monotonic() - self._said > REPORT_SECONDS:
            self._say("scoring")

    def _say(self, message: str) -> None:
        self._said = time.monotonic()
        fields = {"lines": self._done, "of": self._lines, "tokens_per_second": round(self._rate())}
        logger.info(message, extra={FIELDS: fields})

    def _rate(self) -> float:
        return self._tokens / max(time.monotonic() - self._started, 1e-6)


def main() -> int:
    return run(OfflineSettings, score_file, prog="python -m service.offline")


if __name__ == "__main__":
    sys.exit(main())
