"""Worker: vLLM's engine on the same checkpoint. Runs in vLLM's own environment.

.venv-vllm/bin/python -m benchmarks.vllm_worker CHECKPOINT DTYPE [BATCH_TOKENS]
"""

import argparse
import os
import time

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{(os.cpu_count() or 1) - 1}")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.worker import JsonObject, answers, serve


def main() -> None:
    channel = answers()
    import torch
    import vllm

    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("dtype")
    parser.add_argument("batch_tokens", type=int, nargs="?", help="by default vLLM's own default")
    arguments = parser.parse_args()
    engine = vllm.LLM(
        arguments.checkpoint,
        runner="pooling",
        dtype=arguments.dtype,
        enforce_eager=True,
        max_num_batched_tokens=arguments.batch_tokens,
    )
    parameters = vllm.PoolingParams(use_activation=False)

    def handle(request: JsonObject) -> JsonObject:
        prompts = [{"prompt_token_ids": ids} for ids in request["sequences"]]
        started = time.perf_counter()
        outputs = engine.classify(prompts, pooling_params=parameters, use_tqdm=False)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "scores": [one.outputs.probs[0] for one in outputs]}

    serve(handle, channel, {"threads": torch.get_num_threads()})


if __name__ == "__main__":
    main()
