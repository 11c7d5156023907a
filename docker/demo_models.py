"""Make the two small models that the images carry, with the project's own trainers.

    python docker/demo_models.py DIR

``DIR/policy`` is a policy trained from scratch on conversations of the demo's world, ``DIR/demo``
a BSR reward model trained from it on gold-labelled pairs of that world. They are real, and small:
they know one town, and nothing else.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from trainer.demo.cells import Sizes, build_cells, cell_path, write_cells

SIZES = Sizes(conversations=300, train=400, unseen=40, policy=200)

SFT = {
    "epochs": 4,
    "learning_rate": 3e-3,
    "from_scratch.hidden_size": 64,
    "from_scratch.intermediate_size": 192,
    "from_scratch.layers": 2,
    # Heads of 32: the smallest that vLLM computes on the CPU.
    "from_scratch.heads": 2,
    "from_scratch.kv_heads": 2,
    "from_scratch.vocabulary": 512,
}
REWARD = {
    "loss.name": "bt_bsr",
    "loss.lambda": 1e-2,
    "optimiser.lr": 1e-3,
    "optimiser.batch_pairs": 32,
    "optimiser.epochs": 2,
    "data.max_length": 512,
}


def run(module: str, flags: dict[str, object]) -> None:
    words = [f"--{key}={value}" for key, value in flags.items()]
    subprocess.run([sys.executable, "-m", module, *words], check=True, env=os.environ)


def main(output: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        data, runs = Path(scratch, "data"), Path(scratch, "runs")
        write_cells(data, build_cells(0, SIZES))
        conversations, pairs = cell_path(data, "conversations"), cell_path(data, "train_pairs")
        run("trainer.sft", SFT | {"train": conversations, "output_dir": runs / "sft"})
        policy = runs / "sft" / "model"
        validation = json.dumps({"in_domain": str(cell_path(data, "in_domain"))})
        run(
            "trainer.reward",
            REWARD
            | {
                "backbone": policy,
                "output_dir": runs / "reward",
                "data.train": pairs,
                "data.validation": validation,
            },
        )
        output.mkdir(parents=True, exist_ok=True)
        shutil.copytree(policy, output / "policy")
        shutil.copytree(runs / "reward" / "model", output / "demo")
        shutil.copy(cell_path(data, "policy_prompts"), output / "policy_prompts.jsonl")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
