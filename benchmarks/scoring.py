"""Scoring in process: packed batches against padded ones, groups with and without sharing.

    python -m benchmarks.scoring [--rounds 5] [--texts 256] [--dtype float32] [--shape qwen2 minilm]

Prints one JSON object. Tokens are true sequence lengths, counted alike for every arm. Texts are
random token ids, fresh in every round; models are random: speed does not depend on the weights.
"""

import argparse
import json
import platform
import random
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from benchmarks import peak
from benchmarks.interleaved import Arm, measure, ratio
from benchmarks.tokenizer import plain_tokenizer
from reward_model.backbone import packed_hidden_states
from reward_model.model import RewardModel
from reward_model.packing import PackedBatch
from reward_model.scoring import batches, default_batch_tokens, score_token_ids

SHAPES: dict[str, dict[str, object]] = {
    # 30M parameters
    "qwen2": {
        "model_type": "qwen2", "hidden_size": 512, "intermediate_size": 1408,
        "num_hidden_layers": 9, "num_attention_heads": 8, "num_key_value_heads": 2,
        "vocab_size": 8192, "max_position_embeddings": 2048,
    },
    "minilm": {
        "model_type": "bert", "hidden_size": 384, "intermediate_size": 1536,
        "num_hidden_layers": 6, "num_attention_heads": 12, "vocab_size": 30522,
        "max_position_embeddings": 512, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
}  # fmt: skip
TEXTS, MEDIAN, SIGMA, LONGEST, PADDED_BATCH = 256, 180, 0.7, 1024, 16
GROUPS, PROMPT, RESPONSE, K = 4, 512, 128, 8


def checkpoint(directory: Path, shape: str) -> Path:
    """A random model of one of :data:`SHAPES`."""
    torch.manual_seed(0)
    settings = {**SHAPES[shape], "num_labels": 1, "pad_token_id": 0}
    model_type = str(settings.pop("model_type"))
    tokenizer: PreTrainedTokenizerFast = plain_tokenizer()
    config = AutoConfig.for_model(model_type, **settings)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def texts(
    round_: int, count: int, vocab_size: int, longest: int, shortest: int = 8
) -> list[list[int]]:
    """Sequences of lognormal length in arrival order; lengths fixed, tokens fresh."""
    lengths = np.random.default_rng(0).lognormal(np.log(MEDIAN), SIGMA, count)
    rng = random.Random(round_)
    return [
        rng.choices(range(1, vocab_size), k=int(length))
        for length in np.clip(lengths, shortest, longest).astype(int)
    ]


def groups(round_: int, vocab_size: int, count: int = GROUPS) -> list[list[int]]:
    """k responses each to a few prompts."""
    rng = random.Random(1000 + round_)
    sequences = []
    for _ in range(count):
        prompt = rng.choices(range(1, vocab_size), k=PROMPT)
        sequences += [prompt + rng.choices(range(1, vocab_size), k=RESPONSE) for _ in range(K)]
    return sequences


@torch.inference_mode()
def padded(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> list[float]:
    """Right-padded batches of 16 through transformers' SDPA, in the order given."""
    scores: list[float] = []
    for start in range(0, len(sequences), PADDED_BATCH):
        rows = [torch.tensor(ids) for ids in sequences[start : start + PADDED_BATCH]]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device)
        lengths = torch.tensor([len(row) for row in rows], device=model.device)
        mask = torch.arange(ids.shape[1], device=model.device)[None] < lengths[:, None]
        scores += model(input_ids=ids, attention_mask=mask.long()).logits[:, 0].float().tolist()
    return scores


def whole_last_layer(model: RewardModel, sequences: Sequence[Sequence[int]]) -> list[float]:
    """Packed scoring whose last layer computes every row, and not only those that are read."""

    def every_row(backbone: nn.Module, packed: PackedBatch, rows_N: Tensor) -> Tensor:
        return packed_hidden_states(backbone, packed)[rows_N]

    with mock.patch("reward_model.model.packed_hidden_states", every_row):
        return score_token_ids(model, sequences)


def run(shape: str, dtype: str, rounds: int, count: int) -> dict[str, object]:
    """All arms on one shape and dtype."""
    with tempfile.TemporaryDirectory() as directory:
        path = checkpoint(Path(directory), shape)
        ours = RewardModel.load(path, dtype=dtype)
        theirs = AutoModelForSequenceClassification.from_pretrained(
            path, dtype=getattr(torch, dtype), attn_implementation="sdpa"
        ).eval()
    longest = min(LONGEST, ours.contract.max_length)
    vocab = ours.encoder.vocab_size

    lengths = [len(ids) for ids in texts(0, count, vocab, longest)]
    rows = packed_rows(ours, texts(0, count, vocab, longest))

    def arms(index: int) -> dict[str, Arm]:
        mixed = texts(index, count, vocab, longest)
        by_length = sorted(mixed, key=len)
        result: dict[str, Arm] = {
            "packed": lambda: score_token_ids(ours, mixed),
            "whole_last_layer": lambda: whole_last_layer(ours, mixed),
            "matrix_products": peak.matrix_products(ours, rows),
            "padded": lambda: padded(theirs, mixed),
            "padded_sorted": lambda: padded(theirs, by_length),
        }
        if ours.causal:
            group = groups(index, vocab)
            result["groups_shared"] = lambda: score_token_ids(ours, group)
            result["groups_unshared"] = lambda: score_token_ids(ours, group, share_prefix=False)
        return result

    seconds = measure(arms, rounds)
    tokens = sum(lengths)
    linear = peak.linear_flops(ours, tokens, len(lengths))
    attention = peak.attention_flops(ours, lengths)
    rate = peak.product_flops(ours, sum(rows)) / statistics.median(seconds["matrix_products"])
    report: dict[str, object] = {
        "shape": shape,
        "dtype": dtype,
        "parameters": sum(p.numel() for p in ours.parameters()),
        "packed_tokens_per_second": tokens / statistics.median(seconds["packed"]),
        "packed_over_padded": ratio(seconds, "padded", "packed"),
        "packed_over_padded_sorted": ratio(seconds, "padded_sorted", "packed"),
        "packed_over_whole_last_layer": ratio(seconds, "whole_last_layer", "packed"),
        "differing_scores": differing(ours, texts(0, count, vocab, longest)),
        "matrix_product_gflops_per_second": rate / 1e9,
        "share_of_matrix_product_rate": (linear + attention)
        / statistics.median(seconds["packed"])
        / rate,
        "attention_share_of_flops": attention / (linear + attention),
        "share_of_time": peak.where_time_goes(ours, texts(0, count, vocab, longest)),
    }
    if ours.causal:
        saved = K * (PROMPT + RESPONSE) / (PROMPT + K * RESPONSE)
        speedup = ratio(seconds, "groups_unshared", "groups_shared")
        report["groups_speedup"] = speedup
        report["groups_speedup_possible"] = saved
    return report


def packed_rows(model: RewardModel, sequences: list[list[int]]) -> list[int]:
    """The rows of each packed batch that scores ``sequences``."""
    budget = default_batch_tokens(model.device, model.dtype)
    runs = batches(sequences, budget, share_prefix=model.causal)
    return [len(model.pack([sequences[i] for i in run]).token_ids_T) for run in runs]


def differing(model: RewardModel, sequences: list[list[int]]) -> int:
    """Scores of one packed pass whose bits are not those of the sequence alone."""
    alone = [score_token_ids(model, [one], share_prefix=False)[0] for one in sequences]
    return sum(a != b for a, b in zip(score_token_ids(model, sequences), alone, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description="Packed scoring against padded batches.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=TEXTS, help="fewer for a quick look")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], nargs="+", default=["float32"])
    parser.add_argument("--shape", choices=sorted(SHAPES), nargs="+", default=sorted(SHAPES))
    arguments = parser.parse_args()
    results = [
        run(shape, dtype, arguments.rounds, arguments.texts)
        for shape in arguments.shape
        for dtype in arguments.dtype
    ]
    machine = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    machine["processor"] = platform.processor() or platform.machine()
    print(json.dumps({"benchmark": "scoring", "machine": machine, "results": results}, indent=2))


if __name__ == "__main__":
    main()
