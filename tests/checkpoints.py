"""Tiny random checkpoints of every supported architecture, made on the spot."""

from functools import cache
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

Task = Literal["reward", "causal", "backbone"]

DECODERS = ("qwen2", "qwen3", "llama", "mistral", "gemma", "gemma2")
ENCODERS = ("bert", "modernbert")
FOREIGN_ENCODERS = ("roberta", "electra", "distilbert", "albert")
UNPACKED = ("deberta-v2", "mixtral", "phi3")
"""Architectures that get one sequence per forward; phi3 here with longrope."""

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_CORPUS = [
    "How do I bake bread at home? Mix flour, water, salt and yeast, and let the dough rest.",
    "The capital of France is Paris. The river that runs through it is called the Seine.",
    "def add(a, b): return a + b  # user assistant system 0123456789",
] * 4

_COMMON = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
_SPECIFIC: dict[str, dict[str, object]] = {
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "llama": {"num_key_value_heads": 4},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 100},
    "gemma": {"num_key_value_heads": 1, "head_dim": 16},
    "gemma2": {
        "num_key_value_heads": 2,
        "head_dim": 16,
        "sliding_window": 70,
        "query_pre_attn_scalar": 16,
    },
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "modernbert": {"local_attention": 64, "global_attn_every_n_layers": 2},
    "roberta": {"max_position_embeddings": 514},
    "electra": {"embedding_size": 32},
    "distilbert": {"dim": 64, "hidden_dim": 96, "n_layers": 2, "n_heads": 4},
    "albert": {"embedding_size": 32, "classifier_dropout_prob": 0.0},
    "eurobert": {"num_key_value_heads": 4},
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "pooler_dropout": 0.0,
    },
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4},
    "phi3": {
        "num_key_value_heads": 2,
        "original_max_position_embeddings": 128,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 8,
            "long_factor": [4.0] * 8,
            "original_max_position_embeddings": 128,
        },
    },
}
_AUTO = {
    "reward": AutoModelForSequenceClassification,
    "causal": AutoModelForCausalLM,
    "backbone": AutoModel,
}


def is_encoder(architecture: str) -> bool:
    return architecture in (*ENCODERS, *FOREIGN_ENCODERS, "deberta-v2", "eurobert")


@cache
def tiny_tokenizer(encoder: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE of some 400 tokens, with a ChatML template for decoders."""
    special = ["[PAD]", "[CLS]", "[SEP]"] if encoder else ["<|endoftext|>", "<|im_start|>"]
    special += ["<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    if encoder:
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>"
    )
    fast.chat_template = CHATML
    return fast


def tiny_model(
    architecture: str, task: Task = "reward", seed: int = 0, **overrides: object
) -> PreTrainedModel:
    """A random model with weights large enough for scores to differ."""
    encoder = is_encoder(architecture)
    tokenizer = tiny_tokenizer(encoder)
    settings: dict[str, object] = {**_COMMON, **_SPECIFIC[architecture]}
    settings |= {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    settings |= {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    if encoder:
        settings |= {"cls_token_id": 1, "sep_token_id": 2, "max_position_embeddings": 512}
        settings |= _SPECIFIC[architecture]
    if task == "reward":
        settings |= {"num_labels": 1, "problem_type": "regression"}
    config = AutoConfig.for_model(architecture, **(settings | overrides))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _AUTO[task].from_config(config)
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "norm" not in name:
                torch.nn.init.normal_(parameter, std=0.1)
            elif name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.02)
    return model.eval()


def tiny_checkpoint(
    directory: Path,
    architecture: str = "qwen2",
    task: Task = "reward",
    seed: int = 0,
    **overrides: object,
) -> Path:
    """Write a tiny checkpoint with its tokenizer to ``directory`` and return it."""
    tiny_model(architecture, task, seed, **overrides).save_pretrained(directory)
    tiny_tokenizer(is_encoder(architecture)).save_pretrained(directory)
    return directory
