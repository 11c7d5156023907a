import pytest

from reward_model.contract import Contract
from reward_model.encode import Encoder
from reward_model.errors import ItemError
from tests.checkpoints import tiny_tokenizer

MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]


def encoder(**changes: object) -> Encoder:
    settings = {"bos": "none", "append_eos": True, "pooling": "last", "max_length": 64}
    return Encoder(tiny_tokenizer(), Contract.model_validate(settings | changes), vocab_size=400)


def encoder_with_bos(**changes: object) -> Encoder:
    settings = {"bos": "one", "append_eos": True, "pooling": "cls", "max_length": 64}
    tokenizer = tiny_tokenizer(encoder=True)
    return Encoder(tokenizer, Contract.model_validate(settings | changes), vocab_size=400)


def test_nothing_follows_eos() -> None:
    """The template ends in a newline after EOS; the head must read EOS."""
    item = encoder().messages(MESSAGES)
    assert encoder().render(MESSAGES).endswith("<|im_end|>\n")
    assert item.token_ids[-1] == encoder().eos_id
    assert item.token_ids[-2] != encoder().eos_id


def test_a_foreign_contract_keeps_the_template_verbatim() -> None:
    verbatim = encoder(append_eos=False)
    ids = verbatim.messages(MESSAGES).token_ids
    assert verbatim.tokenizer.decode(ids) == verbatim.render(MESSAGES)


@pytest.mark.parametrize("text", ["Hello", "Hello<|im_end|>", "Hello<|im_end|>\n", "Hello\n"])
def test_exactly_one_eos(text: str) -> None:
    ids = encoder().text(text).token_ids
    assert ids.count(encoder().eos_id) == 1
    assert ids[-1] == encoder().eos_id


@pytest.mark.parametrize("text", ["Hi", "[CLS]Hi", "[CLS][CLS]Hi"])
def test_exactly_one_bos_whoever_sends_it(text: str) -> None:
    one = encoder_with_bos()
    assert one.text(text).token_ids[:2] == one.text("Hi").token_ids[:2]
    assert one.text(text).token_ids.count(one.bos_id) == 1
    assert one.bos_id not in encoder_with_bos(bos="none").text(text).token_ids


def test_prompt_and_messages_are_the_same_thing() -> None:
    assert encoder().prompt_response("Hi", "Hello.") == encoder().messages(MESSAGES)
    assert encoder().prompt_response(MESSAGES[:1], "Hello.") == encoder().messages(MESSAGES)


def test_a_response_goes_on_from_its_prompt() -> None:
    """Prefixes are found by tokens: two responses share the prompt's."""
    one, two = (encoder().prompt_response("A long question?", text) for text in ("Yes", "No"))
    shared = sum(a == b for a, b in zip(one.token_ids, two.token_ids, strict=False))
    assert shared >= len(one.token_ids) - 4


def test_too_long_is_an_error_by_default() -> None:
    with pytest.raises(ItemError) as caught:
        encoder(max_length=8).text("word " * 50)
    assert caught.value.type == "too_long"


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation_keeps_the_ends(side: str) -> None:
    whole = encoder_with_bos(max_length=500).text("abcdefgh" * 10).token_ids
    cut = encoder_with_bos(max_length=12).text("abcdefgh" * 10, side)
    assert cut.truncated
    assert len(cut.token_ids) == 12
    assert (cut.token_ids[0], cut.token_ids[-1]) == (whole[0], whole[-1])
    body = whole[-11:-1] if side == "left" else whole[1:11]
    assert cut.token_ids[1:-1] == body


def test_token_ids_are_taken_verbatim() -> None:
    assert encoder().token_ids([7, 8, 9]).token_ids == (7, 8, 9)


@pytest.mark.parametrize(
    ("ids", "reason"), [([], "empty"), ([1, 400], "invalid_token_id"), ([-1], "invalid_token_id")]
)
def test_bad_token_ids(ids: list[int], reason: str) -> None:
    with pytest.raises(ItemError) as caught:
        encoder().token_ids(ids)
    assert caught.value.type == reason


def test_a_template_that_refuses_says_why() -> None:
    refusing = encoder()
    refusing.tokenizer = tiny_tokenizer().__class__(
        tokenizer_object=tiny_tokenizer().backend_tokenizer, eos_token="<|im_end|>"
    )
    refusing.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ItemError, match="roles must alternate") as caught:
        refusing.messages(MESSAGES)
    assert caught.value.type == "template_failed"


def test_empty_text() -> None:
    with pytest.raises(ItemError) as caught:
        encoder().text("")
    assert caught.value.type == "empty"
