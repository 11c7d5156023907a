"""A generator inside this process, for machines without vLLM: the policy's own transformers model.

Prompts that wait are sampled together, those of like lengths first. Each sample draws from random
numbers of its own, so what it is does not depend on who shares its batch (up to rounding).
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from trainer.rloo.decoding import RoomyCache, decode_grouped
from trainer.rloo.generation import Gate, Sampling, response_text
from trainer.rloo.samples import Sample
from trainer.rloo.weight_sync import check_ready

T = TypeVar("T")

COMPACT_STEPS = 16
"""How often rows that have ended leave the batch."""


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """``count`` samples to one prompt, and who waits for them."""

    prompt_ids: tuple[int, ...]
    count: int
    seed: int
    answer: "asyncio.Future[tuple[Sample, ...]]"


class EmbeddedGenerator:
    """Batches requests and samples them in a thread. Use as an asynchronous context manager.

    Args:
        max_batch: sequences at once; a single request may be larger.
        thread: where to compute; a thread of the event loop's otherwise.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        *,
        max_batch: int = 64,
        device: str = "cpu",
        thread: Executor | None = None,
    ) -> None:
        self.version = -1
        self._thread = thread
        self._tokenizer = tokenizer
        self._sampling = sampling
        self._max_batch = max_batch
        self._device = device
        self._model: PreTrainedModel | None = None
        self._waiting: list[Request] = []
        self._arrived = asyncio.Event()
        self._gate = Gate()

    async def run(self) -> None:
        """Serve requests until cancelled; the owner of this task sees its exceptions."""
        while True:
            await self._arrived.wait()
            await asyncio.sleep(0)  # whoever asked in the same breath joins the batch
            batch, self._waiting = next_batch(self._waiting, self._max_batch)
            if not self._waiting:
                self._arrived.clear()
            await self._answer(batch)

    async def generate(
        self, prompt_ids: Sequence[int], count: int, *, seed: int
    ) -> tuple[Sample, ...]:
        async with self._gate.entered():
            answer: asyncio.Future[tuple[Sample, ...]] = asyncio.get_running_loop().create_future()
            self._waiting.append(Request(tuple(prompt_ids), count, seed, answer))
            self._arrived.set()
            return await answer

    async def publish(self, path: Path, version: int) -> None:
        check_ready(path, version)
        async with self._gate.closed():
            await self._compute(self._load, path)
            self.version = version

    async def aclose(self) -> None:
        self._model = None

    async def _answer(self, batch: list[Request]) -> None:
        try:
            answers = await self._compute(self._sample, batch)
        except BaseException as error:
            for request in batch:
                if not request.answer.done():
                    request.answer.cancel()
            raise error
        for request, samples in zip(batch, answers, strict=True):
            if not request.answer.done():
                request.answer.set_result(samples)

    async def _compute(self, function: Callable[..., T], *arguments: object) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, function, *arguments)

    def _load(self, path: Path) -> None:
        if self._model is None:
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
            self._model = model.to(self._device).eval()
            decode_grouped(self._model)
        else:
            weights: dict[str, Tensor] = {}
            for file in sorted(path.glob("*.safetensors")):
                weights |= load_file(file)
            self._model.load_state_dict(weights)

    def _sample(self, batch: Sequence[Request]) -> list[tuple[Sample, ...]]:
        assert self._model is not None
        rows = sample_rows(
            self._model,
            [(request.prompt_ids, request.count, request.seed) for request in batch],
            self._sampling,
        )
        places = iter(rows)
        return [
            tuple(self._finish(*next(places)) for _ in range(request.count)) for request in batch
        ]

    def _finish(self, tokens: list[int], logprobs: list[float], ended: bool) -> Sample:
        text = response_text(self._tokenizer, tokens, ended)
        return Sample(tuple(tokens), tuple(logprobs), ended, self.version, text)


def next_batch(waiting: Sequence[Request], max_batch: int) -> tuple[list[Request], list[Request]]:
    """The next requests of ``waiting``, in the order in which they came, and the rest.

    The first one, and those whose prompts are nearest to its in length until there are
    ``max_batch`` samples: all prompts are padded to the longest of their batch.
    """
    length = len(waiting[0].prompt_ids)
    chosen, samples = set(), 0
    for request in sorted(waiting, key=lambda one: abs(len(one.prompt_ids) - length)):
        if samples >= max_batch:
            break
        chosen.add(request)
        samples += request.count
    return (
        [one for one in waiting if one in chosen], [one for one in waiting if one not in chosen]
    )  # fmt: skip


