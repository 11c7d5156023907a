import httpx

from trainer.demo.gold import gold
from trainer.demo.gold_server import GoldServer

PROMPT = "Tell me about the mill."


def test_scores_over_http_are_the_function_s() -> None:
    responses = ["The mill has flour.", "", "The mill has ducks."]
    item = {"prompt": [{"role": "user", "content": PROMPT}], "responses": responses}
    with GoldServer() as server:
        answer = httpx.post(f"{server.url}/score", json={"items": [item]})
        assert httpx.get(f"{server.url}/ready").status_code == 200
    assert answer.status_code == 200
    expected = [gold(PROMPT, response) for response in responses]
    assert answer.json()["results"][0]["scores"] == expected


def test_other_forms_are_refused_by_name() -> None:
    with GoldServer() as server:
        answer = httpx.post(f"{server.url}/score", json={"items": [{"text": "a"}]})
        wrong = httpx.post(f"{server.url}/get_reward", json={"query": []})
    assert answer.status_code == 422
    assert "prompt + responses" in answer.json()["error"]["message"]
    assert wrong.status_code == 404


def test_the_port_is_free_again_afterwards() -> None:
    with GoldServer() as server:
        url = server.url
    try:
        httpx.get(f"{url}/ready")
    except httpx.ConnectError:
        return
    raise AssertionError("the gold server still answers")
