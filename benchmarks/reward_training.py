"""Training a reward model: packed pairs against TRL's RewardTrainer.

    python -m benchmarks.reward_training [--pairs pairs.jsonl] [--rounds 4]

Prints one JSON object. Both start from the same weights, in the same dtype, with the loss ``bt``,
AdamW and the same optimiser batches. TRL's arms run ``RewardTrainer.train`` itself, timed from its
first step to its last: its defaults, and every micro-batch size with random and with length-grouped
order, of which the fastest few go on into the interleaved rounds. Tokens are true sequence
lengths, counted alike. Without ``--pairs`` lengths are drawn like those of AlpacaEval pairs.
``long_prompts``: pairs with a prompt of 512 tokens and responses of 128.
"""

import argparse
import json
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset, disable_progress_bars
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.utils import logging as transformers_logging
from trl import RewardConfig, RewardTrainer

from benchmarks.interleaved import ratio
from benchmarks.scoring import SHAPES, checkpoint
from benchmarks.tokenizer import plain_tokenizer
from reward_model.model import RewardModel
from reward_model.packing import count_computed_tokens
from trainer.data.preferences import read_pairs
from trainer.reward.config import RewardSettings
from trainer.reward.examples import Example
from trainer.reward.learner import Learner
from trainer.sft.scratch import train_tokenizer

SMALL: dict[str, dict[str, object]] = {
    # 9M parameters
    "qwen2_small": {
        "model_type": "qwen2", "hidden_size": 256, "intermediate_size": 704,
        "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 8192, "max_position_embeddings": 2048,
    },
}  # fmt: skip
PROMPT, RESPONSE = 512, 128
BATCHES = 2
"""Optimiser batches per round; TRL's grouping by length may sort over all of them."""
KEPT = 2
DEFAULTS = "trl_defaults"

Pair = tuple[list[int], list[int]]
Arm = Callable[[Sequence[Pair]], float]
"""Trains on the pairs of one round; seconds."""


@dataclass(frozen=True)
class Setting:
    """What both trainers are given."""

    path: Path
    batch_pairs: int
    dtype: str
    workspace: Path


class Stopwatch(TrainerCallback):
    """Seconds between the first and the last step of a Trainer, its set-up left out."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.started = time.perf_counter()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.seconds = time.perf_counter() - self.started


def trl_arm(
    setting: Setting,
    model: PreTrainedModel,
    *,
    micro_batch: int,
    grouped: bool = False,
    gradient_checkpointing: bool = False,
) -> Arm:
    """RewardTrainer on a model that it keeps from round to round."""
    micro_batch = min(micro_batch, setting.batch_pairs)
    options = RewardConfig(
        output_dir=str(setting.workspace),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=setting.batch_pairs // micro_batch,
        gradient_checkpointing=gradient_checkpointing,
        num_train_epochs=1,
        train_sampling_strategy="sequential" if grouped else "random",
        max_length=None,
        bf16=setting.dtype == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )

    def train(pairs: Sequence[Pair]) -> float:
        if grouped:  # what group_by_length does; RewardTrainer loses the lengths it would need
            pairs = sorted(pairs, key=lambda pair: max(map(len, pair)), reverse=True)
        rows = [{"chosen_ids": chosen, "rejected_ids": rejected} for chosen, rejected in pairs]
        watch = Stopwatch()
        # Else it refuses another precision than our Accelerator, the first, was made with.
        AcceleratorState._reset_state()
        trainer = RewardTrainer(
            model=model,
            args=options,
            train_dataset=Dataset.from_list(rows),
            processing_class=plain_tokenizer(),
            callbacks=[watch],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return watch.seconds

    return train


def our_arm(setting: Setting, model: RewardModel, micro_batch_tokens: int) -> Arm:
    """The trainer's own step on the same optimiser batches."""
    settings = RewardSettings.model_validate(
        {
            "backbone": str(setting.path),
            "output_dir": setting.workspace,
            "loss": {"name": "bt"},
            "data": {"train": "unused"},
            "optimiser": {"lr": 1e-5, "batch_pairs": setting.batch_pairs},
            "compute": {"precision": setting.dtype, "micro_batch_tokens": micro_batch_tokens},
        }
    )

    def train(pairs: Sequence[Pair]) -> float:
        # Anew each time, like TRL's: its Trainer resets the state that accelerate shares.
        learner = Learner(model, settings, use_margin=False)
        examples = [example(pair, causal=model.causal) for pair in pairs]
        started = time.perf_counter()
        for start in range(0, len(examples), setting.batch_pairs):
            learner.step(examples[start : start + setting.batch_pairs], 1e-5)
        return time.perf_counter() - started

    return train


def open_padded(path: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        path, attn_implementation="sdpa", dtype=torch.float32
    )
    return model


def example(pair: Pair, *, causal: bool) -> Example:
    chosen, rejected = (np.asarray(side, dtype=np.int32) for side in pair)
    return Example(chosen, rejected, 0.0, count_computed_tokens(pair, causal=causal))


