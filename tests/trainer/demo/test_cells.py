import json
from pathlib import Path
from statistics import mean

from trainer.demo.cells import CELLS, Sizes, build_cells, cell_path, write_cells
from trainer.demo.gold import gold
from trainer.demo.responder import TRAIN_RESPONDERS, UNSEEN_RESPONDERS
from trainer.demo.world import PLACE_OF, PLACES, UNSEEN_WORDINGS, read_question

SIZES = Sizes(conversations=200, train=150, unseen=60, policy=40)


def test_deterministic_by_seed() -> None:
    assert build_cells(3, SIZES) == build_cells(3, SIZES)
    assert build_cells(3, SIZES) != build_cells(4, SIZES)


def test_every_thing_belongs_to_one_place() -> None:
    assert len(PLACE_OF) == sum(len(things) for things in PLACES.values())
    assert not set(PLACE_OF) & set(PLACES)


def test_prompts_and_response_models_are_disjoint_as_the_cells_say() -> None:
    cells = build_cells(0, SIZES)
    train = {row["prompt"][0]["content"] for row in cells["train_pairs"]}
    asked = {name: {row["prompt_id"] for row in cells[name]} for name in CELLS}
    assert train <= asked["in_domain"]
    assert asked["response_ood"] <= asked["in_domain"]
    assert asked["prompt_ood"] == asked["mutual_ood"]
    places = {
        name: {frozenset(read_question(text).places) for text in texts}
        for name, texts in asked.items()
    }
    assert not places["prompt_ood"] & places["in_domain"]
    for row in cells["policy_prompts"]:
        subset = frozenset(read_question(row["prompt"][0]["content"]).places)
        assert subset not in places["prompt_ood"] | places["in_domain"]
    models = {
        name: {response["model"] for row in cells[name] for response in row["responses"]}
        for name in CELLS
    }
    train_models = {responder.name for responder in TRAIN_RESPONDERS}
    unseen_models = {responder.name for responder in UNSEEN_RESPONDERS}
    assert models["in_domain"] == models["prompt_ood"] == train_models
    assert models["response_ood"] == models["mutual_ood"] == unseen_models
    assert not train_models & unseen_models


def test_unseen_prompts_use_wordings_of_their_own() -> None:
    cells = build_cells(0, SIZES)
    marks = [wording.split("{")[0] for wording in UNSEEN_WORDINGS]
    assert any(mark in row["prompt_id"] for mark in marks for row in cells["prompt_ood"])
    assert not any(mark in row["prompt_id"] for mark in marks for row in cells["in_domain"])


def test_labels_are_gold_and_training_responses_stay_out_of_the_cells() -> None:
    cells = build_cells(0, SIZES)
    trained = set()
    for row in cells["train_pairs"]:
        prompt = row["prompt"][0]["content"]
        assert gold(prompt, row["chosen"]) > gold(prompt, row["rejected"])
        trained |= {(prompt, row["chosen"]), (prompt, row["rejected"])}
    for name in CELLS:
        for row in cells[name]:
            texts = [response["text"] for response in row["responses"]]
            assert len(set(texts)) == len(texts)
            assert not trained & {(row["prompt_id"], text) for text in texts}


def test_the_shortcut_holds_for_the_training_models_only() -> None:
    """Longer is better among the authors of the pairs, and not among the unseen ones."""
    cells = build_cells(0, SIZES)

    def longer_wins(name: str) -> float:
        wins = []
        for row in cells[name]:
            ordered = sorted(row["responses"], key=lambda response: response["gold"])
            wins.append(len(ordered[-1]["text"]) > len(ordered[0]["text"]))
        return mean(wins)

    assert longer_wins("prompt_ood") > 0.65
    assert longer_wins("mutual_ood") < 0.4


def test_written_files_read_back(tmp_path: Path) -> None:
    cells = build_cells(0, SIZES)
    write_cells(tmp_path, cells)
    for name, rows in cells.items():
        lines = cell_path(tmp_path, name).read_text().splitlines()
        assert [json.loads(line) for line in lines] == rows
