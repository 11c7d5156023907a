"""The settings of ``python -m trainer.rloo``. Defaults are the paper's where it gives one."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from reward_model.command import Section, Settings
from trainer.urls import Url, UrlOrUrls, Urls


class Source(Section):
    """One origin of rewards: a service, or a Python function."""

    name: str = Field(default="reward", description="in the metrics")
    url: UrlOrUrls = Field(
        default=None,
        description="base URL of a running `python -m service`, or of several alike; one that "
        "ends in /get_reward speaks OpenRLHF's dialect",
    )
    model: str | None = Field(
        default=None, description="name of the model there; its default if none"
    )
    function: str | None = Field(
        default=None,
        description="module:name of f(prompts, completions) -> list of float or None",
    )
    weight: float = 1.0

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.url is None) == (self.function is None):
            raise ValueError("give either url, the base URL of a reward service, or function")
        return self


class Reward(Section):
    """Where rewards come from, and what is done to them before the baseline.

    One service: ``url`` (and ``model``). Several sources, weighted: ``sources``.
    """

    url: UrlOrUrls = None
    model: str | None = None
    sources: list[Source] = Field(default=[])
    gold_url: Url | None = Field(default=None, description="measured, never trained on")
    gold_model: str | None = None
    api_key: str | None = Field(default=None, repr=False)
    truncation: Literal["error", "left", "right"] = Field(
        default="left", description="of conversations longer than the reward model reads"
    )
    timeout: float = Field(
        default=180.0,
        gt=0,
        description="seconds a request may take, waiting for a restart included",
    )
    attempts: int = Field(default=3, ge=1, description="before a group's prompt is skipped")
    clip: tuple[float, float] | None = Field(default=None, description="raw rewards are cut to it")
    mean: float = Field(default=0.0, description="subtracted from the raw reward")
    scale: float = Field(default=1.0, gt=0, description="the raw reward is divided by it")
    missing_eos_penalty: float = Field(
        default=1.0, ge=0, description="for responses cut at the end"
    )
    length_penalty: float = Field(default=0.0, ge=0, description="per response token")

    @model_validator(mode="after")
    def _some_source(self) -> Self:
        if (self.url is None) == (not self.sources):
            raise ValueError("give either url, the base URL of a reward service, or sources")
        names = [source.name for source in self.all_sources]
        if len({*names, "gold"}) != len(names) + 1:
            raise ValueError("sources need names of their own, other than gold")
        return self

    @property
    def all_sources(self) -> list[Source]:
        return self.sources or [Source(url=self.url, model=self.model)]


class Generation(Section):
    """Who writes the samples, and how."""

    backend: Literal["auto", "vllm", "embedded"] = Field(
        default="auto",
        description="auto: vLLM where a URL is given or its environment is installed",
    )
    urls: Urls = Field(default=[], description="running vLLM servers; none: start and own one")
    python: Path = Field(
        default=Path(".venv-vllm/bin/python"), description="of the environment that holds vLLM"
    )
    server_args: list[str] = Field(default=[], description="more arguments of an owned server")
    server_devices: str | None = Field(
        default=None, description="CUDA_VISIBLE_DEVICES of an owned server"
    )
    server_weights_dir: str | None = Field(
        default=None, description="where a given server sees <output_dir>/weights, if elsewhere"
    )
    transfer: Literal["directory", "ipc", "nccl"] = Field(
        default="directory",
        description="how weights get to vLLM: a shared directory; ipc: within one GPU; nccl: "
        "between GPUs. A given server needs --weight-transfer-config of that backend, and for ipc "
        "VLLM_ALLOW_INSECURE_SERIALIZATION=1",
    )
    samples_per_prompt: int = Field(default=2, description="k, two at least")
    temperature: float = Field(default=0.7, gt=0)
    max_new_tokens: int = Field(default=1024, gt=0)
    max_prompt_tokens: int = Field(default=512, gt=0)
    long_prompts: Literal["skip", "cut"] = Field(
        default="skip", description="cut: on the left of the last user message"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_in_flight: int = Field(default=64, gt=0, description="prompts per server")
    request_timeout: float = Field(default=600.0, gt=0, description="seconds for one prompt")
    start_timeout: float = Field(default=600.0, gt=0, description="seconds until a server is up")
    probe_tolerance: float | None = Field(
        default=None,
        gt=0,
        description="mean |sampler - learner| log-probability allowed at start; "
        "by default 1e-3 in float32 and 0.05 otherwise",
    )
    embedded_batch: int = Field(default=64, gt=0, description="sequences at once, embedded only")

    @model_validator(mode="after")
    def _transfer_is_vllms(self) -> Self:
        if self.transfer != "directory" and self.backend == "embedded":
            raise ValueError(f"transfer: {self.transfer} is vLLM's; backend is embedded")
        return self

    @model_validator(mode="after")
    def _group(self) -> Self:
        if self.samples_per_prompt < 2:
            raise ValueError(
                "samples_per_prompt must be 2 or more: each sample's baseline is the others"
            )
        return self


class Objective(Section):
    """See ``loss.py``."""

    beta: float = Field(default=0.05, ge=0)
    kl: Literal["reward", "k2"] = "reward"
    correction: Literal["sequence", "token", "clip"] = "sequence"
    ratio_cap: float = Field(default=2.0, gt=0)
    clip_epsilon: float = Field(default=0.2, gt=0)
    average: Literal["sample", "token"] = Field(
        default="sample", description="the loss is divided by samples, or by response tokens"
    )
    normalize_advantages: bool = False


class Optimizer(Section):
    """AdamW with linear warm-up and linear decay."""

    learning_rate: float = Field(default=2e-6, gt=0)
    warmup: float = Field(default=0.03, ge=0, lt=1, description="share of the steps")
    schedule: Literal["linear", "constant"] = "linear"
    weight_decay: float = Field(default=0.0, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    max_grad_norm: float = Field(default=1.0, gt=0)


class Lora(Section):
    """Low-rank adapters on every linear layer but the output matrix, through PEFT.

    The reference is the base, and costs no memory; generators get merged weights.
    """

    rank: int = Field(default=16, gt=0)
    alpha: float = Field(default=32.0, gt=0, description="adapters count alpha / rank times")


class HeldOut(Section):
    """Evaluation on fixed prompts that are never trained on."""

    prompts: Path | None = None
    limit: int | None = Field(default=None, gt=0, description="the first so many prompts")
    samples_per_prompt: int = Field(default=4, gt=0)
    every: int = Field(default=0, ge=0, description="steps; 0: before and after the run only")


class SampleTables(Section):
    """Tables of samples trained on, ``samples/step-N.jsonl``: to read what the policy says."""

    every: int = Field(default=10, ge=0, description="steps, and the first one; 0: none")
    prompts: int = Field(default=8, gt=0, description="of a step, with all their samples")


class RlooSettings(Settings):
    """Prompts and a reward URL in, a policy out."""

    policy: str = Field(description="checkpoint directory or hub name of a chat model")
    prompts: Path = Field(description='JSON lines of {"prompt": text or messages}')
    output_dir: Path = Field(description="run directory; the trained policy ends up in its policy/")
    reward: Reward
    generation: Generation = Generation()
    objective: Objective = Objective()
    optimizer: Optimizer = Optimizer()
    lora: Lora | None = Field(default=None, description="train adapters; default: all weights")
    heldout: HeldOut = HeldOut()
    batch_size: int = Field(default=128, gt=0, description="samples per optimiser step")
    epochs: int = Field(default=5, gt=0)
    max_steps: int | None = Field(
        default=None, ge=0, description="0: only measures the policy on the held-out prompts"
    )
    staleness: int = Field(default=1, ge=0, description="policy versions; 0: synchronous")
    samples: SampleTables = SampleTables()
    checkpoint_steps: int = Field(default=50, gt=0)
    keep_checkpoints: int = Field(default=2, gt=0)
    restart: bool = Field(default=False, description="throw away what output_dir holds")
    max_batch_tokens: int = Field(default=16384, gt=0, description="of one forward of the learner")
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of the learner; bfloat16: autocast around float32 weights"
    )
    device: str = Field(default="cpu", description="of one process; accelerate launch chooses")
    seed: int = 0
    tensorboard: bool = True
    wandb: str | None = Field(default=None, description="project of Weights & Biases")
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _whole_groups(self) -> Self:
        if self.batch_size % self.generation.samples_per_prompt:
            raise ValueError("batch_size must be a multiple of generation.samples_per_prompt")
        return self

    @property
    def prompts_per_step(self) -> int:
        return self.batch_size // self.generation.samples_per_prompt
