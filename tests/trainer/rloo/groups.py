"""Groups of samples made up for tests."""

import torch

from reward_model.encode import Message
from trainer.rloo.policy import Policy
from trainer.rloo.samples import Group, Prompt, Sample


def prompt(index: int = 0, token_ids: tuple[int, ...] = (1, 50, 60, 2)) -> Prompt:
    return Prompt(index, (Message(role="user", content=f"prompt {index}"),), token_ids)


def sample(token_ids: tuple[int, ...], version: int = 0, ended: bool = True) -> Sample:
    return Sample(token_ids, (-1.0,) * len(token_ids), ended, version, f"text {token_ids}")


def random_groups(
    policy: Policy, *, groups: int = 3, k: int = 4, prompt_tokens: int = 100, seed: int = 0
) -> list[Group]:
    """Groups of random responses of random lengths; the sampler is ``policy`` itself."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 300, (count,), generator=generator).tolist())

    made = []
    for index in range(groups):
        asked = prompt(index, draw(prompt_tokens + index))
        responses = [draw(int(torch.randint(1, 40, (1,), generator=generator))) for _ in range(k)]
        with torch.no_grad():
            tokens = policy([asked.token_ids] * k, responses)
        samples = tuple(
            Sample(
                response, tuple(tokens.logprobs_R[tokens.sample_R == n].tolist()), True, 0, str(n)
            )
            for n, response in enumerate(responses)
        )
        rewards = tuple(torch.randn(k, generator=generator).tolist())
        made.append(Group(index, asked, samples, rewards, {"reward": rewards}))
    return made
