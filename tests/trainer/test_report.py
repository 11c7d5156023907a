import base64
import re
from pathlib import Path

import pytest

from trainer.report import Report, curves
from trainer.report_parts import format_cell


def test_text_and_cells_are_escaped(tmp_path: Path) -> None:
    report = Report("a < b", "x & y")
    report.table(["name", "<i>"], [["<b>", 0.123456], ["none", None]])
    text = report.html()
    assert "<title>a &lt; b</title>" in text
    assert "x &amp; y" in text
    assert "<td>&lt;b&gt;</td><td>0.1235</td>" in text
    assert "<td>–</td>" in text


def test_figures_are_inlined_and_written_beside(tmp_path: Path) -> None:
    report = Report("plots")
    report.figure(curves({"bt": ([0, 1], [1.0, 0.5]), "bsr": ([0, 1], [1, 0.4])}, "step", "loss"))
    report.write(tmp_path / "out" / "report.html")
    page = (tmp_path / "out" / "report.html").read_text()
    inlined = re.search(r'src="data:image/png;base64,([^"]+)"', page)
    assert inlined is not None
    png = base64.b64decode(inlined.group(1))
    assert png.startswith(b"\x89PNG")
    assert (tmp_path / "out" / "report-1.png").read_bytes() == png


def test_markdown_has_its_plots_beside(tmp_path: Path) -> None:
    report = Report("Arms", "Compared.")
    report.heading("Levels")
    report.table(["arm", "tau"], [["a|b", 0.123456], ["c", None]], "By arm.")
    report.figure(curves({"bt": ([0, 1], [1.0, 0.5])}, "step", "loss"), "Loss.")
    report.figure(curves({"bt": ([0, 1], [0.0, 0.5])}, "step", "tau"), "Course.")
    report.write(tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text() == (
        "# Arms\n\nCompared.\n\n## Levels\n\n"
        "| arm | tau |\n| --- | ---: |\n| a\\|b | 0.1235 |\n| c | – |\n\nBy arm.\n\n"
        "![Loss.](README-1.png)\n\nLoss.\n\n![Course.](README-2.png)\n\nCourse.\n"
    )
    assert (tmp_path / "README-2.png").read_bytes().startswith(b"\x89PNG")


def test_curves_have_their_colours_and_bands() -> None:
    figure = curves(
        {"bt": ([0, 1], [1.0, 0.5]), "bsr": ([0, 1], [1.0, 0.4])},
        "step",
        "loss",
        colours={"bt": "#123456"},
        bands={"bt": ([0.9, 0.3], [1.1, 0.7])},
    )
    (axes,) = figure.axes
    assert axes.lines[0].get_color() == "#123456"
    (band,) = axes.collections
    assert band.get_datalim(axes.transData).bounds == pytest.approx((0, 0.3, 1, 0.8))


def test_format_cell() -> None:
    assert [format_cell(cell) for cell in ("x", 3, 0.00012345, None)] == [
        "x",
        "3",
        "0.0001234",
        "–",
    ]
