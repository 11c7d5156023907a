"""Sums and gathers over ranks; with one process they return what they were given."""

import torch
from torch import Tensor, distributed


def _alone() -> bool:
    return not (distributed.is_available() and distributed.is_initialized())


def world_size() -> int:
    return 1 if _alone() else distributed.get_world_size()


def sum_over_ranks(value: Tensor) -> Tensor:
    """The elementwise sum of all ranks' ``value``; a new tensor."""
    total = value.detach().clone()
    if not _alone():
        distributed.all_reduce(total)
    return total


def largest_over_ranks(value: int, device: torch.device) -> int:
    """The largest of all ranks' ``value``."""
    largest = torch.tensor(value, device=device)
    if not _alone():
        distributed.all_reduce(largest, op=distributed.ReduceOp.MAX)
    return int(largest)


def gather_rows(rows_NC: Tensor) -> Tensor:
    """All ranks' rows [N, C], in the order of ranks; N may differ between ranks, and be 0."""
    if _alone():
        return rows_NC
    counts = [torch.tensor(0, device=rows_NC.device) for _ in range(world_size())]
    distributed.all_gather(counts, torch.tensor(len(rows_NC), device=rows_NC.device))
    most = int(max(counts))
    padded = rows_NC.new_zeros(most, rows_NC.shape[1])
    padded[: len(rows_NC)] = rows_NC
    parts = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])


def leave() -> None:
    """The end of the process, all ranks together: a group that is left open can abort it."""
    if not _alone():
        distributed.barrier()
        distributed.destroy_process_group()
