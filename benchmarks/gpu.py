"""Scoring on a GPU: an 8B Llama shape, packed, beside plain transformers with padded batches.

    python -m benchmarks.gpu [--shape llama_8b] [--dtype bfloat16] [--rounds 3] [--texts 256]

Prints one JSON object. Weights are random, and both ways use the same. Tokens are true sequence
lengths, counted alike for every arm. The texts are those of :mod:`benchmarks.scoring`, and 64 more
of 1,024 tokens each, where the physical limit is easily reckoned.

What exactness costs: the same command with cuBLAS's usual workspaces, which its split sums need:
``CUBLAS_WORKSPACE_CONFIG=:4096:8 CUBLASLT_WORKSPACE_SIZE=32768``.
"""

import argparse
import json
import os
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from benchmarks import peak, scoring
from benchmarks.interleaved import Arm, measure, ratio
from benchmarks.tokenizer import plain_tokenizer
from reward_model.kernels import gpu
from reward_model.model import RewardModel
from reward_model.numerics import fix_cuda_sums
from reward_model.scoring import score_token_ids

SHAPES: dict[str, dict[str, object]] = {
    "llama_8b": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "vocab_size": 128256, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
    },
    "qwen2_500m": {
        "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
        "vocab_size": 151936, "max_position_embeddings": 8192,
    },
}  # fmt: skip
LONG, LONG_TEXTS, GROUPS = 1024, 64, 16
KINDS = {
    "attention": ("_attention",), "norm": ("_rms_norm",), "rotation": ("_rotate",),
    "gate": ("_gate",), "products": ("gemm", "nvjet", "cutlass", "xmma", "splitk", "cublas"),
}  # fmt: skip


def models(shape: str, dtype: torch.dtype) -> tuple[RewardModel, PreTrainedModel]:
    """Ours, and a plain transformers model with the very same weights, both on the GPU."""
    settings = {**SHAPES[shape], "num_labels": 1, "pad_token_id": 0}
    model_type = str(settings.pop("model_type"))
    small = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64, "head_dim": 2}
    with tempfile.TemporaryDirectory() as directory:
        config = AutoConfig.for_model(model_type, **{**settings, **small})
        AutoModelForSequenceClassification.from_config(config).save_pretrained(directory)
        plain_tokenizer().save_pretrained(directory)
        contract = RewardModel.load(Path(directory)).contract
    own_config, config = (AutoConfig.for_model(model_type, **settings) for _ in range(2))
    torch.manual_seed(0)
    with torch.device("cuda"):
        own = AutoModelForSequenceClassification.from_config(own_config, dtype=dtype).eval()
    with torch.device("meta"):
        plain = AutoModelForSequenceClassification.from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        ).eval()
    plain.load_state_dict(own.state_dict(), assign=True)
    # Computed from the configuration, so it is in no state.
    plain.model.rotary_emb = type(plain.model.rotary_emb)(config).to("cuda")
    fix_cuda_sums()
    return RewardModel(own, plain_tokenizer(), contract).eval(), plain


