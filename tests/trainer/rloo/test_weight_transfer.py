"""vLLM's own weight transfer: the snapshot, the requests, and what vLLM's code makes of them.

Handles to GPU memory cannot be had without a GPU; tests/integration/test_rloo_gpu.py has the rest.
"""

import asyncio
import base64
import json
import pickle
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch

from reward_model.errors import UsageError
from tests.checkpoints import tiny_model, tiny_tokenizer
from tests.conftest import VLLM_PYTHON
from tests.trainer.rloo.http_servers import TRANSFER, VllmDouble, serving
from trainer.rloo.config import Generation
from trainer.rloo.detached import run_detached
from trainer.rloo.generation import Sampling
from trainer.rloo.vllm_client import VllmConnection, VllmGenerator
from trainer.rloo.vllm_server import VllmServer
from trainer.rloo.weight_transfer import IpcTransfer, Snapshot, nccl_init_info, open_transfer

SAMPLING = Sampling(0.7, 16, (2,))


def handles(tensors):
    """What a GPU would give: by its id, the arguments that rebuild a tensor."""
    return [{"GPU-1": (name, tuple(one.shape))} for name, one in tensors.items()]


@asynccontextmanager
async def connected(url: str, snapshot: Snapshot):
    connection = VllmConnection(
        url, SAMPLING, tiny_tokenizer(), process=None, request_timeout=5, restart_timeout=5,
        max_in_flight=8, weights_dir=None, transfer=IpcTransfer(snapshot, handles),
    )  # fmt: skip
    generator = VllmGenerator([connection], by_directory=False)
    try:
        await connection.open()
        yield generator
    finally:
        await generator.aclose()


def taken(dtype: str = "bfloat16", seed: int = 0) -> Snapshot:
    snapshot = Snapshot(dtype)
    snapshot.take(tiny_model("qwen2", "causal", seed=seed).state_dict())
    return snapshot


def test_a_snapshot_stays_while_the_learner_steps_and_keeps_its_memory():
    model = tiny_model("qwen2", "causal", seed=0)
    snapshot = Snapshot("bfloat16")
    snapshot.take(model.state_dict())
    held = {name: (one.data_ptr(), one.clone()) for name, one in snapshot.tensors.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(one, held[name][1]) for name, one in snapshot.tensors.items())
    snapshot.take(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(snapshot.tensors[name], tensor.bfloat16())
        assert snapshot.tensors[name].data_ptr() == held[name][0]


async def test_weights_are_sent_in_the_order_that_vllm_asks_for(tmp_path):
    double, snapshot = VllmDouble(), taken()
    with serving(double.app()) as url:
        async with connected(url, snapshot) as generator:
            await generator.publish(tmp_path, 1)
    assert double.calls == ["pause wait", *TRANSFER, "reset_prefix_cache", "version 1", "resume"]
    sent = dict(double.transfers)["update_weights"]["update_info"]
    assert sent["names"] == list(snapshot.tensors)
    assert set(sent["dtype_names"]) == {"bfloat16"}
    assert sent["shapes"] == [list(one.shape) for one in snapshot.tensors.values()]
    opened = pickle.loads(base64.b64decode(sent["ipc_handles_pickled"]))
    assert opened == handles(snapshot.tensors)


async def test_a_failed_transfer_is_made_again_before_the_version_counts(tmp_path):
    double = VllmDouble()
    double.refusals = [500]
    with serving(double.app()) as url:
        async with connected(url, taken()) as generator:
            await generator.publish(tmp_path, 1)
            assert generator.version == 1
    assert double.calls.count("update_weights") == 2
    assert double.version == "1"


async def test_a_restarted_server_gets_the_snapshot(tmp_path):
    double = VllmDouble()
    with serving(double.app()) as url:
        async with connected(url, taken()) as generator:
            await generator.publish(tmp_path, 1)
            double.version = "default"  # what a restarted server says
            samples = await generator.generate((1,), 2, seed=0)
    assert [sample.version for sample in samples] == [1, 1]
    assert double.calls.count("update_weights") == 2


def test_an_owned_server_is_started_for_it(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")  # the learner's, under accelerate launch
    server = VllmServer(
        Path(sys.executable), tmp_path, tmp_path / "log", dtype="bfloat16", transfer="ipc",
        devices="1",
    )  # fmt: skip
    assert '--weight-transfer-config={"backend": "ipc"}' in server._command()
    environment = server._environment()
    assert environment["VLLM_ALLOW_INSECURE_SERIALIZATION"] == "1"
    assert environment["CUDA_VISIBLE_DEVICES"] == "1"
    assert "LOCAL_RANK" not in environment


def test_it_needs_a_gpu_and_vllm():
    with pytest.raises(UsageError, match=r"generation\.transfer.*directory"):
        open_transfer("nccl", taken(), torch.device("cpu"), 10)
    with pytest.raises(ValueError, match="transfer: ipc is vLLM's"):
        Generation(backend="embedded", transfer="ipc")


async def test_detached_work_answers_fails_and_can_be_given_up():
    assert await run_detached(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await run_detached(divmod, 7, 0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await run_detached(time.sleep, 3600)


@pytest.mark.vllm
@pytest.mark.integration
def test_vllms_own_code_reads_what_is_sent():
    snapshot = taken()
    update = snapshot.description()
    packed = base64.b64encode(pickle.dumps(handles(snapshot.tensors))).decode()
    sent = {
        "ipc": update | {"ipc_handles_pickled": packed},
        "nccl": update,
        "init": nccl_init_info(bytes(range(128)), workers=4),
    }
    code = (
        "import json, sys\n"
        "from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferUpdateInfo\n"
        "from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo\n"
        "from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferUpdateInfo\n"
        "sent = json.load(sys.stdin)\n"
        "ipc = IPCWeightTransferUpdateInfo(**sent['ipc'])\n"
        "NCCLWeightTransferUpdateInfo(**sent['nccl'])\n"
        "init = NCCLWeightTransferInitInfo(**sent['init'])\n"
        "print(json.dumps([len(ipc.ipc_handles), init.nccl_unique_id_bytes.hex(),\n"
        "                  init.world_size, init.rank_offset, init.packed]))\n"
    )
    done = subprocess.run(
        [str(VLLM_PYTHON), "-c", code],
        input=json.dumps(sent),
        env={"VLLM_ALLOW_INSECURE_SERIALIZATION": "1", "HOME": "/tmp", "TORCHDYNAMO_DISABLE": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    read = json.loads(done.stdout.splitlines()[-1])
    assert read == [len(snapshot.tensors), bytes(range(128)).hex(), 5, 1, False]
