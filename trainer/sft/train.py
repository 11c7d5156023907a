"""Supervised fine-tuning: a thin layer over TRL's SFTTrainer.

The loop, its checkpoints and its schedule are the library's. What is ours: where the model comes
from, that only the assistant's tokens are learned, that the run resumes, and what it leaves.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging as transformers_logging
from trl import SFTConfig, SFTTrainer
from trl.chat_template_utils import get_training_chat_template

from reward_model import atomic
from reward_model.encode import Message
from reward_model.errors import CheckpointError, UsageError
from trainer.metrics import MetricsWriter
from trainer.sft.config import SftSettings
from trainer.sft.conversations import read_conversations
from trainer.sft.report import write_report
from trainer.sft.run_directory import CHECKPOINTS, MODEL, open_run
from trainer.sft.scratch import new_model, texts_of, train_tokenizer

METRIC_NAMES = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "mean_token_accuracy": "token_accuracy",
    "entropy": "entropy",
    "num_tokens": "tokens",
    "epoch": "epoch",
}


def train(settings: SftSettings) -> Path:
    """Train as ``settings`` say; return the directory that holds the policy.

    The policy is written to ``output_dir/model``, a plain Hugging Face directory. Checkpoints lie
    in ``output_dir/checkpoints`` until then; a run that was killed resumes from the last when the
    same command is given again.
    """
    policy = settings.output_dir / MODEL
    if open_run(settings):
        print(f"{settings.output_dir}: already finished; --restart trains it again")
        return policy
    disable_progress_bars()  # those of reading and writing files; the training loop keeps its own
    transformers_logging.disable_progress_bar()
    conversations = read_conversations(settings.train, settings.split)
    set_seed(settings.seed)
    model, tokenizer = _origin(settings, conversations)
    kept = _short_enough(conversations, tokenizer, settings)
    print(f"{len(kept)} conversations, {model.num_parameters() / 1e6:.2f} M parameters")
    if settings.epochs > 0:
        _train(settings, model, tokenizer, kept)
    with atomic.directory(policy) as temporary:
        model.eval().save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        _check_reading(temporary, tokenizer, kept[0], settings.trust_remote_code)
    shutil.rmtree(settings.output_dir / CHECKPOINTS, ignore_errors=True)
    return policy


def _check_reading(
    directory: Path,
    tokenizer: PreTrainedTokenizerBase,
    conversation: Sequence[Message],
    trust_remote_code: bool,
) -> None:
    """Refuse to leave a tokenizer that reads differently when it is opened again.

    transformers chooses the tokenizer's class by the model's type, and some classes bring rules of
    their own that replace what ``tokenizer.json`` says.
    """
    reopened = AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
    text = tokenizer.apply_chat_template([dict(turn) for turn in conversation], tokenize=False)
    text = f"{text} 1234 it's  \n\n Ünïcode"
    before, after = (
        reader(text, add_special_tokens=False)["input_ids"] for reader in (tokenizer, reopened)
    )
    if before != after:
        raise CheckpointError(
            f"{directory}: transformers opens its tokenizer as {type(reopened).__name__}, which "
            f"reads text differently from the {type(tokenizer).__name__} it was trained with"
        )


def _origin(
    settings: SftSettings, conversations: Sequence[Sequence[Message]]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if settings.from_scratch is not None:
        tokenizer = train_tokenizer(texts_of(conversations), settings.from_scratch.vocabulary)
        return new_model(settings.from_scratch, tokenizer, settings.seed), tokenizer
    return _load(settings)


def _load(settings: SftSettings) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    base = str(settings.base)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            base, trust_remote_code=settings.trust_remote_code
        )
        model = AutoModelForCausalLM.from_pretrained(
            base,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=settings.trust_remote_code,
        )
    except Exception as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"base: {base}: cannot be opened as a policy: {reason}") from error
    if not tokenizer.chat_template:
        raise UsageError(f"base: {base}: its tokenizer has no chat template; use a chat model")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": "<|sumzero_pad|>"})
        if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(len(tokenizer))
    return _untied(model), tokenizer


def _untied(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the embeddings as an output matrix of its own, so that it is saved and reloaded."""
    if model.config.tie_word_embeddings:
        head = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(model.get_input_embeddings().weight.detach().clone())
        model.config.tie_word_embeddings = False
        model.all_tied_weights_keys = {}
    return model


def _short_enough(
    conversations: Sequence[Sequence[Message]],
    tokenizer: PreTrainedTokenizerBase,
    settings: SftSettings,
) -> list[Sequence[Message]]:
    kept = []
    for turns in conversations:
        text = tokenizer.apply_chat_template([dict(turn) for turn in turns], tokenize=False)
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) <= settings.max_length:
            kept.append(turns)
    if not kept:
        raise UsageError(
            f"train: {settings.train}: every conversation is longer than max_length "
            f"{settings.max_length}"
        )
    if len(kept) < len(conversations):
        left_out = len(conversations) - len(kept)
        print(f"{left_out} conversations left out: longer than max_length {settings.max_length}")
    return kept


def _train(
    settings: SftSettings,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
) -> None:
    folder = settings.output_dir / CHECKPOINTS
    checkpoint = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    all_turns = _marks_the_assistant(tokenizer)
    resume_step = None if checkpoint is None else int(checkpoint.rsplit("-", 1)[1])
    with MetricsWriter(
        settings.output_dir, resume_step=resume_step, tensorboard=settings.tensorboard
    ) as metrics:
        trainer = SFTTrainer(
            model=model,
            args=_arguments(settings, folder, all_turns),
            train_dataset=Dataset.from_list(_examples(conversations, all_turns)),
            processing_class=tokenizer,
            callbacks=[_MetricsCallback(metrics)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=checkpoint)
    write_report(settings.output_dir)


def _marks_the_assistant(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template tells which tokens are the assistant's, or TRL knows one that does."""
    try:
        get_training_chat_template(tokenizer)
    except ValueError:
        return False
    return True


def _examples(
    conversations: Sequence[Sequence[Message]], all_turns: bool
) -> list[dict[str, list[Message]]]:
    """What the library trains on: every turn of the assistant, or else the last one alone."""
    if all_turns:
        return [{"messages": list(turns)} for turns in conversations]
    print("the chat template does not mark the assistant's tokens: only last answers are learned")
    return [{"prompt": list(turns[:-1]), "completion": [turns[-1]]} for turns in conversations]


def _arguments(settings: SftSettings, folder: Path, all_turns: bool) -> SFTConfig:
    accumulation = settings.batch_size // settings.micro_batch_size
    return SFTConfig(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.micro_batch_size,
        gradient_accumulation_steps=accumulation,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup,
        lr_scheduler_type=settings.schedule,
        weight_decay=settings.weight_decay,
        max_length=None,
        assistant_only_loss=all_turns,
        gradient_checkpointing=False,
        bf16=settings.dtype == "bfloat16",
        fp16=False,
        seed=settings.seed,
        data_seed=settings.seed,
        logging_steps=settings.log_steps,
        logging_first_step=True,
        save_steps=settings.save_steps,
        save_total_limit=2,
        report_to=[],
        disable_tqdm=not sys.stderr.isatty(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )


class _MetricsCallback(TrainerCallback):  # type: ignore[misc]
    """Hands what the library logs to ``metrics.jsonl``."""

    def __init__(self, metrics: MetricsWriter) -> None:
        self.metrics = metrics

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        values = {ours: logs[name] for name, ours in METRIC_NAMES.items() if name in logs}
        if "loss" in values:
            self.metrics.log(state.global_step, values)
