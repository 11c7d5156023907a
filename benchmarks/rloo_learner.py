"""The learner's step with the group's prompt computed once, against padded sequences.

    python -m benchmarks.rloo_learner [--rounds 3] [--groups 4]

Prints one JSON object. Groups of k = 4 samples, 256 prompt tokens, R uniform in 32…224, fresh in
every round; tokens are true lengths, counted alike. Both arms make the same optimiser step: policy
and frozen reference log-probabilities, leave-one-out advantages, backward, AdamW. The padded arm is
plain transformers with SDPA, right-padded one group at a time, logits of the responses only.
"""

import argparse
import json
import random
import statistics

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from benchmarks.interleaved import Arm, measure, ratio
from benchmarks.scoring import SHAPES
from trainer.rloo.advantage import leave_one_out
from trainer.rloo.config import Objective, Optimizer
from trainer.rloo.learner import Learner
from trainer.rloo.policy import Policy
from trainer.rloo.samples import Group, Prompt, Sample

PROMPT, SHORTEST, LONGEST, K = 256, 32, 224, 4
BETA, TEMPERATURE, BATCH_TOKENS = 0.05, 0.7, 4096


def causal_model() -> PreTrainedModel:
    torch.manual_seed(0)
    settings = dict(SHAPES["qwen2"])
    config = AutoConfig.for_model(str(settings.pop("model_type")), **settings)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


def groups(round_: int, count: int) -> list[Group]:
    rng = random.Random(round_)
    made = []
    for position in range(count):
        prompt = Prompt(position, (), tuple(rng.choices(range(8192), k=PROMPT)))
        samples = []
        for _ in range(K):
            ids = tuple(rng.choices(range(8192), k=rng.randint(SHORTEST, LONGEST)))
            samples.append(Sample(ids, (-9.0,) * len(ids), True, 0, ""))
        made.append(
            Group(position, prompt, tuple(samples), tuple(rng.gauss(0, 1) for _ in range(K)))
        )
    return made


def padded_logprobs(model: PreTrainedModel, group: Group) -> Tensor:
    """Sum of the log-probabilities of each response, [K]."""
    rows = [torch.tensor([*group.prompt.token_ids, *sample.token_ids]) for sample in group.samples]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.arange(ids.shape[1])[None] < torch.tensor([len(row) for row in rows])[:, None]
    keep = ids.shape[1] - PROMPT + 1
    logits = model(input_ids=ids, attention_mask=mask.long(), logits_to_keep=keep).logits[:, :-1]
    logprobs = torch.log_softmax(logits.float() / TEMPERATURE, -1)
    chosen = logprobs.gather(-1, ids[:, PROMPT:, None])[..., 0]
    return (chosen * mask[:, PROMPT:]).sum(-1)


def padded_step(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    batch: list[Group],
) -> None:
    optimizer.zero_grad(set_to_none=True)
    count = sum(len(group.samples) for group in batch)
    for group in batch:
        with torch.no_grad():
            anchor = padded_logprobs(reference, group)
        logprobs = padded_logprobs(model, group)
        returns = torch.tensor(group.rewards) - BETA * (logprobs.detach() - anchor)
        advantages = leave_one_out(returns[None], torch.ones(1, K, dtype=torch.bool))[0]
        (-(advantages * logprobs).sum() / count).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description="The RLOO learner against padded sequences.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--groups", type=int, default=4)
    arguments = parser.parse_args()
    learner = Learner(
        Policy(causal_model(), TEMPERATURE),
        Policy(causal_model(), TEMPERATURE),
        Objective(beta=BETA),
        Optimizer(),
        total_steps=1000,
        max_batch_tokens=BATCH_TOKENS,
    )
    model, reference = causal_model(), causal_model().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def arms(index: int) -> dict[str, Arm]:
        batch = groups(index, arguments.groups)
        return {
            "shared": lambda: learner.step(batch, index),
            "padded": lambda: padded_step(model, reference, optimizer, batch),
        }

    seconds = measure(arms, arguments.rounds)
    tokens = statistics.fmean(
        sum(PROMPT + len(sample.token_ids) for group in groups(index, arguments.groups)
            for sample in group.samples)
        for index in range(1, arguments.rounds + 1)
    )  # fmt: skip
    report = {
        "benchmark": "rloo_learner",
        "threads": torch.get_num_threads(),
        "tokens_per_second": {name: tokens / statistics.median(s) for name, s in seconds.items()},
        "shared_over_padded": ratio(seconds, "padded", "shared"),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
