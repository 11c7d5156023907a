"""vLLM's own weight transfer: from the learner's GPU to the server's, past the file system.

``ipc``: learner and server share a GPU; the server copies out of the learner's memory. ``nccl``:
they have GPUs of their own; the learner broadcasts to the server's workers. Both send a snapshot
of the published version, so that a server that comes back while the learner steps still gets what
the others hold. Written for vLLM 0.32 (``vllm/distributed/weight_transfer``).
"""

import asyncio
import base64
import pickle
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

from reward_model.errors import UsageError
from trainer.rloo.detached import run_detached
from trainer.rloo.nccl import NcclSender, new_unique_id

Call = Callable[..., Awaitable[Any]]
"""``await call("POST", path, json=…)``: a request to one server, checked and decoded."""
Kind = Literal["ipc", "nccl"]


class Snapshot:
    """The weights of the published version on the learner's device, in the sampler's precision.

    Kept in the same memory from version to version: 2 bytes per weight in bfloat16.
    """

    def __init__(self, dtype: str) -> None:
        self._dtype: torch.dtype = getattr(torch, dtype)
        self.tensors: dict[str, Tensor] = {}

    @torch.no_grad()
    def take(self, weights: Mapping[str, Tensor]) -> None:
        """Copy ``weights``."""
        for name, tensor in weights.items():
            if name in self.tensors:
                self.tensors[name].copy_(tensor)
            else:
                self.tensors[name] = tensor.detach().to(self._dtype, copy=True).contiguous()

    def description(self) -> dict[str, list[Any]]:
        """Names, types and shapes as vLLM's update request wants them."""
        return {
            "names": list(self.tensors),
            "dtype_names": [str(one.dtype).removeprefix("torch.") for one in self.tensors.values()],
            "shapes": [list(one.shape) for one in self.tensors.values()],
        }


class Transfer(Protocol):
    """Sends the snapshot to one server. ``forget``: the server went away or failed."""

    async def send(self, call: Call) -> None: ...

    def forget(self) -> None: ...


class IpcTransfer:
    """The server opens the learner's memory by handles, and is done with it when it answers.

    Args:
        handles: of every tensor by its GPU's id, as ``reduce_tensor`` makes them.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        handles: Callable[[Mapping[str, Tensor]], list[dict[str, Any]]] | None = None,
    ) -> None:
        self._snapshot = snapshot
        self._handles = handles or cuda_handles

    async def send(self, call: Call) -> None:
        handles = await asyncio.to_thread(self._handles, self._snapshot.tensors)
        update = self._snapshot.description() | {
            "ipc_handles_pickled": base64.b64encode(pickle.dumps(handles)).decode()
        }
        await call("POST", "/init_weight_transfer_engine", json={"init_info": {"packed": False}})
        await call("POST", "/start_weight_update")
        await call("POST", "/update_weights", json={"update_info": update})
        await call("POST", "/finish_weight_update", json={})

    def forget(self) -> None:
        pass


def cuda_handles(tensors: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Handles by which another process on the same GPU opens each tensor."""
    torch.cuda.ipc_collect()  # type: ignore[no-untyped-call]  # what servers let go of since the last version
    torch.cuda.synchronize()
    handles = []
    for tensor in tensors.values():
        uuid = str(torch.cuda.get_device_properties(tensor.device).uuid)
        handles.append({uuid: reduce_tensor(tensor)[1]})  # type: ignore[no-untyped-call]
    return handles


class NcclTransfer:
    """Broadcasts tensor by tensor over a communicator with the server's workers.

    A communicator outlives many versions; after a failure a new one is made.
    """

    def __init__(self, snapshot: Snapshot, device: torch.device, timeout: float) -> None:
        self._snapshot = snapshot
        self._device = device
        self._timeout = timeout
        self._sender: NcclSender | None = None

    async def send(self, call: Call) -> None:
        async with asyncio.timeout(self._timeout):
            if self._sender is None:
                self._sender = await self._connect(call)
            await call("POST", "/start_weight_update")
            update = {"update_info": self._snapshot.description()}
            # The server answers when it has received everything.
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_awaited(call("POST", "/update_weights", json=update)))
                tasks.create_task(run_detached(self._broadcast, self._sender))
            await call("POST", "/finish_weight_update", json={})

    def forget(self) -> None:
        if self._sender is not None:
            self._sender.abort()
            self._sender = None

    async def _connect(self, call: Call) -> NcclSender:
        workers = int((await call("GET", "/get_world_size"))["world_size"])
        unique_id = new_unique_id()
        init = {"init_info": nccl_init_info(unique_id, workers)}
        # Neither side returns before the other has come.
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_awaited(call("POST", "/init_weight_transfer_engine", json=init)))
            sender = tasks.create_task(
                run_detached(NcclSender, unique_id, workers + 1, self._device)
            )
        return sender.result()

    def _broadcast(self, sender: NcclSender) -> None:
        for tensor in self._snapshot.tensors.values():
            sender.send(tensor)
        sender.wait()


def nccl_init_info(unique_id: bytes, workers: int) -> dict[str, Any]:
    """What a server is told of the communicator: the learner is rank 0, its workers follow."""
    return {
        "nccl_unique_id_b64": base64.b64encode(unique_id).decode(),
        "rank_offset": 1,
        "world_size": workers + 1,
        "packed": False,
    }


def open_transfer(kind: Kind, snapshot: Snapshot, device: torch.device, timeout: float) -> Transfer:
    """A transfer to one server.

    Raises:
        UsageError: the learner is not on a GPU.
    """
    if device.type != "cuda":
        raise UsageError(
            f"generation.transfer: {kind} moves weights between GPUs, but the learner is on "
            f"{device}: set it to directory, or device to cuda"
        )
    return IpcTransfer(snapshot) if kind == "ipc" else NcclTransfer(snapshot, device, timeout)


async def _awaited(work: Awaitable[Any]) -> Any:
    return await work
