"""The embedded generator's samples against transformers' own ``generate``.

    python -m benchmarks.rloo_decoding [--rounds 3] [--prompts 16]

Prints one JSON object. k = 4 samples of 96 tokens to each prompt of 32…256 tokens, all in one
batch, padded on the left, fresh in every round; nothing ends before. Both arms run the same model
and draw at the same temperature; ``generate`` has each prompt four times (``num_return_sequences``)
and does not give the log-probabilities that the learner needs.
"""

import argparse
import json
import random
import statistics

import torch
from transformers import PreTrainedModel

from benchmarks.interleaved import Arm, measure, ratio
from benchmarks.rloo_learner import TEMPERATURE, K, causal_model
from trainer.rloo.decoding import decode_grouped
from trainer.rloo.embedded import sample_rows
from trainer.rloo.generation import Sampling

SHORTEST, LONGEST, NEW_TOKENS = 32, 256, 96


def prompts(round_: int, count: int) -> list[list[int]]:
    rng = random.Random(round_)
    return [rng.choices(range(1, 8192), k=rng.randint(SHORTEST, LONGEST)) for _ in range(count)]


@torch.inference_mode()
def generate(model: PreTrainedModel, batch: list[list[int]]) -> None:
    longest = max(map(len, batch))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in batch])
    places = torch.arange(longest)[None]
    mask = places >= torch.tensor([[longest - len(prompt)] for prompt in batch])
    found = model.generate(
        ids,
        attention_mask=mask.long(),
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=0,
        num_return_sequences=K,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        pad_token_id=0,
    )
    assert found.shape == (len(batch) * K, longest + NEW_TOKENS)


def main() -> None:
    parser = argparse.ArgumentParser(description="The embedded generator against generate().")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=16)
    arguments = parser.parse_args()
    ours, theirs = causal_model(), causal_model()
    decode_grouped(ours)
    sampling = Sampling(TEMPERATURE, NEW_TOKENS, ())

    def arms(index: int) -> dict[str, Arm]:
        batch = prompts(index, arguments.prompts)
        requests = [(prompt, K, place) for place, prompt in enumerate(batch)]
        return {
            "embedded": lambda: sample_rows(ours, requests, sampling),
            "generate": lambda: generate(theirs, batch),
        }

    seconds = measure(arms, arguments.rounds)
    tokens = arguments.prompts * K * NEW_TOKENS
    report = {
        "benchmark": "rloo_decoding",
        "threads": torch.get_num_threads(),
        "tokens_per_second": {name: tokens / statistics.median(s) for name, s in seconds.items()},
        "embedded_over_generate": ratio(seconds, "generate", "embedded"),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
