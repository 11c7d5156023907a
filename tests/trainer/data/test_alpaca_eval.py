import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from reward_model.errors import UsageError
from trainer.data.alpaca_eval import (
    CELLS,
    AlpacaEvalSettings,
    check_disjoint,
    split_alpaca_eval,
    write_split,
)
from trainer.data.preferences import read_pairs
from trainer.data.scored import read_scored

SHARED = Path("../shared/data/alpaca_eval")

SPLITS: dict[str, Any] = {
    "train_models": ["t1", "t2", "t3", "t4"],
    "valid_models": ["v1", "v2"],
    "strong_ood_models": ["s1"],
    "excluded_models": ["x1"],
    "train_prompts": ["p1", "p2"],
    "valid_prompts": ["q1"],
    "valid_prompts_benchmark_overlap": ["q2"],
    "id_heldout_models_per_train_prompt": {"p1": ["t3", "t4"], "p2": ["t1", "t2"]},
}
MODELS = ["t1", "t2", "t3", "t4", "v1", "v2", "s1", "x1"]


def prompts() -> list[dict[str, Any]]:
    """Response of model m to prompt p: "p m", with a gold score that is the model's place."""
    return [
        {
            "prompt_id": prompt,
            "instruction": f"question {prompt}",
            "responses": [
                {"model": model, "output": f"{prompt} {model}", "gold": float(place)}
                for place, model in enumerate(MODELS)
            ],
        }
        for prompt in ("p1", "p2", "q1", "q2")
    ]


def settings(**changes: Any) -> AlpacaEvalSettings:
    return AlpacaEvalSettings(source=Path("unused"), out=Path("unused"), **changes)


def texts(rows: list[dict[str, Any]]) -> list[str]:
    return sorted(entry["text"] for row in rows for entry in row["responses"])


def test_cells_by_hand() -> None:
    split = split_alpaca_eval(prompts(), SPLITS, settings())
    pairs = sorted((row["chosen"], row["rejected"]) for row in split.train)
    assert pairs == [("p1 t2", "p1 t1"), ("p2 t4", "p2 t3")]
    assert texts(split.cells["in_domain"]) == ["p1 t3", "p1 t4", "p2 t1", "p2 t2"]
    assert texts(split.cells["response_ood"]) == ["p1 v1", "p1 v2", "p2 v1", "p2 v2"]
    assert texts(split.cells["prompt_ood"]) == ["q1 t1", "q1 t2", "q1 t3", "q1 t4"]
    assert texts(split.cells["mutual_ood"]) == ["q1 v1", "q1 v2"]


def test_outputs_equal_to_a_train_response_and_empty_ones_are_dropped() -> None:
    rows = prompts()
    rows[0]["responses"][4]["output"] = "p1 t1 "  # p1 v1 repeats a train response
    rows[2]["responses"][5]["output"] = " "
    split = split_alpaca_eval(rows, SPLITS, settings())
    assert texts(split.cells["response_ood"]) == ["p1 v2", "p2 v1", "p2 v2"]
    assert split.dropped["response_ood"] == {"empty": 0, "equal_to_train": 1}
    assert split.dropped["mutual_ood"] == {"empty": 1, "equal_to_train": 0}


def test_pairs_need_the_gold_gap_and_stop_at_the_limit() -> None:
    splits = SPLITS | {"id_heldout_models_per_train_prompt": {"p1": [], "p2": []}}
    wide = split_alpaca_eval(prompts(), splits, settings(min_gold_gap=2.0))
    assert len(wide.train) == 2 * 3
    assert all(row["gold_gap"] >= 2 for row in wide.train)
    few = split_alpaca_eval(prompts(), splits, settings(pairs_per_prompt=2))
    assert len(few.train) == 4
    again = split_alpaca_eval(prompts(), splits, settings(pairs_per_prompt=2))
    assert few.train == again.train


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"valid_models": ["t1"]}, "response models .* overlap: t1"),
        ({"valid_prompts": ["p2"]}, "prompts .* overlap: p2"),
        ({"id_heldout_models_per_train_prompt": {"p1": ["v1"]}}, "p1 holds out v1"),
    ],
)
def test_an_overlap_is_refused(change: dict[str, Any], part: str) -> None:
    with pytest.raises(UsageError, match=part):
        check_disjoint(SPLITS | change)


def test_written_files_are_read_back(tmp_path: Path) -> None:
    source = tmp_path / "alpaca_eval"
    source.mkdir()
    with gzip.open(source / "prompts.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in prompts())
    (source / "splits.json").write_text(json.dumps(SPLITS))
    report = write_split(AlpacaEvalSettings(source=source, out=tmp_path / "out"))
    assert len(read_pairs(str(tmp_path / "out" / "train.jsonl")).pairs) == 2
    for cell in CELLS:
        assert len(read_scored(str(tmp_path / "out" / f"{cell}.jsonl")))
    assert report["cells"]["prompt_ood"] == {
        "prompts": 1,
        "responses": 4,
        "pairs": 6,
        "dropped": {"empty": 0, "equal_to_train": 0},
    }


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"prompts\.jsonl\.gz: no such file"):
        write_split(AlpacaEvalSettings(source=tmp_path, out=tmp_path / "out"))


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data/alpaca_eval")
def test_the_real_split(tmp_path: Path) -> None:
    """Pairs per cell as the data's own README counts them, plus what it does not drop."""
    report = write_split(AlpacaEvalSettings(source=SHARED, out=tmp_path, pairs_per_prompt=4))
    cells = report["cells"]
    assert cells["train"]["pairs"] == 4 * 528
    assert cells["llmbar"]["pairs"] == 419
    published = {"in_domain": 17367, "prompt_ood": 57983, "response_ood": 43939,
                 "mutual_ood": 11012}  # fmt: skip
    for name, pairs in published.items():
        assert 0.94 * pairs < cells[name]["pairs"] <= pairs
        assert sum(cells[name]["dropped"].values()) < 170
