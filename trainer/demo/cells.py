"""The data of the demo: conversations, gold-labelled pairs and the five-way split, as JSONL.

=====================  ==========================================================================
``conversations``      for SFT: known prompts, answered by a short-spoken author of its own
``train_pairs``        training prompts, two of four responses each, labelled by gold
``in_domain``          the other two responses of the same prompts
``prompt_ood``         unseen prompts, training response models
``response_ood``       training prompts, unseen response models
``mutual_ood``         unseen prompts, unseen response models
``policy_prompts``     prompts for RLOO, used nowhere else
=====================  ==========================================================================
"""

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward_model.atomic import write_text
from trainer.demo.gold import gold
from trainer.demo.responder import APPRENTICE, TRAIN_RESPONDERS, UNSEEN_RESPONDERS, Responder
from trainer.demo.world import Question, draw_questions

CELLS = ("in_domain", "prompt_ood", "response_ood", "mutual_ood")
RESPONSES_PER_PROMPT = 4

Response = dict[str, Any]
Row = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How many conversations and prompts there are."""

    conversations: int
    train: int
    unseen: int
    policy: int


def build_cells(seed: int, sizes: Sizes) -> dict[str, list[Row]]:
    """All the data of the demo; the same ``seed`` and ``sizes`` give the same rows."""
    questions = draw_questions(
        seed,
        {
            "conversations": sizes.conversations,
            "train": sizes.train,
            "unseen": sizes.unseen,
            "unseen_policy": sizes.policy,
        },
    )
    rng = random.Random(f"responses {seed}")
    train, unseen = questions["train"], questions["unseen"]
    drawn = [_distinct_responses(question, TRAIN_RESPONDERS, rng, set()) for question in train]
    known = [{response["text"] for response in responses} for responses in drawn]
    nothing: list[set[str]] = [set()] * len(unseen)
    return {
        "conversations": [
            _conversation(question, APPRENTICE, rng) for question in questions["conversations"]
        ],
        "train_pairs": [
            pair
            for question, responses in zip(train, drawn, strict=True)
            for pair in _pairs(question, responses[:2])
        ],
        "in_domain": [
            _scored(question, responses[2:])
            for question, responses in zip(train, drawn, strict=True)
        ],
        "prompt_ood": _cell(unseen, TRAIN_RESPONDERS, rng, nothing),
        "response_ood": _cell(train[: sizes.unseen], UNSEEN_RESPONDERS, rng, known),
        "mutual_ood": _cell(unseen, UNSEEN_RESPONDERS, rng, nothing),
        "policy_prompts": [
            {"prompt": _messages(question)} for question in questions["unseen_policy"]
        ],
    }


def write_cells(directory: Path, cells: dict[str, list[Row]]) -> None:
    """Write each part to ``directory/<name>.jsonl``."""
    for name, rows in cells.items():
        write_text(cell_path(directory, name), _jsonl(rows))


def cell_path(directory: Path, name: str) -> Path:
    return directory / f"{name}.jsonl"


def _cell(
    questions: Sequence[Question],
    responders: Sequence[Responder],
    rng: random.Random,
    known: Sequence[set[str]],
) -> list[Row]:
    return [
        _scored(question, _distinct_responses(question, responders, rng, texts))
        for question, texts in zip(questions, known, strict=False)
    ]


def _distinct_responses(
    question: Question, responders: Sequence[Responder], rng: random.Random, known: set[str]
) -> list[Response]:
    """Four responses by four authors, no two alike and none of them in ``known``."""
    responses: list[Response] = []
    seen = set(known)
    for responder in rng.sample(list(responders), RESPONSES_PER_PROMPT):
        text = responder.respond(question, rng)
        while text in seen:
            text = responder.respond(question, rng)
        seen.add(text)
        responses.append({"model": responder.name, "text": text, "gold": gold(question.text, text)})
    return responses


def _pairs(question: Question, responses: Sequence[Response]) -> Iterable[Row]:
    first, second = responses
    if first["gold"] == second["gold"]:
        return
    chosen, rejected = (first, second) if first["gold"] > second["gold"] else (second, first)
    yield {
        "prompt": _messages(question),
        "chosen": chosen["text"],
        "rejected": rejected["text"],
    }


def _scored(question: Question, responses: list[Response]) -> Row:
    return {"prompt_id": question.text, "prompt": _messages(question), "responses": responses}


def _conversation(question: Question, responder: Responder, rng: random.Random) -> Row:
    answer = {"role": "assistant", "content": responder.respond(question, rng)}
    return {"messages": [*_messages(question), answer]}


def _messages(question: Question) -> list[dict[str, str]]:
    return [{"role": "user", "content": question.text}]


def _jsonl(rows: Iterable[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
