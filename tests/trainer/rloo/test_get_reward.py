"""OpenRLHF's ``/get_reward`` over real HTTP, with a server written from the protocol."""

import socket

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from reward_model.errors import SumzeroError
from tests.checkpoints import tiny_tokenizer
from tests.trainer.rloo.http_servers import serving
from trainer.rloo.config import Reward
from trainer.rloo.reward import Rewards
from trainer.rloo.samples import Sample

TOKENIZER = tiny_tokenizer()
MESSAGES = (
    {"role": "user", "content": "Bake bread?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "How?"},
)


def answer(text: str, ended: bool = True) -> Sample:
    ids = tuple(TOKENIZER(text)["input_ids"]) + ((TOKENIZER.eos_token_id,) if ended else ())
    return Sample(ids, (-1.0,) * len(ids), ended, 0, text)


SAMPLES = (answer("Mix flour."), answer("Let the dough", ended=False), answer("Rest."))


class Server:
    """What the protocol asks of a server; ``answers`` go out one by one before the real thing."""

    def __init__(self, *answers) -> None:
        self.answers = list(answers)
        self.bodies = []

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/get_reward", self.score, methods=["POST"])])

    async def score(self, request) -> JSONResponse:
        self.bodies.append(await request.json())
        if self.answers:
            status, body = self.answers.pop(0)
            return JSONResponse(body, status_code=status)
        lengths = [float(len(text)) for text in self.bodies[-1]["query"]]
        return JSONResponse({"rewards": lengths, "scores": lengths, "extra_logs": {"a": 1.0}})


async def score(*urls: str, timeout: float = 5.0):
    settings = Reward(url=list(urls), timeout=timeout, missing_eos_penalty=0.5)
    async with Rewards.open(settings, TOKENIZER) as rewards:
        return await rewards.score(MESSAGES, SAMPLES)


async def test_a_query_is_prompt_and_response_as_the_policy_wrote_them():
    server = Server()
    with serving(server.app()) as url:
        scored = await score(f"{url}/get_reward")
    (body,) = server.bodies
    prompt = TOKENIZER.apply_chat_template(
        list(MESSAGES), tokenize=False, add_generation_prompt=True
    )
    assert body["query"] == [
        prompt + "Mix flour.<|im_end|>", prompt + "Let the dough", prompt + "Rest.<|im_end|>",
    ]  # fmt: skip
    assert body["prompts"] == [prompt] * 3
    assert len(body["labels"]) == 3
    raw = tuple(float(len(text)) for text in body["query"])
    assert scored.measured["reward"] == raw
    assert scored.rewards == (raw[0], raw[1] - 0.5, raw[2])


async def test_passing_faults_are_tried_again_and_no_score_is_missing():
    server = Server((503, {}), (429, {}), (200, {"rewards": [1.0, None, 2.0]}))
    with serving(server.app()) as url:
        assert (await score(f"{url}/get_reward")).rewards == (1.0, None, 2.0)
    assert len(server.bodies) == 3
    server = Server((422, {"error": {}}))
    with serving(server.app()) as url:
        assert (await score(f"{url}/get_reward")).rewards == (None,) * 3
    assert len(server.bodies) == 1


async def test_another_url_stands_in():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}/get_reward"
        with serving(Server().app()) as url:
            assert None not in (await score(dead, f"{url}/get_reward")).rewards


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ((401, {}), "401"),
        ((200, {"rewards": [1.0]}), "1 rewards for 3 responses"),
        ((200, {"scores": []}), "without a list of rewards"),
    ],
)
async def test_what_will_not_pass_ends_the_run_with_its_cause(reply, says):
    with (
        serving(Server(reply).app()) as url,
        pytest.raises(SumzeroError, match=says) as caught,
    ):
        await score(f"{url}/get_reward?token=secret")
    assert "secret" not in str(caught.value)


async def test_a_server_that_stays_away_is_given_up():
    with pytest.raises(SumzeroError, match="no scores within 1 s"):
        await score("http://127.0.0.1:9/get_reward", timeout=1.0)
