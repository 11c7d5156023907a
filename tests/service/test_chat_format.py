"""Texts in the policy's chat template, scored in the reward model's."""

from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from service.app import create_app
from service.embedded import EmbeddedScorer
from service.metrics import Metrics
from service.settings import ModelSettings, ServiceSettings

LLAMA3 = (
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nBread.<|eot_id|>"
)


async def test_openrlhf_text_of_another_template_scores_as_its_messages(checkpoint: Path) -> None:
    settings = ServiceSettings(
        model=(
            ModelSettings(name="reads", path=checkpoint, chat_format="llama3"),
            ModelSettings(name="plain", path=checkpoint),
        )
    )
    scorer = EmbeddedScorer(settings, Metrics())
    await scorer.load()
    transport = httpx.ASGITransport(create_app(scorer, settings, metrics=scorer.metrics))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as http:
        items = [{"prompt": "Hi", "responses": ["Bread."]}, {"text": LLAMA3}, {"text": "Hi"}]
        answer = (await http.post("/score", json={"items": items})).json()
        by_messages, by_text, unread = answer["results"]
        assert by_text["scores"] == by_messages["scores"]
        assert unread["scores"] == [None]
        assert unread["errors"][0]["type"] == "template_failed"
        query = {"query": [LLAMA3]}
        rewards = (await http.post("/get_reward", json=query)).json()["rewards"]
        assert rewards == by_messages["scores"]
        plain = (await http.post("/get_reward?model=plain", json=query)).json()["rewards"]
        assert plain != rewards
        models = (await http.get("/v1/models")).json()["data"]
        assert [model["details"]["chat_format"] for model in models] == ["llama3", ""]
    await scorer.close()


def test_an_unknown_format_is_refused_before_any_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="'lama3' is none of chatml"):
        ServiceSettings(model=(ModelSettings(name="m", path=tmp_path),), chat_format="lama3")
