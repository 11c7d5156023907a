from pathlib import Path

from trainer.rloo.sample_table import flat, read_table, write_table
from trainer.rloo.samples import Group, Prompt, Sample


def group(text: str) -> Group:
    sample = Sample((5, 6), (-1.0, -2.0), True, 3, text)
    other = Sample((7,), (-1.0,), False, 4, "cut")
    prompt = Prompt(0, ({"role": "user", "content": "Why?"},), (1, 2))
    return Group(0, prompt, (sample, other), (0.5, None), {"reward": (0.5, None)})


def test_text_with_any_line_separator_comes_back(tmp_path: Path) -> None:
    text = "one\u2028two\x85three\nfour"
    write_table(tmp_path / "table.jsonl", [group(text), group("plain")])
    found = read_table(tmp_path / "table.jsonl")
    assert [row["samples"][0]["text"] for row in found] == [text, "plain"]
    columns, lines = flat(found)
    assert columns == ["prompt", "text", "tokens", "ended", "version", "reward", "raw/reward"]
    assert lines[1] == ["Why?", "cut", 1, False, 4, None, None]
