import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from reward_model.errors import UsageError
from trainer.data.preferences import RowError, parse_pair, read_pairs
from trainer.data.rows import is_scored, read_rows, write_rows
from trainer.data.scored import read_scored

USER = {"role": "user", "content": "Hello?"}
GOOD = {"role": "assistant", "content": "Hi!"}
BAD = {"role": "assistant", "content": "Go away."}
ROW = {"prompt": [USER], "chosen": "Hi!", "rejected": "Go away."}

FORMATS: dict[str, dict[str, Any]] = {
    "own": ROW,
    "explicit plain": {"prompt": "Hello?", "chosen": "Hi!", "rejected": "Go away."},
    "explicit conversational": {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    "implicit conversational": {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "prompt given twice": {"prompt": "Hello?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
}


@pytest.mark.parametrize("row", FORMATS.values(), ids=FORMATS)
def test_every_format_gives_the_same_pair(row: dict[str, Any]) -> None:
    pair = parse_pair(row)
    assert pair.chosen == (USER, GOOD)
    assert pair.rejected == (USER, BAD)
    assert (pair.chosen_response, pair.rejected_response) == ("Hi!", "Go away.")
    assert pair.margin is None


def test_implicit_plain_text_is_taken_as_it_is() -> None:
    pair = parse_pair({"chosen": "Q: a? A: b", "rejected": "Q: a? A: c"})
    assert (pair.chosen, pair.rejected) == ("Q: a? A: b", "Q: a? A: c")


def test_several_turns_and_a_margin() -> None:
    history = [USER, GOOD, {"role": "user", "content": "And now?"}]
    pair = parse_pair({"chosen": [*history, GOOD], "rejected": [*history, BAD], "margin": 2})
    assert pair.chosen == (*history, GOOD)
    assert pair.chosen_response == "Hi!"
    assert pair.margin == 2.0


def test_completions_of_several_turns_that_begin_alike_keep_their_prompt() -> None:
    again = {"role": "user", "content": "And now?"}
    pair = parse_pair(
        {"prompt": [USER], "chosen": [GOOD, again, GOOD], "rejected": [GOOD, again, BAD]}
    )
    assert pair.chosen == (USER, GOOD, again, GOOD)
    assert (pair.chosen_response, pair.rejected_response) == ("Hi!", "Go away.")


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (None, "broken"),
        ({"prompt": [USER], "chosen": "a"}, "broken"),
        ({"prompt": [USER], "chosen": "a", "rejected": 3}, "broken"),
        ({"prompt": 5, "chosen": "a", "rejected": "b"}, "broken"),
        ({"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b"}, "broken"),
        ({"prompt": [USER], "chosen": "a", "rejected": [BAD]}, "broken"),
        (ROW | {"margin": "big"}, "broken"),
        (ROW | {"margin": float("nan")}, "broken"),
        (ROW | {"chosen": "  "}, "empty"),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": []}, "broken"),
        (ROW | {"rejected": "Hi!"}, "identical"),
        ({"chosen": [USER, GOOD], "rejected": [USER, GOOD]}, "empty"),
    ],
)
def test_what_is_no_pair(row: dict[str, Any] | None, fault: str) -> None:
    with pytest.raises(RowError) as error:
        parse_pair(row)
    assert error.value.fault == fault


def write_lines(path: Path, lines: list[str]) -> str:
    path.write_text("".join(line + "\n" for line in lines))
    return str(path)


def test_faulty_rows_are_counted_and_left_out(tmp_path: Path) -> None:
    same = ROW | {"rejected": "Hi!"}
    lines = [json.dumps(ROW), "{broken", json.dumps(same), json.dumps(ROW)]
    source = write_lines(tmp_path / "pairs.jsonl", lines)
    found = read_pairs(source, max_fault_share=0.5)
    assert (len(found.pairs), found.rows) == (2, 4)
    assert found.faults == {"broken": 1, "identical": 1}


def test_too_many_faulty_rows_are_refused(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "pairs.jsonl", [json.dumps(ROW), "{broken"])
    with pytest.raises(UsageError, match=r"50\.0% of 2 rows .*1 broken; first, row 2"):
        read_pairs(source)


def test_an_empty_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no preference pair in 0 rows"):
        read_pairs(write_lines(tmp_path / "pairs.jsonl", []))


@pytest.mark.parametrize("name", ["none.jsonl", "none.parquet"])
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_pairs(str(tmp_path / name))


def test_a_directory_and_a_foreign_suffix_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a directory"):
        read_pairs(str(tmp_path))
    (tmp_path / "pairs.csv").write_text("a,b\n")
    with pytest.raises(UsageError, match="not a data file"):
        read_pairs(str(tmp_path / "pairs.csv"))


def test_the_same_rows_from_every_kind_of_file(tmp_path: Path) -> None:
    rows = [ROW | {"margin": 1.5}, ROW]
    write_rows(tmp_path / "a.jsonl", rows)
    write_rows(tmp_path / "b.jsonl.gz", rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "c.parquet")
    found = [
        read_pairs(str(tmp_path / name)).pairs for name in ("a.jsonl", "b.jsonl.gz", "c.parquet")
    ]
    assert found[0] == found[1]
    assert [pair.chosen for pair in found[2]] == [pair.chosen for pair in found[0]]
    assert [pair.margin for pair in found[2]] == [1.5, None]


def test_a_data_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was downloaded before, so that no hub is asked."""
    (tmp_path / "mine").mkdir()
    rows = [{"prompt": f"{number}?", "chosen": "yes", "rejected": "no"} for number in range(3)]
    (tmp_path / "mine/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    datasets.load_dataset(str(tmp_path / "mine"))
    (tmp_path / "cache/mine").rename(tmp_path / "cache/somebody___mine")
    found = read_pairs("somebody/mine").pairs
    assert [pair.chosen_response for pair in found] == ["yes"] * 3
    assert found[2].chosen[0] == {"role": "user", "content": "2?"}
    with pytest.raises(UsageError, match="somebody/other: neither a local file nor"):
        read_pairs("somebody/other")


def test_a_file_that_is_not_what_its_name_says(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b"{}\n")[:-9])
    for name in ("a.parquet", "b.jsonl.gz"):
        with pytest.raises(UsageError, match="cannot be read"):
            read_pairs(str(tmp_path / name))


def test_limit_stops_reading(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "pairs.jsonl", [json.dumps(ROW)] * 5)
    assert len(read_pairs(source, limit=2).pairs) == 2


def test_scored_responses(tmp_path: Path) -> None:
    responses = [{"model": "a", "text": "x", "gold": 1}, {"model": "b", "text": "y", "gold": -1.5}]
    row = {"prompt_id": "p", "prompt": "Hello?", "responses": responses}
    source = write_lines(tmp_path / "scored.jsonl", [json.dumps(row)])
    (found,) = read_scored(source)
    assert (found.prompt_id, found.prompt) == ("p", (USER,))
    assert [(one.model, one.text, one.gold) for one in found.responses] == [
        ("a", "x", 1.0),
        ("b", "y", -1.5),
    ]
    assert is_scored(source)
    assert not is_scored(write_lines(tmp_path / "pairs.jsonl", [json.dumps(ROW)]))


@pytest.mark.parametrize(
    "change",
    [{"responses": []}, {"responses": [{"text": "x"}]}, {"responses": [{"text": 1, "gold": 1}]}],
)
def test_a_row_that_is_not_scored_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    row = {"prompt": "Hello?", "responses": [{"text": "x", "gold": 1}]}
    source = write_lines(tmp_path / "s.jsonl", [json.dumps(row), json.dumps(row | change)])
    with pytest.raises(UsageError, match="row 2"):
        read_scored(source)


def test_rows_survive_a_round_trip(tmp_path: Path) -> None:
    rows = [{"text": "größe\u2028 ✓"}, {"text": ""}]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert list(read_rows(str(tmp_path / "rows.jsonl"))) == rows


def test_hh_dialogues() -> None:
    """As in Anthropic/hh-rlhf: both texts hold the whole dialogue."""
    start = "\n\nHuman: Why?\n\nAssistant: So.\n\nHuman: And:\n\nthen?"
    pair = parse_pair(
        {"chosen": start + "\n\nAssistant: Yes", "rejected": start + "\n\nAssistant: N"}
    )
    assert [turn["role"] for turn in pair.chosen] == ["user", "assistant", "user", "assistant"]
    assert pair.chosen[2]["content"] == "And:\n\nthen?"
    assert (pair.chosen_response, pair.rejected_response) == ("Yes", "N")
    assert pair.chosen[:-1] == pair.rejected[:-1]


def test_a_dialogue_before_the_responses_may_be_called_messages() -> None:
    turns = [{"role": "user", "content": "Why?"}]
    pair = parse_pair({"messages": turns, "chosen": "a", "rejected": "b"})
    assert pair.chosen == (*turns, {"role": "assistant", "content": "a"})


def test_templated_text_stays_text() -> None:
    pair = parse_pair({"chosen": "<s>Human: a</s>", "rejected": "<s>Human: b</s>"})
    assert isinstance(pair.chosen, str)
