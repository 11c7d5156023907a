"""A short report: HTML in one file, readable without a network, or Markdown with its plots beside.

>>> report = Report("Reward model", "What the run did.")
>>> report.table(["cell", "accuracy"], [["in-domain", 0.85]], "Pair accuracy.")
>>> report.figure(curves({"bt": (steps, losses)}, "step", "loss"), "Training loss.")
>>> report.write(Path("report.html"))
"""

import html
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from reward_model.atomic import write_bytes, write_text
from trainer.report_parts import Cell, Heading, Part, Picture, Sample, Table, Text

Curve = tuple[Sequence[float], Sequence[float]]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #1c2430; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid #d8dee6; text-align: right; }
th:first-child, td:first-child { text-align: left; } th { border-bottom: 2px solid #8a94a3; }
figure { margin: 1rem 0; } img { max-width: 100%; } figcaption, .caption { color: #586273; }
pre { background: #f4f6f8; padding: .6rem .8rem; white-space: pre-wrap; }
"""


class Report:
    """Collects sections in the order they are added."""

    def __init__(self, title: str, introduction: str = "") -> None:
        self.title = title
        self._parts: list[Part] = []
        if introduction:
            self.text(introduction)

    def heading(self, text: str) -> None:
        self._parts.append(Heading(text))

    def text(self, text: str) -> None:
        self._parts.append(Text(text))

    def sample(self, text: str) -> None:
        """A block of text shown exactly as it is."""
        self._parts.append(Sample(text))

    def table(
        self, header: Sequence[str], rows: Sequence[Sequence[Cell]], caption: str = ""
    ) -> None:
        self._parts.append(Table(header, rows, caption))

    def figure(self, figure: Figure, caption: str = "") -> None:
        self._parts.append(Picture(figure_png(figure), caption))

    def html(self) -> str:
        title = html.escape(self.title)
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            f"<style>{STYLE}</style></head><body><h1>{title}</h1>\n"
            + "\n".join(part.html() for part in self._parts)
            + "\n</body></html>\n"
        )

    def write(self, path: Path) -> None:
        """Write HTML, or Markdown if ``path`` ends in .md; each plot beside it as
        ``<stem>-<number>.png``."""
        stem = re.sub(r"[^\w.-]", "_", path.stem)
        markdown = [f"# {self.title}"]
        number = 1
        for part in self._parts:
            name = f"{stem}-{number}.png"
            markdown.append(part.markdown(name))
            if isinstance(part, Picture):
                write_bytes(path.parent / name, part.png)
                number += 1
        write_text(path, "\n\n".join(markdown) + "\n" if path.suffix == ".md" else self.html())


def figure_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def curves(
    series: Mapping[str, Curve],
    x_label: str,
    y_label: str,
    *,
    title: str = "",
    markers: bool = False,
    colours: Mapping[str, str] | None = None,
    bands: Mapping[str, Curve] | None = None,
) -> Figure:
    """One set of axes with a line per entry of ``series``: name -> (x, y).

    Args:
        bands: name -> (lowest y, highest y) at each x, shaded.
    """
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, (x, y) in series.items():
        (line,) = axes.plot(
            x,
            y,
            label=name,
            color=(colours or {}).get(name),
            linewidth=1.6,
            marker="o" if markers else None,
            markersize=3,
        )
        if bands and name in bands:
            axes.fill_between(x, *bands[name], color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel=x_label, ylabel=y_label, title=title)
    axes.grid(alpha=0.3)
    if len(series) > 1:
        axes.legend(frameon=False)
    return figure