def run(shape: str, dtype: str, rounds: int, count: int) -> dict[str, object]:
    """All arms on one shape and dtype."""
    ours, plain = models(shape, getattr(torch, dtype))
    vocabulary = ours.encoder.vocab_size
    longest = scoring.LONGEST

    def inputs(index: int) -> dict[str, list[list[int]]]:
        return {
            "texts": scoring.texts(index, count, vocabulary, longest),
            "groups": scoring.groups(index, vocabulary, GROUPS),
            "long": scoring.texts(index, LONG_TEXTS, vocabulary, longest, shortest=LONG),
        }

    rows = scoring.packed_rows(ours, inputs(0)["texts"])

    def arms(index: int) -> dict[str, Arm]:
        given = inputs(index)
        texts, groups, long = given["texts"], given["groups"], given["long"]
        by_length = sorted(texts, key=len)
        return {
            "packed": lambda: score_token_ids(ours, texts),
            "padded": lambda: scoring.padded(plain, texts),
            "padded_sorted": lambda: scoring.padded(plain, by_length),
            "products": peak.matrix_products(ours, rows),
            "groups_shared": lambda: score_token_ids(ours, groups),
            "groups_unshared": lambda: score_token_ids(ours, groups, share_prefix=False),
            "long": lambda: score_token_ids(ours, long),
            "long_padded": lambda: scoring.padded(plain, long),
        }

    seconds = measure(arms, rounds)
    given = inputs(0)
    peak_rate = square_product_rate(getattr(torch, dtype))
    lengths = [len(ids) for ids in given["texts"]]
    product_rate = peak.product_flops(ours, sum(rows)) / statistics.median(seconds["products"])

    def flops(sequences: Sequence[Sequence[int]]) -> float:
        sizes = [len(ids) for ids in sequences]
        linear = peak.linear_flops(ours, sum(sizes), len(sizes))
        return linear + peak.attention_flops(ours, sizes)

    def share(name: str, sequences: Sequence[Sequence[int]]) -> dict[str, float]:
        taken = statistics.median(seconds[name])
        return {
            "tokens_per_second": sum(map(len, sequences)) / taken,
            "tflops_per_second": flops(sequences) / taken / 1e12,
            "share_of_square_products": flops(sequences) / taken / peak_rate,
            "share_of_these_products": flops(sequences) / taken / product_rate,
        }

    return {
        "shape": shape,
        "dtype": dtype,
        "parameters": sum(p.numel() for p in ours.parameters()),
        "square_product_tflops_per_second": peak_rate / 1e12,
        "these_products_tflops_per_second": product_rate / 1e12,
        "texts": share("packed", given["texts"]),
        "long": share("long", given["long"]),
        "packed_over_padded": ratio(seconds, "padded", "packed"),
        "packed_over_padded_sorted": ratio(seconds, "padded_sorted", "packed"),
        "packed_over_padded_long": ratio(seconds, "long_padded", "long"),
        "groups_speedup": ratio(seconds, "groups_unshared", "groups_shared"),
        "groups_speedup_possible": scoring.K
        * (scoring.PROMPT + scoring.RESPONSE)
        / (scoring.PROMPT + scoring.K * scoring.RESPONSE),
        "differing_scores": scoring.differing(ours, given["texts"]),
        "differing_scores_in_groups": scoring.differing(ours, given["groups"]),
        "largest_difference_from_padded": farthest(ours, plain, given["texts"]),
        "score_spread": statistics.stdev(score_token_ids(ours, given["texts"])),
        "mean_tokens": statistics.mean(lengths),
        "share_of_gpu_time": where_time_goes(ours, given["texts"]),
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30,
    }


def farthest(ours: RewardModel, plain: PreTrainedModel, sequences: list[list[int]]) -> float:
    pairs = zip(score_token_ids(ours, sequences), scoring.padded(plain, sequences), strict=True)
    return max(abs(a - b) for a, b in pairs)


def square_product_rate(dtype: torch.dtype, size: int = 8192) -> float:
    """FLOPs per second of one large product on random data: the machine's own peak."""
    left, right = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    taken = []
    for _ in range(8):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        left @ right
        stop.record()
        torch.cuda.synchronize()
        taken.append(start.elapsed_time(stop) / 1e3)
    return 2.0 * size**3 / statistics.median(taken[2:])


def where_time_goes(model: RewardModel, sequences: list[list[int]]) -> dict[str, float]:
    """Share of wall time of each kind of kernel; ``idle``: the GPU had nothing to do."""
    started, stopped = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with profile(activities=[ProfilerActivity.CUDA]) as record:
        started.record()
        score_token_ids(model, sequences)
        stopped.record()
        torch.cuda.synchronize()
    wall = started.elapsed_time(stopped) * 1e3
    spent: dict[str, float] = defaultdict(float)
    names: dict[str, float] = defaultdict(float)
    for event in record.key_averages():
        taken = event.device_time_total
        spent[_kind(event.key)] += taken
        names[event.key[:60]] += taken
    shares = {kind: round(taken / wall, 4) for kind, taken in spent.items()}
    top = sorted(names.items(), key=lambda one: -one[1])[:12]
    return (
        shares
        | {"idle": round(1 - sum(shares.values()), 4)}
        | {f"kernel {name}": round(taken / wall, 4) for name, taken in top}
    )


def _kind(name: str) -> str:
    lower = name.lower()
    return next((kind for kind, parts in KINDS.items() if any(p in lower for p in parts)), "other")


def main() -> None:
    parser = argparse.ArgumentParser(description="Packed scoring on a GPU against padded batches.")
    parser.add_argument("--shape", choices=sorted(SHAPES), nargs="+", default=["llama_8b"])
    parser.add_argument("--dtype", choices=["bfloat16", "float16"], nargs="+", default=["bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=scoring.TEXTS)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu needs a CUDA device")
    results = [
        run(shape, dtype, arguments.rounds, arguments.texts)
        for shape in arguments.shape
        for dtype in arguments.dtype
    ]
    machine = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "kernels": gpu.available(),
        "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    }
    print(json.dumps({"benchmark": "gpu", "machine": machine, "results": results}, indent=2))


if __name__ == "__main__":
    main()
