import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from trainer.data.alpaca_eval import CELLS
from trainer.study.cells import DEV
from trainer.study.lexical import Features, fit
from trainer.study.measures import CellPrompt, per_prompt, values
from trainer.study.references import less_length, references


def test_a_fit_by_hand() -> None:
    """Of four equal differences of 1 three are won: w = log 3; a penalty of 1: w = mean slope."""
    differences = csr_matrix(np.array([[1.0], [1.0], [1.0], [-1.0]]))
    assert fit(differences, 0.0)[0] == pytest.approx(math.log(3), abs=1e-4)
    w = fit(differences, 1.0)[0]
    assert w == pytest.approx(0.75 / (1 + math.exp(w)) - 0.25 / (1 + math.exp(-w)), abs=1e-5)


def test_features_know_words_and_style() -> None:
    features = Features(["a list:\n- one\n- two", "yes!"], ["a b", "no"])
    found = features(["alpha beta", "alpha beta", "alpha gamma", "alpha beta\n"]).toarray()
    assert (found[0] == found[1]).all()
    words = found[:, : 2**16]
    assert words[0] @ words[0] == pytest.approx(1.0)
    assert words[0] @ words[2] == pytest.approx(1 / 3)  # one of three n-grams
    assert (found[3] - found[0]).nonzero()[0].min() >= 2**16


def prompts(rng: random.Random, count: int) -> list[CellPrompt]:
    return [
        CellPrompt(
            f"p{number}",
            tuple(rng.gauss(0, 1) for _ in range(6)),
            tuple(rng.randint(10, 1000) for _ in range(6)),
            tuple("aabbcc"),
        )
        for number in range(count)
    ]


def test_length_is_taken_off_as_dev_asks_for() -> None:
    """A reward that is gold plus log length ranks like gold without it."""
    rng = random.Random(0)
    cells = {name: prompts(rng, 40) for name in (*CELLS, DEV)}
    rewards = {
        name: [
            gold + rng.gauss(0, 0.3) + 2 * math.log(length)
            for prompt in own
            for gold, length in zip(prompt.gold, prompt.lengths, strict=True)
        ]
        for name, own in cells.items()
    }
    corrected = less_length(cells, rewards, 0.5)
    for name, own in cells.items():
        before = values(own, per_prompt(own, rewards[name]), 0.5)
        after = values(own, per_prompt(own, corrected[name]), 0.5)
        assert before.tau < 0.6
        assert after.tau > 0.75


def test_words_that_win_in_training_win_in_the_cells(tmp_path: Path) -> None:
    rng = random.Random(0)

    def text(good: bool) -> str:
        return " ".join(rng.choices(["kind", "clear"] if good else ["rude", "vague"], k=12))

    pairs = [{"chosen": text(True), "rejected": text(False)} for _ in range(40)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    cells = {}
    for name in (*CELLS, DEV):
        rows = [[(text(place > 2), float(place)) for place in range(6)] for _ in range(5)]
        lines = [{"responses": [{"text": one} for one, _ in row]} for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
        cells[name] = [
            CellPrompt(
                str(number),
                tuple(gold for _, gold in row),
                tuple(len(one) for one, _ in row),
                tuple("aabbcc"),
            )
            for number, row in enumerate(rows)
        ]
    rewards = {name: [rng.random() for _ in range(30)] for name in (*CELLS, DEV)}
    found = references(tmp_path, cells, "bt", rewards, 3.0)
    assert list(found) == ["longer wins", "n-grams and style", "bt less length"]
    assert found["n-grams and style"][DEV].accuracy == 1.0
    longer = values(cells[DEV], [list(map(float, one.lengths)) for one in cells[DEV]], 3.0)
    assert found["longer wins"][DEV] == longer
