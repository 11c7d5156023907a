"""How many scores differ from the reference, over random placements in packed batches.

    python -m benchmarks.exactness [--placements 10000] [--dtype float32 bfloat16] [--device cuda]

Prints one JSON object. The reference is the same build and weights, one sequence per forward,
nothing shared. A placement is one sequence in one random batch, among random neighbours, some of
which continue the same prompts. Scores are compared bit for bit.
"""

import argparse
import json
import random
import tempfile
from pathlib import Path

import torch
from rich.progress import track
from transformers import AutoConfig, AutoModelForSequenceClassification

from benchmarks.scoring import checkpoint
from benchmarks.tokenizer import plain_tokenizer
from reward_model.model import RewardModel
from reward_model.scoring import score_token_ids

DECODERS = ("llama", "qwen2", "qwen3", "mistral", "gemma2")
ENCODERS = ("bert", "modernbert")
POOL, LARGEST_BATCH = 160, 48
SMALL = {
    "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 6,
    "vocab_size": 2048, "max_position_embeddings": 1024, "num_labels": 1, "pad_token_id": 0,
    "bos_token_id": None, "eos_token_id": 1,
}  # fmt: skip
SPECIFIC: dict[str, dict[str, object]] = {
    "llama": {"num_key_value_heads": 6},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 32},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 128},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 32, "sliding_window": 96},
    "bert": {},
    "modernbert": {"cls_token_id": 2, "sep_token_id": 1, "local_attention": 128},
}


def small_checkpoint(directory: Path, architecture: str) -> Path:
    """A random model of at most 5M parameters."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **{**SMALL, **SPECIFIC[architecture]})
    AutoModelForSequenceClassification.from_config(config).save_pretrained(directory)
    plain_tokenizer().save_pretrained(directory)
    return directory


def pool(rng: random.Random, vocabulary: int, longest: int) -> list[list[int]]:
    """Lognormal lengths; half of the sequences continue one of eight prompts."""
    prompts = [rng.choices(range(1, vocabulary), k=rng.randrange(20, 300)) for _ in range(8)]
    sequences = []
    for index in range(POOL):
        length = max(1, int(rng.lognormvariate(4.2, 0.9)))
        start = rng.choice(prompts) if index % 2 else []
        sequences.append([*start, *rng.choices(range(1, vocabulary), k=length)][:longest])
    return sequences


def differing(model: RewardModel, placements: int, label: str) -> dict[str, int]:
    """Scores that are not bit for bit what the sequence scores alone."""
    rng = random.Random(0)
    sequences = pool(rng, model.encoder.vocab_size, model.contract.max_length)
    alone = [score_token_ids(model, [one], share_prefix=False)[0] for one in sequences]
    sizes: list[int] = []
    while (left := placements - sum(sizes)) > 0:
        sizes.append(min(left, rng.randint(1, LARGEST_BATCH)))
    wrong = 0
    for size in track(sizes, description=label, transient=True):
        members = [rng.randrange(POOL) for _ in range(size)]
        scores = score_token_ids(model, [sequences[member] for member in members])
        wrong += sum(alone[m] != score for m, score in zip(members, scores, strict=True))
    return {"placements": placements, "batches": len(sizes), "differing": wrong}


def run(name: str, dtype: str, placements: int, device: str) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as directory:
        make = checkpoint if name == "30M" else small_checkpoint
        path = make(Path(directory), "qwen2" if name == "30M" else name)
        model = RewardModel.load(path, dtype=dtype, device=device)
    assert model.obstacle is None, "not packed: there is nothing to show"
    parameters = sum(p.numel() for p in model.parameters())
    result = differing(model, placements, f"{name} {dtype}")
    return {"shape": name, "dtype": dtype, "parameters": parameters, **result}


def main() -> None:
    parser = argparse.ArgumentParser(description="Scores that differ from batch size 1.")
    parser.add_argument("--placements", type=int, default=10_000)
    parser.add_argument("--large", type=int, default=500, help="placements on the 30M shape")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], nargs="+",
        default=["float32", "bfloat16"],
    )  # fmt: skip
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    results = [
        run(
            name,
            dtype,
            arguments.large if name == "30M" else arguments.placements,
            arguments.device,
        )
        for dtype in arguments.dtype
        for name in (*DECODERS, *ENCODERS, "30M")
    ]
    print(json.dumps({"benchmark": "exactness", "device": arguments.device,
                      "threads": torch.get_num_threads(),
                      "results": results}, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