def compare(
    setting: Setting, arguments: argparse.Namespace, draw: Callable[[int], list[Pair]]
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of the arms that go on, per round, and of all arms in the screening round."""
    packed, padded = RewardModel.load(setting.path), open_padded(setting.path)
    ours = {f"packed_{tokens}": our_arm(setting, packed, tokens) for tokens in arguments.our_tokens}
    theirs = {
        f"trl_{size}_{'grouped' if grouped else 'random'}": trl_arm(
            setting, padded, micro_batch=size, grouped=grouped
        )
        for size, grouped in product(arguments.trl_micro_batches, (False, True))
    }
    arms = ours | theirs
    arms[DEFAULTS] = trl_arm(
        setting, open_padded(setting.path), micro_batch=8, gradient_checkpointing=True
    )
    first = draw(0)
    for arm in arms.values():  # the first pass of anything is slow: allocation, caches
        arm(first[:2])
    screened = {name: arm(first) for name, arm in arms.items()}
    kept = [DEFAULTS, min(ours, key=screened.__getitem__)]
    kept += sorted(theirs, key=screened.__getitem__)[:KEPT]
    rng = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in kept}
    for index in range(1, arguments.rounds + 1):
        pairs = draw(index)
        for name in rng.sample(kept, len(kept)):
            seconds[name].append(arms[name](pairs))
    return seconds, screened


def run(
    shape: str, kind: str, source: str | None, arguments: argparse.Namespace
) -> dict[str, object]:
    """All arms on one shape and one kind of pairs."""
    with tempfile.TemporaryDirectory() as directory:
        SHAPES.update(SMALL)
        path = checkpoint(Path(directory) / "model", shape)
        model = RewardModel.load(path)
        setting = Setting(path, arguments.batch_pairs, arguments.dtype, Path(directory))
        count, vocab = BATCHES * arguments.batch_pairs, model.encoder.vocab_size
        if kind == "long_prompts":
            lengths = [(PROMPT, RESPONSE, RESPONSE)] * (count * (arguments.rounds + 1))
        else:
            lengths = real_lengths(source, model) if source else drawn_lengths(2000)
        longest = model.contract.max_length
        lengths = [one for one in lengths if one[0] + max(one[1:]) <= longest]

        def draw(index: int) -> list[Pair]:
            rng = random.Random(index)
            chosen = [lengths[(index * count + place) % len(lengths)] for place in range(count)]
            return [pair(one, vocab, rng) for one in chosen]

        seconds, screened = compare(setting, arguments, draw)
        pairs = draw(1)
    tokens = sum(len(side) for one in pairs for side in one)
    computed = sum(count_computed_tokens(one, causal=model.causal) for one in pairs)
    packed = next(name for name in seconds if name.startswith("packed"))
    others = [name for name in seconds if name not in (packed, DEFAULTS)]
    fastest = min(others, key=lambda name: statistics.median(seconds[name]))
    return {
        "shape": shape,
        "pairs": kind,
        "dtype": arguments.dtype,
        "batch_pairs": arguments.batch_pairs,
        "parameters": sum(p.numel() for p in model.parameters()),
        "mean_length": tokens / (2 * count),
        "shared_token_share": 1 - computed / tokens,
        "packed_tokens_per_second": tokens / seconds[packed][0],
        "packed_arm": packed,
        "trl_fastest_arm": fastest,
        "over_trl_fastest": ratio(seconds, fastest, packed),
        "over_trl_defaults": ratio(seconds, DEFAULTS, packed),
        "screening_seconds": {name: round(value, 3) for name, value in screened.items()},
    }


def real_lengths(source: str, model: RewardModel) -> list[tuple[int, int, int]]:
    """(prompt, chosen, rejected) token counts of real pairs, under the shape's own vocabulary size.

    The tokenizer is a byte-level BPE learned from the pairs, as large as the model's vocabulary.
    """
    found = read_pairs(source, limit=3000).pairs
    texts = [text for one in found for text in (one.chosen_response, one.rejected_response)]
    tokenizer = train_tokenizer(texts, min(8192, model.encoder.vocab_size))

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    lengths = []
    for one in found:
        turns = [one.chosen] if isinstance(one.chosen, str) else [
            message["content"] for message in one.chosen[:-1]
        ]  # fmt: skip
        prompt = sum(count(text) + 8 for text in turns)  # 8: the template around a turn
        lengths.append((prompt, count(one.chosen_response) + 2, count(one.rejected_response) + 2))
    return lengths


def drawn_lengths(count: int) -> list[tuple[int, int, int]]:
    rng = np.random.default_rng(0)
    prompts = np.clip(rng.lognormal(np.log(35), 0.7, count), 12, 300)
    sides = np.clip(rng.lognormal(np.log(220), 0.7, (count, 2)), 5, 900)
    return [
        (int(prompt), int(one), int(two)) for prompt, (one, two) in zip(prompts, sides, strict=True)
    ]


def pair(lengths: tuple[int, int, int], vocab: int, rng: random.Random) -> Pair:
    """Random token ids of the given lengths: speed does not depend on what is said."""
    prompt, chosen, rejected = (rng.choices(range(1, vocab), k=length) for length in lengths)
    return prompt + chosen, prompt + rejected


def main() -> None:
    parser = argparse.ArgumentParser(description="Packed training against TRL's RewardTrainer.")
    parser.add_argument("--pairs", help="preference pairs whose lengths to take")
    parser.add_argument("--kind", choices=["pairs", "long_prompts"], nargs="+",
                        default=["pairs", "long_prompts"])  # fmt: skip
    parser.add_argument("--shape", choices=["qwen2_small", "qwen2", "minilm"], nargs="+",
                        default=["qwen2_small", "minilm"])  # fmt: skip
    parser.add_argument("--trl_micro_batches", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--our_tokens", type=int, nargs="+", default=[2048, 16384])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--batch_pairs", type=int, default=16)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    arguments = parser.parse_args()
    disable_progress_bars()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    results = [
        run(shape, kind, arguments.pairs, arguments)
        for shape in arguments.shape
        for kind in arguments.kind
        # An encoder shares no prefix, and reads no more than 512 tokens.
        if not (shape == "minilm" and kind == "long_prompts")
    ]
    machine = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    machine["processor"] = platform.processor() or platform.machine()
    report = {"benchmark": "reward_training", "machine": machine, "results": results}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
