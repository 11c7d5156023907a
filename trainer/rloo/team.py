"""The processes of a run under ``accelerate launch``: rank 0 leads, the others follow.

Rank 0 generates, scores, evaluates and writes the files. What takes all ranks (a step, a KL, whole
weights that are divided) is a method of the learner: rank 0 announces its name and arguments, and
the others, which wait in :meth:`Team.follow`, run the same method beside it.
"""

import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers import PreTrainedModel

from reward_model.device import as_device
from reward_model.errors import SumzeroError, UsageError
from trainer.reward import sharding, zero

T = TypeVar("T")
_END = "end"
_WAIT = timedelta(days=30)
"""Between announcements: rank 0 may generate, or wait for a server, for long."""


class Team:
    """All ranks. Alone, every method does what one process needs."""

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.rank, self.size = 0, 1
        self.sharded = False
        self._control: Any = None

    @classmethod
    def join(cls, device: str, *, lora: bool) -> "Team":
        """The team that the launcher started, or this process alone on ``device``.

        Raises:
            UsageError: no such device, or the launcher was told what this trainer does not do.
        """
        if not distributed.is_torchelastic_launched():
            return cls(as_device(device))
        sharding.check_launcher()
        if zero.is_asked_for():
            raise UsageError(
                "accelerate: DeepSpeed is not supported here; FSDP2 divides the same things: use "
                "deploy/accelerate/fsdp2.yaml"
            )
        if lora and sharding.is_configured():
            raise UsageError("lora: not supported under FSDP2; adapters are small: use ddp.yaml")
        # Or transformers would load the weights on rank 0 alone, for accelerate to hand them round.
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
        accelerator = Accelerator(cpu=not torch.cuda.is_available())
        team = cls(accelerator.device)
        team.rank, team.size = accelerator.process_index, accelerator.num_processes
        team.sharded = sharding.is_asked_for()
        if team.size > 1:
            # On gloo, so that a rank that dies is noticed at once by whoever waits for it.
            team._control = distributed.new_group(backend="gloo", timeout=_WAIT)
        return team

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def announce(self, name: str, *arguments: Any) -> None:
        """Rank 0: have the others run the learner's method ``name`` too."""
        if self.size > 1 and self.leads:
            distributed.broadcast_object_list([(name, arguments)], src=0, group=self._control)

    def follow(self, learner: object) -> None:
        """Another rank: run what is announced until the end of the run.

        Signals are rank 0's matter: a launcher sends them to every rank.

        Raises:
            SumzeroError: rank 0 is gone without a word.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        while True:
            message: list[Any] = [None]
            with self._noticing_loss():
                distributed.broadcast_object_list(message, src=0, group=self._control)
            name, arguments = message[0]
            if name == _END:
                return
            getattr(learner, name)(*arguments)

    def dismiss(self) -> None:
        """Rank 0: the run is over."""
        self.announce(_END)

    def leave(self) -> None:
        if self._control is not None:
            distributed.destroy_process_group()

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            with self._noticing_loss():
                distributed.barrier(group=self._control)

    @contextmanager
    def _noticing_loss(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise SumzeroError(f"rank {self.rank}: another rank has ended") from error

    def share(self, items: Sequence[T]) -> list[T]:
        """This rank's part of ``items``."""
        return list(items[self.rank :: self.size])

    def gather(self, value: T) -> list[T]:
        """Rank 0: every rank's ``value``. The others: nothing."""
        if self.size == 1:
            return [value]
        found: list[Any] | None = [None] * self.size if self.leads else None
        distributed.gather_object(value, found, dst=0, group=self._control)
        return found or []

    def gather_everywhere(self, value: T) -> list[T]:
        """Every rank's ``value``, on every rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value, group=self._control)
        return found

    def largest(self, value: int) -> int:
        """The largest of all ranks' ``value``."""
        return max(self.gather_everywhere(value))

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Add the gradients of all ranks, in place; a rank without any takes part with zeros."""
        if self.size == 1:
            return
        work = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            work.append(distributed.all_reduce(parameter.grad, async_op=True))
        for one in work:
            one.wait()


def divide(model: nn.Module) -> None:
    """FSDP2: divide every layer over all ranks, in place; a layer is gathered while it computes."""
    backbone = next(one for one in model.modules() if isinstance(one, PreTrainedModel))
    names = set(backbone._no_split_modules or ())
    for module in model.modules():
        if type(module).__name__ in names and not isinstance(module, FSDPModule):
            fully_shard(module)
    fully_shard(model)
