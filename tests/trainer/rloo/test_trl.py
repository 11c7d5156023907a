"""At staleness 0 a step has the arithmetic of TRL's RLOOTrainer: advantages, loss and gradient."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from trl import RLOOConfig, RLOOTrainer

from tests.checkpoints import tiny_checkpoint, tiny_model, tiny_tokenizer
from trainer.rloo.config import Objective, Optimizer
from trainer.rloo.learner import Learner
from trainer.rloo.policy import Policy
from trainer.rloo.samples import Group, Prompt, Sample
from trainer.rloo.step_statistics import StepStatistics

K, TEMPERATURE, BETA = 4, 0.7, 0.05


def vowels(completions, **_):
    return [sum(letter in "aeiou" for letter in text) / 10 for text in completions]


class OneStep(RLOOTrainer):
    """Keeps what its first step was given and computed, then stops."""

    def _compute_loss(self, model, inputs):
        # TRL shuffles the samples after the advantages; bring those of a prompt together again.
        rows = sorted(range(3 * K), key=lambda row: inputs["prompt_ids"][row].tolist())
        inputs = {
            name: value[rows] if isinstance(value, torch.Tensor) and value.dim() else value
            for name, value in inputs.items()
        }
        loss = super()._compute_loss(model, inputs)
        gradients = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        self.kept = (inputs, loss.item(), torch.cat([g.flatten() for g in gradients]))
        return loss


@pytest.fixture(scope="module")
def trl_step(tmp_path_factory: pytest.TempPathFactory) -> OneStep:
    path: Path = tmp_path_factory.mktemp("trl")
    tokenizer = tiny_tokenizer()
    texts = ["The capital of France", "How do I bake bread", "Mix flour, water"]
    settings = RLOOConfig(
        output_dir=str(path), per_device_train_batch_size=3 * K, num_generations=K,
        max_completion_length=24, temperature=TEMPERATURE, beta=BETA, max_steps=1,
        learning_rate=0.0, report_to=[], use_cpu=True, bf16=False, disable_tqdm=True,
        gradient_checkpointing=False, save_strategy="no", seed=3,
    )  # fmt: skip
    trainer = OneStep(
        model=str(tiny_checkpoint(path / "policy", "qwen2", "causal", seed=0)),
        reward_funcs=vowels,
        args=settings,
        train_dataset=Dataset.from_list([{"prompt": text} for text in texts]),
        processing_class=tokenizer,
    )
    reference = tiny_model("qwen2", "causal", seed=1).state_dict()
    trainer.accelerator.unwrap_model(trainer.ref_model).load_state_dict(reference)
    trainer.train()
    return trainer


def groups_of(inputs: dict[str, torch.Tensor]) -> list[Group]:
    """TRL's padded batch as groups of ours, sampled by the policy itself."""
    tokenizer = tiny_tokenizer()
    rows = []
    for ids, mask, answer, answer_mask in zip(
        inputs["prompt_ids"], inputs["prompt_mask"], inputs["completion_ids"],
        inputs["completion_mask"], strict=True,
    ):  # fmt: skip
        rows.append((tuple(ids[mask.bool()].tolist()), tuple(answer[answer_mask.bool()].tolist())))
    policy = Policy(tiny_model("qwen2", "causal", seed=0), TEMPERATURE)
    with torch.no_grad():
        tokens = policy(*zip(*rows, strict=True))
    groups = []
    for start in range(0, len(rows), K):
        samples = tuple(
            Sample(
                rows[n][1], tuple(tokens.logprobs_R[tokens.sample_R == n].tolist()), True, 0,
                tokenizer.decode(rows[n][1], skip_special_tokens=True),
            )
            for n in range(start, start + K)
        )  # fmt: skip
        rewards = tuple(vowels([sample.text for sample in samples]))
        groups.append(Group(start, Prompt(start, (), rows[start][0]), samples, rewards))
    return groups


def test_advantages_loss_and_gradient_are_trls(trl_step: OneStep) -> None:
    inputs, loss, gradient = trl_step.kept
    learner = Learner(
        Policy(tiny_model("qwen2", "causal", seed=0), TEMPERATURE),
        Policy(tiny_model("qwen2", "causal", seed=1), TEMPERATURE),
        Objective(beta=BETA, correction="clip"),
        Optimizer(),
        total_steps=1,
        max_batch_tokens=100_000,
    )
    statistics = StepStatistics()
    (part,) = learner.parts(groups_of(inputs))
    learner.backward(part, 3 * K, statistics)
    ours = torch.cat([parameter.grad.flatten() for parameter in learner.policy.parameters()])

    advantages = torch.tensor(statistics.advantages)
    assert advantages.std() > 0.01
    assert any(abs(kl) > 1 for kl in statistics.kl), "the reference must matter"
    torch.testing.assert_close(advantages, inputs["advantages"], atol=1e-5, rtol=1e-5)
    assert statistics.loss == pytest.approx(loss, abs=1e-5)
    torch.testing.assert_close(ours, gradient, atol=1e-5, rtol=1e-4)


def test_the_truncated_weight_has_the_same_gradient_there(trl_step: OneStep) -> None:
    inputs, _, gradient = trl_step.kept
    learner = Learner(
        Policy(tiny_model("qwen2", "causal", seed=0), TEMPERATURE),
        Policy(tiny_model("qwen2", "causal", seed=1), TEMPERATURE),
        Objective(beta=BETA),
        Optimizer(),
        total_steps=1,
        max_batch_tokens=100_000,
    )
    for part in learner.parts(groups_of(inputs)):
        learner.backward(part, 3 * K, StepStatistics())
    ours = torch.cat([parameter.grad.flatten() for parameter in learner.policy.parameters()])
    torch.testing.assert_close(ours, gradient, atol=1e-5, rtol=1e-4)
