import json
from pathlib import Path

import pytest

from reward_model.errors import UsageError
from trainer.sft.conversations import read_conversations

GOOD = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_reads_messages(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", {"messages": GOOD, "extra": 1}, {"messages": GOOD})
    assert read_conversations(source) == [GOOD, GOOD]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"turns": GOOD}, "expected"),
        ({"messages": []}, "expected"),
        ({"messages": GOOD[:1]}, "end with the assistant"),
        ({"messages": [GOOD[0], {"role": "assistant", "content": " "}]}, "end with the assistant"),
        ({"messages": [{"role": "user"}, GOOD[1]]}, "role and a text"),
        (["no object"], "expected"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: object, reason: str) -> None:
    source = write(tmp_path / "a.jsonl", {"messages": GOOD}, row)
    with pytest.raises(UsageError, match=f"row 2: .*{reason}"):
        read_conversations(source)


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no conversations"):
        read_conversations(write(tmp_path / "empty.jsonl"))
    with pytest.raises(UsageError, match="no such file"):
        read_conversations(str(tmp_path / "absent.jsonl"))


def test_of_a_preference_pair_the_chosen_response_is_learned(tmp_path: Path) -> None:
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert read_conversations(write(tmp_path / "a.jsonl", pair)) == [GOOD]
    with pytest.raises(UsageError, match="row 1: a response has no text"):
        read_conversations(write(tmp_path / "b.jsonl", {**pair, "chosen": " "}))
