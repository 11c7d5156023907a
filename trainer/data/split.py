"""The five-way split of any data set of prompts, responses, models and gold scores.

    python -m trainer.data.split --sources scored.jsonl unseen.jsonl --out data/mine \\
        --valid_models my-model --valid_prompts 0.15

Writes the files that ``trainer.data.alpaca_eval`` writes, from any form that
:mod:`trainer.data.responses` reads:

    train.jsonl         pairs: train prompts × train models, but for the responses held out
    in_domain.jsonl     scored: train prompts × the held-out responses of train models
    prompt_ood.jsonl    scored: valid prompts × train models
    response_ood.jsonl  scored: train prompts × valid models
    mutual_ood.jsonl    scored: valid prompts × valid models
    split.json          what was read, dropped and written, and who is on which side

Prompts equal up to case and white space are one. A train prompt of which two train responses are
identical is dropped, as in the paper (Appendix B); so are responses of the other cells that equal
a train response. The sides are checked to be disjoint.
"""

import itertools
import json
import random
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from reward_model import atomic
from reward_model.command import Settings, run
from reward_model.errors import UsageError
from trainer.data.alpaca_eval import CELLS, count_pairs
from trainer.data.responses import PromptResponses, Response, prompt_key, read_responses
from trainer.data.rows import Row, write_rows


class SplitSettings(Settings):
    """What to split, and how."""

    sources: list[str] = Field(min_length=1, description="files, or hub names, with gold scores")
    split: str = Field(default="train", description="split of a hub data set")
    out: Path = Field(description="directory to write the split files to")
    valid_models: list[str] = Field(min_length=1, description="response models never trained on")
    valid_prompts: float = Field(default=0.15, gt=0, lt=1, description="share of the prompts")
    held_out: int = Field(
        default=2, gt=0, description="responses of each train prompt kept for in_domain"
    )
    pairs_per_prompt: int = Field(default=1, gt=0, description="train pairs per prompt, at most")
    min_gold_gap: float = Field(default=0.0, ge=0, description="least |gold difference| of a pair")
    seed: int = 0


class Cells:
    """The rows of every file, and what was dropped on the way."""

    def __init__(self, settings: SplitSettings) -> None:
        self.settings = settings
        self.train: list[Row] = []
        self.cells: dict[str, list[Row]] = {name: [] for name in CELLS}
        self.dropped: Counter[str] = Counter()
        self.sides: dict[str, set[str]] = {"train": set(), "valid": set()}
        self._train_texts: set[str] = set()

    def fill(self, prompts: list[PromptResponses]) -> None:
        """Divide prompts and responses."""
        valid = self._draw_valid(prompts)
        kept = [one for one in prompts if prompt_key(one.prompt) in valid or self._is_usable(one)]
        train = [one for one in kept if prompt_key(one.prompt) not in valid]
        held = [(one, *self._hold_out(one)) for one in train]
        for one, used, _ in held:
            self._train_texts |= {response.text.strip() for response in used}
            self.train += self._pairs(one, used)
            self.sides["train"].add(prompt_key(one.prompt))
        random.Random(self.settings.seed).shuffle(self.train)
        for one, _, kept_back in held:
            self._add("in_domain", one, kept_back)
            self._add("response_ood", one, self._of(one, valid=True))
        for one in kept:
            if prompt_key(one.prompt) in valid:
                self.sides["valid"].add(prompt_key(one.prompt))
                self._add("prompt_ood", one, self._of(one, valid=False))
                self._add("mutual_ood", one, self._of(one, valid=True))
        self.check()

    def check(self) -> None:
        """Raises UsageError: a prompt, a model or a text on both sides, or nothing to train on."""
        if common := self.sides["train"] & self.sides["valid"]:
            raise UsageError(f"split: {len(common)} prompts are on both sides")
        used = {row[side] for row in self.train for side in ("chosen_model", "rejected_model")}
        if common := used & set(self.settings.valid_models):
            raise UsageError(f"split: {sorted(common)[0]} is trained on and in valid_models")
        if not self.train:
            raise UsageError(
                "split: no train pair is left; lower held_out or min_gold_gap "
                f"(dropped: {dict(self.dropped)})"
            )

    def _draw_valid(self, prompts: list[PromptResponses]) -> set[str]:
        keys = [prompt_key(one.prompt) for one in prompts]
        count = max(1, round(self.settings.valid_prompts * len(keys)))
        return set(random.Random(f"{self.settings.seed}/prompts").sample(keys, count))

    def _is_usable(self, one: PromptResponses) -> bool:
        texts = [response.text.strip() for response in self._of(one, valid=False)]
        if len(set(texts)) < len(texts):
            self.dropped["prompts_with_identical_responses"] += 1
            return False
        if len(texts) < 2 + self.settings.held_out:
            self.dropped["prompts_with_too_few_responses"] += 1
            return False
        return True

    def _of(self, one: PromptResponses, *, valid: bool) -> list[Response]:
        names = set(self.settings.valid_models)
        return [
            response
            for response in one.responses
            if (response.model in names) == valid and response.text.strip()
        ]

    def _hold_out(self, one: PromptResponses) -> tuple[list[Response], list[Response]]:
        responses = self._of(one, valid=False)
        draw = random.Random(f"{self.settings.seed}/held/{prompt_key(one.prompt)}")
        held = set(draw.sample(range(len(responses)), self.settings.held_out))
        used = [response for place, response in enumerate(responses) if place not in held]
        return used, [responses[place] for place in sorted(held)]

    def _pairs(self, one: PromptResponses, responses: list[Response]) -> Iterator[Row]:
        candidates = [
            (_gold(a), _gold(b), a, b)
            for a, b in itertools.combinations(responses, 2)
            if abs(_gold(a) - _gold(b)) >= self.settings.min_gold_gap and _gold(a) != _gold(b)
        ]
        if not candidates:
            self.dropped["prompts_without_a_pair"] += 1
        draw = random.Random(f"{self.settings.seed}/pairs/{prompt_key(one.prompt)}")
        count = min(self.settings.pairs_per_prompt, len(candidates))
        for left, right, a, b in draw.sample(candidates, count):
            better, worse = (a, b) if left > right else (b, a)
            yield {
                "prompt_id": one.prompt_id,
                "prompt": [dict(turn) for turn in one.prompt],
                "chosen": better.text,
                "rejected": worse.text,
                "chosen_model": better.model,
                "rejected_model": worse.model,
                "gold_gap": round(abs(left - right), 6),
            }

    def _add(self, cell: str, one: PromptResponses, responses: Iterable[Response]) -> None:
        kept = []
        for response in responses:
            if response.text.strip() in self._train_texts:
                self.dropped[f"{cell}_equal_to_train"] += 1
            else:
                kept.append(response)
        if kept:
            self.cells[cell].append(PromptResponses(one.prompt_id, one.prompt, kept).row())


