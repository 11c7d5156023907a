"""``python -m service.offline``: a file scored as the server would, and gone on with."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.embedded import EmbeddedScorer
from service.offline import work
from service.offline.__main__ import main

pytestmark = pytest.mark.asyncio(loop_scope="module")

ITEMS: list[dict[str, Any]] = [
    {"prompt": "Where is the Louvre?", "responses": ["In Paris.", "I like cheese."], "id": "a"},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Bread."}]},
    {"text": "the river " * 9, "id": 3},
    {"token_ids": [1, 2, 3]},
    {"token_ids": [99999]},
    {"text": "word " * 3000},
    {"text": "the end."},
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["offline", *map(str, arguments)])
    return main()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def in_a_thread(*arguments: Any) -> int:
    """``main`` starts an event loop of its own."""
    return await asyncio.to_thread(run, *arguments)


async def test_results_are_the_servers(
    http: httpx.AsyncClient, source: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = source.with_name("out.jsonl")
    assert await in_a_thread(monkeypatch, source, out, "--model", checkpoint) == 0
    items = [{key: item[key] for key in item if key != "id"} for item in ITEMS]
    answer = (await http.post("/score", json={"items": items, "model": "tiny"})).json()
    found = lines(out)
    assert [line.pop("id", None) for line in found] == [item.get("id") for item in ITEMS]
    assert found == answer["results"]
    assert found[4]["errors"][0]["type"] == "invalid_token_id"
    assert found[5]["errors"][0]["type"] == "too_long"
    assert not list(source.parent.glob("*.part"))


async def test_a_stopped_run_goes_on_where_it_was(
    source: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = source.with_name("whole.jsonl"), source.with_name("out.jsonl")
    part = source.with_name("out.jsonl.part")
    assert await in_a_thread(monkeypatch, source, whole, "--model", checkpoint) == 0
    monkeypatch.setattr(work, "PORTION_LINES", 1)
    asked: list[int] = []
    ask = work.Work._ask

    async def stopping(self: Any, portion: Any) -> Any:
        asked.append(len(portion))
        if len(asked) == 5:
            raise KeyboardInterrupt
        return await ask(self, portion)

    with monkeypatch.context() as patch:
        patch.setattr(work.Work, "_ask", stopping)
        assert await in_a_thread(patch, source, out, "--model", checkpoint) == 130
    assert not out.exists()
    kept = len(part.read_bytes().splitlines()) - 1
    assert 0 < kept < len(ITEMS)
    with part.open("ab") as file:
        file.write(b'{"scores": [0.1')  # killed in the middle of a line
    asked.clear()

    async def counting(self: Any, portion: Any) -> Any:
        asked.append(len(portion))
        return await ask(self, portion)

    monkeypatch.setattr(work.Work, "_ask", counting)
    assert await in_a_thread(monkeypatch, source, out, "--model", checkpoint) == 0
    assert sum(asked) == len(ITEMS) - kept
    assert out.read_bytes() == whole.read_bytes()


async def test_results_of_something_else_are_not_gone_on_with(
    source: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = source.with_name("out.jsonl")
    source.with_name("out.jsonl.part").write_text('{"input_sha256": "another"}\n')
    assert await in_a_thread(monkeypatch, source, out, "--model", checkpoint) == 2
    assert "another input, model or setting" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not a line of JSON"),
        ("[]", "expected a JSON object"),
        ('{"text": "a", "token_ids": [1]}', "token_ids"),
        ('{"prompt": "a", "responses": []}', "responses"),
        ('{"text": "a", "id": []}', "id"),
    ],
)
async def test_a_bad_line_is_named_before_anything_is_computed(
    source: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    line: str,
    words: str,
) -> None:
    async def never(self: EmbeddedScorer) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(EmbeddedScorer, "load", never)
    with source.open("a") as file:
        file.write(line + "\n")
    out = source.with_name("out.jsonl")
    assert await in_a_thread(monkeypatch, source, out, "--model", checkpoint) == 2
    message = capsys.readouterr().err
    assert f"in.jsonl:{len(ITEMS) + 1}" in message
    assert words in message


async def test_an_output_that_exists_is_left_alone(
    source: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = source.with_name("out.jsonl")
    out.write_text("precious")
    assert await in_a_thread(monkeypatch, source, out, "--model", checkpoint) == 2
    assert out.read_text() == "precious"
    assert "out.jsonl" in capsys.readouterr().err
