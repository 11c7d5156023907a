"""The five-way split of any data set, and the forms it is read from."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from reward_model.errors import UsageError
from trainer.data.preferences import read_pairs
from trainer.data.responses import read_responses
from trainer.data.rows import write_rows
from trainer.data.scored import read_scored
from trainer.data.split import SplitSettings, split

MODELS = ("a", "b", "c", "d", "unseen")


def rows(count: int = 40) -> list[dict[str, Any]]:
    return [
        {
            "prompt_id": f"p{n}",
            "prompt": f"Question {n}?",
            "responses": [
                {"model": model, "text": f"{model} answers {n}", "gold": float((n + place) % 7)}
                for place, model in enumerate(MODELS)
            ],
        }
        for n in range(count)
    ]


def settings(path: Path, data: list[dict[str, Any]], **changes: Any) -> SplitSettings:
    write_rows(path / "scored.jsonl", data)
    values = {"sources": [str(path / "scored.jsonl")], "out": path / "out"}
    return SplitSettings(**(values | {"valid_models": ["unseen"], "valid_prompts": 0.25} | changes))


def texts(path: Path) -> set[str]:
    return {response.text for one in read_scored(str(path)) for response in one.responses}


def test_cells_are_what_they_say(tmp_path: Path) -> None:
    report = split(settings(tmp_path, rows()))
    out = tmp_path / "out"
    train = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    cells = {name: texts(out / f"{name}.jsonl") for name in report["cells"] if name != "train"}
    trained = {row[side] for row in train for side in ("chosen", "rejected")}
    train_prompts = {row["prompt_id"] for row in train}
    valid_prompts = {one.prompt_id for one in read_scored(str(out / "prompt_ood.jsonl"))}
    assert len(valid_prompts) == 10
    assert not train_prompts & valid_prompts
    assert not any(trained & cell for cell in cells.values())
    assert not any(one & two for one, two in itertools.combinations(cells.values(), 2))
    assert all(text.startswith("unseen") for text in cells["response_ood"] | cells["mutual_ood"])
    assert not any(text.startswith("unseen") for text in cells["in_domain"] | cells["prompt_ood"])
    assert len(cells["in_domain"]) == 2 * 30
    assert report["cells"]["train"]["pairs"] == len(read_pairs(str(out / "train.jsonl")).pairs)
    assert all(row["gold_gap"] > 0 for row in train)


def test_the_seed_decides(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        split(settings(tmp_path, rows(), out=tmp_path / name, seed=seed))
    one, same, other = (
        (tmp_path / name / "train.jsonl").read_text() for name in ("one", "same", "other")
    )
    assert one == same != other


def test_prompts_are_deduplicated_and_identical_responses_dropped(tmp_path: Path) -> None:
    data = rows()
    again = {"prompt": "  question 0? ", "responses": []}
    for row in data:
        row["responses"][1]["text"] = row["responses"][0]["text"] if row["prompt_id"] == "p5" else (
            row["responses"][1]["text"]
        )  # fmt: skip
    report = split(settings(tmp_path, [*data, again], valid_prompts=0.05, seed=1))
    assert report["prompts_read"] == 40
    assert report["repeated_prompts"] == 1
    assert report["dropped"]["prompts_with_identical_responses"] == 1


def test_outputs_equal_to_a_train_response_are_dropped(tmp_path: Path) -> None:
    data = rows()
    for row in data:
        row["responses"][-1]["text"] = "a answers 3" if row["prompt_id"] != "p3" else "new"
    report = split(settings(tmp_path, data, valid_prompts=0.05, held_out=1))
    trained = (tmp_path / "out/train.jsonl").read_text()
    if '"a answers 3"' in trained:
        assert report["dropped"]["response_ood_equal_to_train"] > 30
    assert "a answers 3" not in texts(tmp_path / "out/response_ood.jsonl") or (
        '"a answers 3"' not in trained
    )


def test_raw_ultrafeedback_and_single_rows(tmp_path: Path) -> None:
    write_rows(tmp_path / "ultra.jsonl", [
        {"instruction": "Why?", "completions": [
            {"model": "x", "response": "So.", "overall_score": 10.0, "fine-grained_score": 2.5},
            {"model": "y", "response": "No.", "overall_score": 4.0},
        ]},
    ])  # fmt: skip
    write_rows(tmp_path / "single.jsonl", [
        {"prompt": "Why?", "response": "Thus.", "model": "z", "gold": 1},
    ])  # fmt: skip
    (found,), repeated = read_responses(
        [str(tmp_path / n) for n in ("ultra.jsonl", "single.jsonl")]
    )
    assert repeated == 1
    assert [(one.model, one.gold) for one in found.responses] == [("x", 2.5), ("y", 4.0), ("z", 1)]


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"valid_models": ["nobody"]}, "nobody wrote no response; there are a, b"),
        ({"held_out": 4}, "no train pair is left"),
    ],
)
def test_what_cannot_be_split_is_refused(
    tmp_path: Path, changes: dict[str, Any], part: str
) -> None:
    with pytest.raises(UsageError, match=part):
        split(settings(tmp_path, rows(), **changes))


def test_missing_gold_is_refused(tmp_path: Path) -> None:
    data = rows()
    del data[0]["responses"][0]["gold"]
    with pytest.raises(UsageError, match=r"1 responses have no gold score; .*trainer\.data\.label"):
        split(settings(tmp_path, data))