def _gold(response: Response) -> float:
    assert response.gold is not None  # refused before
    return response.gold


def split(settings: SplitSettings) -> dict[str, Any]:
    """Read, divide, write all files, and return the content of ``split.json``.

    Raises:
        UsageError: responses without gold, an unknown valid model, or no train pair left.
    """
    prompts, repeated = read_responses(settings.sources, split=settings.split)
    _refuse_unlabelled(prompts)
    models = Counter(response.model for one in prompts for response in one.responses)
    for name in settings.valid_models:
        if name not in models:
            raise UsageError(
                f"valid_models: {name} wrote no response; there are {', '.join(models)}"
            )
    cells = Cells(settings)
    cells.fill(prompts)
    report: dict[str, Any] = settings.model_dump(mode="json", exclude={"out"}) | {
        "prompts_read": len(prompts),
        "repeated_prompts": repeated,
        "train_models": sorted(set(models) - set(settings.valid_models)),
        "dropped": dict(cells.dropped),
        "cells": {
            "train": {
                "prompts": len({row["prompt_id"] for row in cells.train}),
                "pairs": write_rows(settings.out / "train.jsonl", cells.train),
            }
        },
    }
    for name, rows in cells.cells.items():
        report["cells"][name] = {
            "prompts": write_rows(settings.out / f"{name}.jsonl", rows),
            "responses": sum(len(row["responses"]) for row in rows),
            "pairs": count_pairs(rows, settings.min_gold_gap),
        }
    atomic.write_text(settings.out / "split.json", json.dumps(report, indent=2) + "\n")
    return report


def _refuse_unlabelled(prompts: list[PromptResponses]) -> None:
    unlabelled = sum(response.gold is None for one in prompts for response in one.responses)
    if unlabelled:
        raise UsageError(
            f"sources: {unlabelled} responses have no gold score; python -m trainer.data.label "
            "adds it"
        )


def _command(settings: SplitSettings) -> None:
    report = split(settings)
    for name, counts in report["cells"].items():
        print(f"{name:13}", ", ".join(f"{key} {value}" for key, value in counts.items()))
    if report["dropped"]:
        print("dropped      ", ", ".join(f"{k} {v}" for k, v in report["dropped"].items()))


def main() -> int:
    return run(SplitSettings, _command, prog="python -m trainer.data.split")


if __name__ == "__main__":
    sys.exit(main())
