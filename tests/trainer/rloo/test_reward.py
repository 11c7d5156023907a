"""Rewards: weights, shaping, missing scores, and gold that is only measured."""

import time

import pytest

from reward_model.errors import SumzeroError, UsageError
from tests.trainer.rloo.groups import sample
from trainer.rloo.config import Reward, Source
from trainer.rloo.reward import Rewards, shape

PROMPT = ({"role": "user", "content": "?"},)


class Table:
    """Scores by response text; a source like any other."""

    def __init__(self, scores):
        self.scores = scores
        self.asked = []

    async def score(self, messages, samples):
        responses = [sample.text for sample in samples]
        self.asked.append((list(messages), list(responses)))
        return tuple(self.scores[response] for response in responses)

    async def aclose(self):
        pass


def lengths(prompts, completions):
    return [float(len(text)) for text in completions]


async def failing(prompts, completions):
    return [None, float("nan")]


def named(text, ended=True, tokens=3):
    one = sample(tuple(range(tokens)), ended=ended)
    return type(one)(one.token_ids, one.logprobs, ended, 0, text)


def test_shape_by_hand():
    settings = Reward(
        url="http://x", mean=1.0, scale=2.0, clip=(-1.0, 1.0), missing_eos_penalty=0.5,
        length_penalty=0.01,
    )  # fmt: skip
    assert shape(2.0, named("a"), settings) == pytest.approx(0.5 - 0.03)
    assert shape(9.0, named("a", ended=False), settings) == pytest.approx(1.0 - 0.5 - 0.03)


def test_a_missing_eos_costs_by_default():
    settings = Reward(url="http://x")
    assert shape(0.0, named("a", ended=False), settings) == -1.0
    assert shape(0.0, named("a"), settings) == 0.0


async def test_sources_are_weighted_and_gold_is_only_measured():
    settings = Reward(
        sources=[Source(name="one", url="http://x", weight=2.0), Source(name="two", url="http://y")]
    )
    one, two, gold = (
        Table({"a": 1.0, "b": 0.0}),
        Table({"a": -0.5, "b": 3.0}),
        Table({"a": 9, "b": 8}),
    )
    rewards = Rewards(settings, {"one": one, "two": two}, gold)
    scored = await rewards.score(PROMPT, [named("a"), named("b")])
    assert scored.rewards == (1.5, 3.0)
    assert scored.measured == {"one": (1.0, 0.0), "two": (-0.5, 3.0), "gold": (9, 8)}
    assert one.asked == [(list(PROMPT), ["a", "b"])], "all responses of a prompt in one request"


async def test_a_missing_score_is_missing_and_zero_is_a_score():
    settings = Reward(
        sources=[Source(name="one", url="http://x"), Source(name="two", url="http://y")]
    )
    rewards = Rewards(
        settings, {"one": Table({"a": 0.0, "b": None}), "two": Table({"a": 0.0, "b": 1.0})}
    )
    scored = await rewards.score(PROMPT, [named("a"), named("b")])
    assert scored.rewards == (0.0, None)


async def test_functions_plain_and_asynchronous():
    module = __name__
    plain = Reward(sources=[Source(function=f"{module}:lengths")])
    async with Rewards.open(plain) as rewards:
        assert (await rewards.score(PROMPT, [named("abc"), named("")])).rewards == (3.0, 0.0)
    broken = Reward(sources=[Source(function=f"{module}:failing")])
    async with Rewards.open(broken) as rewards:
        assert (await rewards.score(PROMPT, [named("a"), named("b")])).rewards == (None, None)


def endless(prompts, completions):
    time.sleep(3600)


async def test_a_function_that_hangs_is_given_up_with_its_name():
    settings = Reward(sources=[Source(function=f"{__name__}:endless")], timeout=0.2)
    async with Rewards.open(settings) as rewards:
        with pytest.raises(SumzeroError, match=r"endless gave no scores within 0.2 s"):
            await rewards.score(PROMPT, [named("a"), named("b")])


@pytest.mark.parametrize("function", ["no_such_module:f", "math:no_such_name", "math"])
def test_an_unknown_function_is_one_clear_line(function):
    with pytest.raises(UsageError, match="module:name"):
        Rewards.open(Reward(sources=[Source(function=function)]))


def test_settings_want_exactly_one_way_to_name_the_source():
    with pytest.raises(ValueError, match="give either url"):
        Reward()
    with pytest.raises(ValueError, match="give either url"):
        Source(url="http://x", function="a:b")
    with pytest.raises(ValueError, match="names of their own"):
        Reward(sources=[Source(url="http://x"), Source(url="http://y")])