@torch.inference_mode()
def sample_rows(
    model: PreTrainedModel,
    requests: Sequence[tuple[Sequence[int], int, int]],
    sampling: Sampling,
) -> list[tuple[list[int], list[float], bool]]:
    """Sample ``count`` responses to each prompt; ``requests`` are (prompt ids, count, seed).

    Returns:
        For every response, in order: its token ids, their log-probabilities under
        softmax(logits / T), and whether it ended with a stop token.
    """
    counts = torch.tensor([count for _, count, _ in requests], device=model.device)
    logits_BV, cache, mask_BL = _prefill(model, [ids for ids, _, _ in requests])
    cache.batch_select_indices(
        torch.arange(len(counts), device=model.device).repeat_interleave(counts)
    )
    logits_BV, mask_BL = (one.repeat_interleave(counts, 0) for one in (logits_BV, mask_BL))
    uniform_BS = _uniform(requests, sampling.max_new_tokens).to(model.device)
    rows = _Rows(len(logits_BV), sampling.stop_token_ids)
    for step in range(sampling.max_new_tokens):
        chosen_B, logprob_B = _draw(logits_BV, uniform_BS[:, step], sampling.temperature)
        rows.append(chosen_B, logprob_B)
        if rows.done or step + 1 == sampling.max_new_tokens:
            break
        if step % COMPACT_STEPS == COMPACT_STEPS - 1:
            kept = torch.tensor(rows.compact(), device=model.device)
            cache.batch_select_indices(kept)
            chosen_B, mask_BL, uniform_BS = chosen_B[kept], mask_BL[kept], uniform_BS[kept]
        mask_BL = torch.nn.functional.pad(mask_BL, (0, 1), value=1)
        output = model(
            input_ids=chosen_B[:, None],
            attention_mask=mask_BL,
            position_ids=mask_BL.sum(1, keepdim=True) - 1,
            past_key_values=cache,
            use_cache=True,
        )
        logits_BV = output.logits[:, -1]
    return list(zip(rows.tokens, rows.logprobs, rows.ended, strict=True))


class _Rows:
    """Responses as they grow. ``alive`` says which response each row of the batch is."""

    def __init__(self, count: int, stop_token_ids: tuple[int, ...]) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(count)]
        self.logprobs: list[list[float]] = [[] for _ in range(count)]
        self.ended = [False] * count
        self._alive = list(range(count))
        self._stop = frozenset(stop_token_ids)

    @property
    def done(self) -> bool:
        return all(self.ended)

    def append(self, chosen_B: Tensor, logprob_B: Tensor) -> None:
        """Add a token to every response that has not ended."""
        for row, token, logprob in zip(
            self._alive, chosen_B.tolist(), logprob_B.tolist(), strict=True
        ):
            if not self.ended[row]:
                self.tokens[row].append(token)
                self.logprobs[row].append(logprob)
                self.ended[row] = token in self._stop

    def compact(self) -> list[int]:
        """Drop the rows that have ended; return the places of those that stay."""
        kept = [place for place, row in enumerate(self._alive) if not self.ended[row]]
        self._alive = [self._alive[place] for place in kept]
        return kept


def _prefill(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]]
) -> tuple[Tensor, RoomyCache, Tensor]:
    """Next-token logits, cache and mask of the prompts, padded on the left."""
    longest = max(len(prompt) for prompt in prompts)
    ids_BL = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask_BL = torch.zeros_like(ids_BL)
    for row, prompt in enumerate(prompts):
        ids_BL[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask_BL[row, longest - len(prompt) :] = 1
    mask_BL = mask_BL.to(model.device)
    cache = RoomyCache(model.config)
    output = model(
        input_ids=ids_BL.to(model.device),
        attention_mask=mask_BL,
        position_ids=(mask_BL.cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return output.logits[:, -1], cache, mask_BL


def _uniform(requests: Sequence[tuple[Sequence[int], int, int]], steps: int) -> Tensor:
    """Random numbers in [0, 1) for every sample and step, set by the request's seed."""
    rows = []
    for _, count, seed in requests:
        generator = torch.Generator().manual_seed(seed)
        rows.append(torch.rand(count, steps, generator=generator, dtype=torch.float64))
    return torch.cat(rows)


def _draw(logits_BV: Tensor, uniform_B: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Sample by inverting the cumulative distribution; return tokens and log-probabilities."""
    log_softmax_BV = torch.log_softmax(logits_BV.float() / temperature, -1)
    cumulative_BV = log_softmax_BV.double().exp().cumsum(-1)
    threshold_B1 = uniform_B[:, None] * cumulative_BV[:, -1:]
    chosen_B1 = torch.searchsorted(cumulative_BV, threshold_B1, right=True)
    chosen_B1 = chosen_B1.clamp(max=logits_BV.shape[1] - 1)
    return chosen_B1[:, 0], log_softmax_BV.gather(1, chosen_B1)[:, 0]
