from typing import Any

import pytest

from reward_model.errors import UsageError
from trainer.data.alpaca_eval import check_disjoint
from trainer.study.config import DesignSettings
from trainer.study.folds import replicates

LINEAGES = {f"model-{number}": "abcdef"[number % 6] for number in range(30)}
SPLITS: dict[str, Any] = {
    "train_models": [f"model-{number}" for number in range(20)],
    "valid_models": [f"model-{number}" for number in range(20, 30)],
    "strong_ood_models": ["strong"],
    "excluded_models": ["attack"],
    "train_prompts": [f"p{number}" for number in range(40)],
    "valid_prompts": [f"p{number}" for number in range(40, 60)],
    "valid_prompts_benchmark_overlap": ["p99"],
}


def design(**changes: Any) -> DesignSettings:
    values = {
        "replicates": 4,
        "prompt_folds": 2,
        "lineage_folds": [["a", "b"], ["c"]],
        "dev_lineages": ["f"],
        "dev_prompts": 10,
    }
    return DesignSettings.model_validate(values | changes)


def test_no_prompt_and_no_lineage_is_on_two_sides() -> None:
    for replicate in replicates(SPLITS, LINEAGES, design()):
        for splits in (replicate.splits, replicate.dev):
            check_disjoint(splits)
            assert not set(splits["train_prompts"]) & set(splits["valid_prompts"])
        held = {LINEAGES[model] for model in replicate.splits["valid_models"]}
        trained = {LINEAGES[model] for model in replicate.splits["train_models"]}
        assert held == set(replicate.held_out_lineages)
        assert not trained & (held | {"f"})
        assert {LINEAGES[model] for model in replicate.dev["valid_models"]} == {"f"}
        assert not set(replicate.dev["valid_prompts"]) & set(replicate.splits["valid_prompts"])


def test_every_replicate_holds_something_else_out() -> None:
    found = replicates(SPLITS, LINEAGES, design())
    held = {(tuple(one.splits["valid_prompts"]), one.held_out_lineages) for one in found}
    assert len(held) == 4
    assert len({one.seed for one in found}) == 4
    everything = set(SPLITS["train_prompts"] + SPLITS["valid_prompts"])
    folds = {prompt for prompts, _ in held for prompt in prompts}
    assert folds == everything - set(found[0].dev["valid_prompts"])


def test_what_a_backbone_has_read_is_never_held_out() -> None:
    lineages = LINEAGES | {f"model-{number}": "xyz"[number % 3] for number in range(20, 30)}
    valid = design(hold_out="valid", lineage_folds=[["x"], ["y", "z"]])
    found = replicates(SPLITS, lineages, valid)
    for one in found:
        check_disjoint(one.splits)
        assert set(one.splits["valid_prompts"]) < set(SPLITS["valid_prompts"])
        assert set(one.splits["valid_models"]) < set(SPLITS["valid_models"])
        assert set(one.dev["valid_prompts"]) < set(SPLITS["train_prompts"])
        # The rest of both is trained on.
        prompts = {p for name in ("train_prompts", "valid_prompts") for p in one.splits[name]}
        assert prompts | set(one.dev["valid_prompts"]) == set(
            SPLITS["train_prompts"] + SPLITS["valid_prompts"]
        )
    assert {p for one in found for p in one.splits["valid_prompts"]} == set(SPLITS["valid_prompts"])
    with pytest.raises(UsageError, match="lineage_folds: a has train models"):
        replicates(SPLITS, LINEAGES, design(hold_out="valid"))


def test_the_strong_cell_has_held_out_prompts_and_strong_models() -> None:
    for one in replicates(SPLITS, LINEAGES, design()):
        check_disjoint(one.strong)
        assert one.strong["valid_models"] == SPLITS["strong_ood_models"]
        assert one.strong["valid_prompts"] == one.splits["valid_prompts"]
        assert one.strong["train_models"] == one.splits["train_models"]


def test_a_lineage_that_no_model_has_is_named() -> None:
    with pytest.raises(UsageError, match="lineage zebra"):
        replicates(SPLITS, LINEAGES, design(dev_lineages=["zebra"]))


def test_two_replicates_with_the_same_fold_are_refused() -> None:
    with pytest.raises(ValueError, match="replicates"):
        design(replicates=5)
