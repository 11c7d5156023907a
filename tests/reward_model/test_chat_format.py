"""Chat templates read backwards: every format, several turns, and what must not parse."""

import pickle
from pathlib import Path

import pytest

from reward_model.chat_format import TEMPLATES, ChatFormat
from reward_model.contract import Contract
from reward_model.encode import Encoder
from reward_model.errors import ItemError, UsageError
from tests.checkpoints import tiny_tokenizer

ONE = [("user", "Why is the sky\nblue?"), ("assistant", "Scattering. [x] {y}\n\nIt is.")]
SYSTEM = [("system", "Be brief."), *ONE]
LONG = [*ONE, ("user", "And red?"), ("assistant", "At dusk.")]

# Written out by hand, so that nothing but the parser turns the templates round.
TEXTS = {
    "chatml": {
        "one": "<|im_start|>user\n{0}<|im_end|>\n<|im_start|>assistant\n{1}<|im_end|>\n",
        "long": "<|im_start|>user\n{0}<|im_end|>\n<|im_start|>assistant\n{1}<|im_end|>\n"
        "<|im_start|>user\n{2}<|im_end|>\n<|im_start|>assistant\n{3}<|im_end|>",
        "system": "<|im_start|>system\n{0}<|im_end|>\n<|im_start|>user\n{1}<|im_end|>\n"
        "<|im_start|>assistant\n{2}",
    },
    "llama2": {
        "one": "<s>[INST] {0} [/INST] {1} </s>",
        "long": "[INST] {0} [/INST] {1} </s><s>[INST] {2} [/INST] {3}</s>",
        "system": "<s>[INST] <<SYS>>\n{0}\n<</SYS>>\n\n{1} [/INST] {2} </s>",
    },
    "llama3": {
        "one": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{0}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n{1}<|eot_id|>",
        "long": "<|start_header_id|>user<|end_header_id|>\n\n{0}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n{1}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n{2}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n{3}",
        "system": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{0}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n{1}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n{2}<|eot_id|>",
    },
    "zephyr": {
        "one": "<|user|>\n{0}</s>\n<|assistant|>\n{1}</s>\n",
        "long": "<|user|>\n{0}</s>\n<|assistant|>\n{1}</s>\n<|user|>\n{2}</s>\n"
        "<|assistant|>\n{3}</s>",
        "system": "<|system|>\n{0}</s>\n<|user|>\n{1}</s>\n<|assistant|>\n{2}</s>",
    },
    "mistral": {
        "one": "<s>[INST] {0} [/INST]{1}</s>",
        "spaced": "<s>[INST] {0} [/INST] {1}</s>",
        "tight": "[INST]{0}[/INST]{1}</s>",
        "long": "<s>[INST] {0} [/INST] {1}</s>[INST] {2} [/INST] {3}</s>",
    },
    "gemma": {
        "one": "<bos><start_of_turn>user\n{0}<end_of_turn>\n<start_of_turn>model\n{1}"
        "<end_of_turn>\n",
        "long": "<start_of_turn>user\n{0}<end_of_turn>\n<start_of_turn>model\n{1}<end_of_turn>\n"
        "<start_of_turn>user\n{2}<end_of_turn>\n<start_of_turn>model\n{3}<end_of_turn>",
    },
}
CASES = [(name, kind) for name, texts in TEXTS.items() for kind in texts]


def test_every_format_is_tried() -> None:
    assert set(TEXTS) == set(TEMPLATES)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_text_is_read_back_into_its_turns(name: str, kind: str) -> None:
    turns = {"long": LONG, "system": SYSTEM}.get(kind, ONE)
    text = TEXTS[name][kind].format(*(content for _, content in turns))
    parsed = pickle.loads(pickle.dumps(ChatFormat.of(name))).parse(text)
    assert [(turn["role"], turn["content"]) for turn in parsed] == turns


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Why?",
        "<|im_start|>user\nWhy?<|im_end|>\n",  # nobody answers
        "cut off<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>\n",
        "<|im_start|>tool\nWhy?<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>\n",
        "<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>",
    ],
)
def test_what_does_not_parse_is_an_item_error(text: str) -> None:
    with pytest.raises(ItemError, match="chat format chatml") as raised:
        ChatFormat.of("chatml").parse(text)
    assert raised.value.type == "template_failed"
    assert "Why" not in str(raised.value)


DEFAULT_SYSTEM = (
    "{{ bos_token }}{% if messages[0].role != 'system' %}<S>You are kind.<E>{% endif %}"
    "{% for m in messages %}{% if m.role == 'system' %}<S>{{ m.content }}<E>"
    "{% elif m.role == 'user' %}<U>{{ m.content | trim }}<E>{% else %}<A>"
    "{% if loop.last %}<think></think>{% endif %}"
    "{{ m.content }}<E>{% endif %}{% endfor %}{% if add_generation_prompt %}<A>{% endif %}"
)


def policy_tokenizer(path: Path, template: str) -> Path:
    tokenizer = tiny_tokenizer()
    own = tokenizer.chat_template
    try:
        tokenizer.chat_template = template
        tokenizer.save_pretrained(path)
    finally:
        tokenizer.chat_template = own
    return path


def test_any_template_of_a_tokenizer_is_turned_round(tmp_path: Path) -> None:
    """A default system turn, trimming, and a last answer that is rendered unlike earlier ones."""
    form = ChatFormat.of(str(policy_tokenizer(tmp_path, DEFAULT_SYSTEM)))
    with_default = form.parse("<S>You are kind.<E><U>Why?<E><A>So.<E><U>And?<E><A>Hm.")
    assert [turn["content"] for turn in with_default] == ["Why?", "So.", "And?", "Hm."]
    with_own = form.parse("<S>Be rude.<E><U>Why?<E><A><think></think>So.<E>")
    assert [turn["content"] for turn in with_own] == ["Be rude.", "Why?", "So."]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ messages[-1].content }}", "leaves turns out"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "nothing stands between"),
        ("{{ raise_exception('never') }}", "never"),
    ],
)
def test_a_template_that_cannot_be_turned_round_is_refused(
    tmp_path: Path, template: str, reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        ChatFormat.of(str(policy_tokenizer(tmp_path, template)))


def test_an_unknown_format_names_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"'chatlm' is none of chatml, gemma"):
        ChatFormat.of("chatlm")


def test_texts_are_rendered_in_the_models_own_template() -> None:
    contract = Contract(bos="none", append_eos=True, pooling="last", max_length=512)
    tokenizer = tiny_tokenizer()
    plain = Encoder(tokenizer, contract, 400)
    reading = pickle.loads(pickle.dumps(Encoder(tokenizer, contract, 400, ChatFormat.of("llama3"))))
    text = TEXTS["llama3"]["one"].format("Why?", "So.")
    assert reading.text(text) == plain.prompt_response("Why?", "So.")
    assert plain.text(text) != plain.prompt_response("Why?", "So.")
    assert reading.prompt_response("Why?", "So.") == plain.prompt_response("Why?", "So.")
