"""A source of prompts in the form of ``../shared/data/alpaca_eval``, without responses."""

import gzip
import json
from pathlib import Path


def write_source(directory: Path, train: int, valid: int) -> Path:
    """``train`` prompts from "What is p0?" on, then ``valid`` ones; into ``directory``."""
    ids = [f"p{number}" for number in range(train + valid)]
    with gzip.open(directory / "prompts.jsonl.gz", "wt") as file:
        for name in ids:
            row = {"prompt_id": name, "instruction": f"What is {name}?", "responses": []}
            file.write(json.dumps(row) + "\n")
    splits = {"train_prompts": ids[:train], "valid_prompts": ids[train:]}
    (directory / "splits.json").write_text(json.dumps(splits))
    (directory / "models.json").write_text("{}")
    return directory
