from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from reward_model.encode import Message
from trainer.sft.config import FromScratch
from trainer.sft.scratch import END, new_model, texts_of, train_tokenizer

TURNS = [
    Message(role="user", content="Tell me about the mill."),
    Message(role="assistant", content="The mill has flour."),
]
SHAPE = FromScratch(hidden_size=32, intermediate_size=48, layers=1, heads=2, kv_heads=1)


def tokenizer():  # type: ignore[no-untyped-def]
    return train_tokenizer(texts_of([TURNS] * 3), 320)


def test_tokens_round_trip_and_pad_is_not_eos() -> None:
    made = tokenizer()
    text = "Ünïcode, newlines\nand the mill."
    assert made.decode(made(text)["input_ids"]) == text
    assert made.pad_token_id != made.eos_token_id
    assert made.bos_token_id is None


def test_the_prompt_is_a_prefix_of_the_conversation() -> None:
    made = tokenizer()
    prompt = made.apply_chat_template(TURNS[:1], tokenize=False, add_generation_prompt=True)
    whole = made.apply_chat_template(TURNS, tokenize=False)
    assert whole.startswith(prompt + "The mill has flour." + END)


def test_the_assistant_s_tokens_and_end_of_turn_are_marked() -> None:
    made = tokenizer()
    marked = made.apply_chat_template(
        TURNS, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    learned = [
        token
        for token, mask in zip(marked["input_ids"], marked["assistant_masks"], strict=True)
        if mask
    ]
    assert made.decode(learned) == "The mill has flour." + END


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_weights_are_seeded_and_untied(architecture: str) -> None:
    made = tokenizer()
    shape = SHAPE.model_copy(update={"architecture": architecture})
    first, second = (new_model(shape, made, seed=3) for _ in range(2))
    other = new_model(shape, made, seed=4)
    assert first.config.model_type == architecture
    embeddings, output = first.get_input_embeddings().weight, first.get_output_embeddings().weight
    assert torch.equal(output, second.get_output_embeddings().weight)
    assert not torch.equal(output, other.get_output_embeddings().weight)
    assert embeddings.data_ptr() != output.data_ptr()
    assert not first.config.tie_word_embeddings
    assert first.generation_config.eos_token_id == made.eos_token_id


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_the_tokenizer_reads_the_same_when_opened_again(architecture: str, tmp_path: Path) -> None:
    made = train_tokenizer(["Number 12 is here, it's 345.", "Number 2 or Number 12?"] * 9, 320)
    shape = SHAPE.model_copy(update={"architecture": architecture})
    new_model(shape, made, seed=0).save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    opened = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("Number 12 is here?", "it's\n\n  345  ", "Ünïcode ½ e\u0301", "<|im_end|>\n"):
        assert opened(text)["input_ids"] == made(text)["input_ids"]
    assert opened.apply_chat_template(TURNS, tokenize=False) == made.apply_chat_template(
        TURNS, tokenize=False
    )


def test_heads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="even number"):
        FromScratch(hidden_size=36, heads=4)
    with pytest.raises(ValueError, match="multiple of kv_heads"):
        FromScratch(heads=4, kv_heads=3)
