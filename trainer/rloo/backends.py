"""Opens the generator that the settings ask for, and closes it whatever happens."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from reward_model.errors import UsageError
from reward_model.threads import ComputeThreads
from trainer.rloo.config import Generation
from trainer.rloo.embedded import EmbeddedGenerator
from trainer.rloo.generation import Generator, Sampling
from trainer.rloo.vllm_client import VllmConnection, VllmGenerator
from trainer.rloo.vllm_server import VllmServer
from trainer.rloo.weight_transfer import Snapshot, Transfer, open_transfer

SERVER_LOG = "vllm.log"


def chosen_backend(settings: Generation) -> str:
    """``vllm`` or ``embedded``."""
    if settings.backend == "auto":
        return "vllm" if settings.urls or settings.python.is_file() else "embedded"
    return settings.backend


@asynccontextmanager
async def open_generator(
    settings: Generation,
    sampling: Sampling,
    tokenizer: PreTrainedTokenizerBase,
    *,
    weights: Path,
    run_dir: Path,
    device: str,
    snapshot: Snapshot | None = None,
    threads: ComputeThreads | None = None,
) -> AsyncIterator[Generator]:
    """Yield a generator that is up; ``weights`` are what a server of our own starts with.

    ``snapshot`` holds later versions where they do not go by the directory; ``threads`` are those
    in which this process computes.
    """
    if chosen_backend(settings) == "embedded":
        thread = None if threads is None else threads.take("generator", torch.device(device))
        async with _embedded(settings, sampling, tokenizer, device, thread) as embedded:
            yield embedded
    else:
        async with _vllm(
            settings, sampling, tokenizer, weights, run_dir, torch.device(device), snapshot
        ) as vllm:
            yield vllm


@asynccontextmanager
async def _embedded(
    settings: Generation,
    sampling: Sampling,
    tokenizer: PreTrainedTokenizerBase,
    device: str,
    thread: Executor | None,
) -> AsyncIterator[EmbeddedGenerator]:
    generator = EmbeddedGenerator(
        tokenizer, sampling, max_batch=settings.embedded_batch, device=device, thread=thread
    )
    async with asyncio.TaskGroup() as tasks:
        worker = tasks.create_task(generator.run())
        try:
            yield generator
        finally:
            worker.cancel()
            await generator.aclose()


@asynccontextmanager
async def _vllm(
    settings: Generation,
    sampling: Sampling,
    tokenizer: PreTrainedTokenizerBase,
    weights: Path,
    run_dir: Path,
    device: torch.device,
    snapshot: Snapshot | None,
) -> AsyncIterator[VllmGenerator]:
    async with AsyncExitStack() as stack:
        servers: list[VllmServer | None] = [None] * len(settings.urls)
        urls = list(settings.urls)
        if not urls:
            arguments = [f"--max-model-len={_length(settings)}", *settings.server_args]
            server = VllmServer(
                settings.python,
                weights,
                run_dir / SERVER_LOG,
                dtype=settings.dtype,
                arguments=arguments,
                transfer=settings.transfer,
                devices=settings.server_devices,
            )
            stack.push_async_callback(server.stop)
            await server.start()
            servers, urls = [server], [server.url]
        connections = [
            VllmConnection(
                url.rstrip("/"),
                sampling,
                tokenizer,
                process=server,
                request_timeout=settings.request_timeout,
                restart_timeout=settings.start_timeout,
                max_in_flight=settings.max_in_flight,
                weights_dir=settings.server_weights_dir,
                transfer=_transfer(settings, snapshot, device),
            )
            for url, server in zip(urls, servers, strict=True)
        ]
        generator = VllmGenerator(connections, by_directory=settings.transfer == "directory")
        stack.push_async_callback(generator.aclose)
        await asyncio.gather(*(connection.open() for connection in connections))
        for connection in connections:
            if connection.max_model_len < _length(settings):
                raise UsageError(
                    f"{connection.url}: reads {connection.max_model_len} tokens, but "
                    f"max_prompt_tokens + max_new_tokens is {_length(settings)}"
                )
        yield generator


def _transfer(
    settings: Generation, snapshot: Snapshot | None, device: torch.device
) -> Transfer | None:
    if settings.transfer == "directory":
        return None
    assert snapshot is not None
    return open_transfer(settings.transfer, snapshot, device, settings.request_timeout)


def _length(settings: Generation) -> int:
    return settings.max_prompt_tokens + settings.max_new_tokens
