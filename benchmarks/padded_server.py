"""A reward server as trainers bring along: the baseline of ``benchmarks.serving``.

It behaves as OpenRLHF's: one request at a time, a request's sequences right-padded to the longest
of them and computed as one batch, nothing shared and nothing batched across requests. Token ids in
place of texts, as from everybody in that benchmark.

    python -m benchmarks.padded_server --model DIR --dtype float32 --port 8001
"""

import argparse

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoModelForSequenceClassification, PreTrainedModel


class Query(BaseModel):
    query: list[list[int]]


def create_app(model: PreTrainedModel) -> FastAPI:
    app = FastAPI()

    @app.get("/health")
    async def health() -> str:
        return "alive"

    @app.post("/get_reward")
    async def get_reward(body: Query) -> dict[str, list[float]]:
        # On the event loop, so that the next request waits for this one.
        return {"rewards": padded_scores(model, body.query)}

    return app


@torch.inference_mode()
def padded_scores(model: PreTrainedModel, sequences: list[list[int]]) -> list[float]:
    rows = [torch.tensor(ids) for ids in sequences]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.arange(ids.shape[1])[None] < torch.tensor([len(row) for row in rows])[:, None]
    logits = model(input_ids=ids, attention_mask=mask.long()).logits
    scores: list[float] = logits[:, 0].float().tolist()
    return scores


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--port", type=int, default=8001)
    arguments = parser.parse_args()
    model = AutoModelForSequenceClassification.from_pretrained(
        arguments.model, attn_implementation="sdpa", dtype=getattr(torch, arguments.dtype)
    ).eval()
    uvicorn.run(create_app(model), port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
