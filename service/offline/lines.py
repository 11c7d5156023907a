"""The input: one item of ``POST /score`` per line."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from reward_model.errors import UsageError
from service.answers import explain_schema
from service.inputs import Input
from service.routes.score import inputs_of
from service.schemas import Item

_ITEM: TypeAdapter[Item] = TypeAdapter(Item)


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
