"""Every command that the pages and recipes show is one that the commands' settings accept."""

import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest

from reward_model.command import read_settings

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / "README.md", ROOT / "docker" / "README.md"),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "deploy").rglob("*.md")),
]
RECIPES = sorted((ROOT / "deploy" / "recipes").rglob("*.yaml"))


def shown(path: Path) -> Iterator[str]:
    """The lines of a page's ``bash`` blocks, or of the comment that a recipe begins with."""
    text = path.read_text()
    if path.suffix == ".md":
        text = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
    else:
        text = "\n".join(line[1:] for line in text.splitlines() if line.startswith("#"))
    yield from text.replace("\\\n", " ").splitlines()


def commands(path: Path) -> Iterator[list[str]]:
    """Module and arguments of the commands that are written out; ``…`` stands for more of them."""
    for line in shown(path):
        if match := re.match(r"\s*(?:\S*/)?python -m ((?:trainer|service)\b.*)", line):
            words = shlex.split(match[1].split(" > ")[0], comments=True)
            if "…" not in words:
                yield [word for word in words if word != "&"]


def found() -> list[object]:
    return [
        pytest.param(words, id=f"{path.relative_to(ROOT)} {words[0]} {number}")
        for path in [*PAGES, *RECIPES]
        for number, words in enumerate(commands(path))
    ]


def module_of(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"{name}.__main__")
    except ModuleNotFoundError:
        return importlib.import_module(name)


@pytest.mark.parametrize("words", found())
def test_its_settings_accept_it(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def read_only(settings_type: type, main: object, *, prog: str) -> int:
        read.append(read_settings(settings_type, sys.argv[1:], prog=prog))
        return 0

    module = module_of(words[0])
    monkeypatch.setattr(module, "run", read_only)
    monkeypatch.setattr(sys, "argv", ["command", *words[1:]])
    monkeypatch.chdir(ROOT)
    with suppress(SystemExit):
        module.main()
    assert len(read) == 1


def test_there_are_commands_of_every_kind() -> None:
    modules = {words[0] for path in [*PAGES, *RECIPES] for words in commands(path)}
    assert {"trainer.reward", "trainer.rloo", "trainer.study", "service"} <= modules
    assert len(found()) > 25
