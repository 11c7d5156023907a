"""One rank of ``test_reward_ranks``: the gradient of a batch that is cut over ranks.

    torchrun --nproc_per_node 2 -m tests.integration.reward_gradient_rank OUT SIZE COUNT DTYPE SCOPE

Rank 0 writes the gradient, averaged over ranks as a data-parallel wrapper does, to OUT.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, distributed

from tests.trainer.reward.test_objective import CPU, ToyReward, cut, make_pairs
from trainer.reward.config import LossSettings
from trainer.reward.examples import rank_share
from trainer.reward.objective import MicroBatch, accumulate_gradients
from trainer.reward.ranks import largest_over_ranks


def main(out: str, size: str, count: str, dtype: str, scope: str) -> None:
    distributed.init_process_group("gloo")
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    pairs = make_pairs(int(count))
    share = [pairs[index] for index in rank_share(range(len(pairs)), rank, ranks)]
    micro_batches = cut(share, int(size))
    wanted = largest_over_ranks(len(micro_batches), CPU)
    micro_batches += [MicroBatch([pairs[0][0]], idle=True)] * (wanted - len(micro_batches))
    model = ToyReward(getattr(torch, dtype))
    loss = LossSettings.model_validate({"name": "bt_bsr", "lambda": 1.0, "scope": scope})
    outcome = accumulate_gradients(micro_batches, model, Tensor.backward, loss, CPU)
    parts = [parameter.grad for parameter in model.parameters()]
    gradient = torch.cat([part.flatten() for part in parts if part is not None])
    distributed.all_reduce(gradient)
    if rank == 0:
        rewards = outcome.rows_B5[:, :2].contiguous()
        save_file({"gradient": gradient / ranks, "rewards": rewards}, Path(out))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
