"""Worker: our packed scoring, or the same path without what exactness costs (``--inexact``).

    python -m benchmarks.packed_worker CHECKPOINT DTYPE [--inexact]

Without exactness: any number of rows, matrix products in whatever order MKL and oneDNN like, and
the head as one matrix product over the batch.
"""

import argparse
import os
import time

import torch
from torch import Tensor, nn

from benchmarks.worker import JsonObject, answers, serve
from reward_model import head, packing, row_cuts
from reward_model.model import RewardModel
from reward_model.scoring import score_token_ids


def drop_exactness() -> None:
    """Before the first matrix product, because MKL reads its mode there."""
    os.environ.pop("MKL_CBWR", None)
    packing.ROW_MULTIPLE = head.ROW_MULTIPLE = 1
    row_cuts.needed = lambda: False

    def rewards(hidden_NH: Tensor, linear: nn.Linear) -> Tensor:
        return linear(hidden_NH)[:, 0].float()

    head.rewards = rewards


def main() -> None:
    channel = answers()
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("dtype")
    parser.add_argument("--inexact", action="store_true")
    arguments = parser.parse_args()
    if arguments.inexact:
        drop_exactness()
    model = RewardModel.load(arguments.checkpoint, dtype=arguments.dtype)

    def handle(request: JsonObject) -> JsonObject:
        started = time.perf_counter()
        scores = score_token_ids(model, request["sequences"])
        return {"seconds": time.perf_counter() - started, "scores": scores}

    serve(handle, channel, {"threads": torch.get_num_threads()})


if __name__ == "__main__":
    main()
