"""Prompts: forms that are read, what is refused, and where a long one is cut."""

import json
from pathlib import Path

import pytest

from reward_model.errors import UsageError
from tests.checkpoints import tiny_tokenizer
from trainer.rloo.prompts import PromptEncoder, order, read_prompts

HEADER = "<|im_start|>assistant\n"


def encoder(max_tokens: int = 200, long_prompts: str = "skip") -> PromptEncoder:
    return PromptEncoder(tiny_tokenizer(), max_tokens, long_prompts)


def write(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_texts_chats_and_whole_conversations_are_read(tmp_path):
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Three?"},
    ]
    rows = [
        {"prompt": "How do I bake bread?", "other": 1},
        {"prompt": chat},
        {"messages": [*chat, {"role": "assistant", "content": "Four."}]},
    ]
    prompts = read_prompts(write(tmp_path / "p.jsonl", rows), encoder()).prompts
    assert [prompt.index for prompt in prompts] == [0, 1, 2]
    assert prompts[0].messages == ({"role": "user", "content": "How do I bake bread?"},)
    assert prompts[1].token_ids == prompts[2].token_ids
    text = tiny_tokenizer().decode(prompts[1].token_ids)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>")
    assert text.endswith(f"Three?<|im_end|>\n{HEADER}")


def test_a_long_prompt_is_skipped_or_cut_on_the_left_of_the_users_text():
    words = " ".join(str(n) for n in range(100, 300))
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": f"{words} last words"},
    ]
    assert encoder(80).encode(messages) is None
    ids = encoder(80, "cut").encode(messages)
    assert ids is not None
    assert 70 <= len(ids) <= 80
    text = tiny_tokenizer().decode(ids)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    assert text.endswith(f"299 last words<|im_end|>\n{HEADER}")
    assert " 100 " not in text


def test_what_cannot_be_cut_enough_is_skipped():
    messages = [{"role": "system", "content": "x " * 200}, {"role": "user", "content": "Hello"}]
    assert encoder(50, "cut").encode(messages) is None


def test_too_long_prompts_are_counted(tmp_path):
    path = write(tmp_path / "p.jsonl", [{"prompt": "word " * 500}, {"prompt": "short"}])
    found = read_prompts(path, encoder(64))
    assert (len(found), found.too_long) == (1, 1)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"question": "?"}, "expected"),
        ({"prompt": ""}, "turn to be answered"),
        ({"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
         "turn to be answered"),
        ({"prompt": [{"role": "king", "content": "a"}]}, "known role"),
        ({"prompt": [{"role": "system", "content": "a"}]}, "turn of the user"),
        ({"prompt": [{"content": "a"}]}, "expected"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named(tmp_path, row, problem):
    path = write(tmp_path / "p.jsonl", [{"prompt": "fine"}, row])
    with pytest.raises(UsageError, match=rf"p\.jsonl:2: .*{problem}"):
        read_prompts(path, encoder())


def test_empty_and_absent_files_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        read_prompts(tmp_path / "absent.jsonl", encoder())
    with pytest.raises(UsageError, match="no prompt in it"):
        read_prompts(write(tmp_path / "p.jsonl", []), encoder())


def test_every_epoch_is_a_permutation_of_its_own():
    first, second = order(0, 0, 50), order(0, 1, 50)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert first == order(0, 0, 50)
    assert first != order(1, 0, 50)
