"""What a report consists of; every part knows its HTML and its Markdown."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

Cell = str | float | int | None


class Part(Protocol):
    """``picture``: the name of this part's picture, for those that have one."""

    def html(self) -> str: ...

    def markdown(self, picture: str) -> str: ...


@dataclass(frozen=True)
class Heading:
    content: str

    def html(self) -> str:
        return f"<h2>{html.escape(self.content)}</h2>"

    def markdown(self, picture: str) -> str:
        return f"## {self.content}"


@dataclass(frozen=True)
class Text:
    content: str

    def html(self) -> str:
        return f"<p>{html.escape(self.content)}</p>"

    def markdown(self, picture: str) -> str:
        return self.content


@dataclass(frozen=True)
class Sample:
    """Text shown exactly as it is."""

    content: str

    def html(self) -> str:
        return f"<pre>{html.escape(self.content)}</pre>"

    def markdown(self, picture: str) -> str:
        return "\n".join(f"    {line}" for line in self.content.splitlines())


@dataclass(frozen=True)
class Table:
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str

    def html(self) -> str:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.header)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(format_cell(cell))}</td>" for cell in row) + "</tr>"
            for row in self.rows
        )
        note = f'<p class="caption">{html.escape(self.caption)}</p>' if self.caption else ""
        return f"<table><tr>{head}</tr>{body}</table>{note}"

    def markdown(self, picture: str) -> str:
        aligned = ["---", *["---:"] * (len(self.header) - 1)]
        lines = [self.header, aligned, *([format_cell(cell) for cell in row] for row in self.rows)]
        table = "\n".join(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
        )
        return f"{table}\n\n{self.caption}" if self.caption else table


@dataclass(frozen=True)
class Picture:
    png: bytes
    caption: str

    def html(self) -> str:
        source = base64.b64encode(self.png).decode("ascii")
        return (
            f'<figure><img alt="{html.escape(self.caption, quote=True)}" '
            f'src="data:image/png;base64,{source}">'
            f"<figcaption>{html.escape(self.caption)}</figcaption></figure>"
        )

    def markdown(self, picture: str) -> str:
        return f"![{self.caption}]({picture})\n\n{self.caption}"


def format_cell(cell: Cell) -> str:
    """Numbers with four significant digits, a dash for what is missing."""
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:.4g}"
    return str(cell)
