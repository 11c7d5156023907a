"""Text in somebody's chat template, read back into messages.

Trainers send prompt and response in the *policy's* template. A reward model that reads it as it
stands reads a format it was never trained on; read back into messages it can be rendered in the
reward model's own.

A template is turned round by rendering conversations of marker words: what stands between the
markers is what separates the turns. No template has to be written down twice.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from reward_model.errors import ItemError, UsageError

if TYPE_CHECKING:
    from reward_model.encode import Message

Render = Callable[[Sequence[dict[str, str]], bool], str]
"""Messages, and whether to add the header of an answer to come, to text."""

_SYSTEM, _USER, _ANSWER, _USER2, _ANSWER2 = (f"Zq{n}marker{n}qZ" for n in range(5))

_TURNS = "{% for m in messages %}"
_ANSWER_HEADER = "{% if add_generation_prompt %}"
TEMPLATES: dict[str, tuple[str, ...]] = {
    "chatml": (
        _TURNS + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        + _ANSWER_HEADER + "<|im_start|>assistant\n{% endif %}",
    ),
    "llama2": (
        "{% set n = 1 if messages[0].role == 'system' else 0 %}{% for m in messages[n:] %}"
        "{% if m.role == 'user' %}<s>[INST] {% if loop.first and n %}<<SYS>>\n"
        "{{ messages[0].content }}\n<</SYS>>\n\n{% endif %}{{ m.content }} [/INST]"
        "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}",
    ),
    "llama3": (
        "<|begin_of_text|>" + _TURNS + "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content }}<|eot_id|>{% endfor %}"
        + _ANSWER_HEADER + "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    ),
    "zephyr": (
        _TURNS + "<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
        + _ANSWER_HEADER + "<|assistant|>\n{% endif %}",
    ),
    "mistral": tuple(
        "<s>" + _TURNS + "{% if m.role == 'user' %}" + before + "{{ m.content }}" + after
        + "{% elif m.role == 'assistant' %}" + answer + "{{ m.content }}</s>"
        "{% else %}{{ raise_exception('no system turn') }}{% endif %}{% endfor %}"
        for before, after, answer in (
            ("[INST] ", " [/INST]", " "), ("[INST] ", " [/INST]", ""), ("[INST]", "[/INST]", ""),
        )
    ),
    "gemma": (
        "<bos>" + _TURNS + "{% if m.role == 'system' %}{{ raise_exception('no system turn') }}"
        "{% endif %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content }}<end_of_turn>\n{% endfor %}"
        + _ANSWER_HEADER + "<start_of_turn>model\n{% endif %}",
    ),
}  # fmt: skip
"""Formats by name, some in the variants that are in use."""

_BOS = {"llama2": "<s>", "llama3": "<|begin_of_text|>", "mistral": "<s>", "gemma": "<bos>"}


@dataclass(frozen=True, slots=True)
class _Grammar:
    """What stands around the turns of one template.

    ``openings`` are (text before the first turn, whether that turn is the system's).
    """

    openings: tuple[tuple[str, bool], ...]
    after_system: str
    before_answers: tuple[str, ...]
    before_users: tuple[str, ...]
    endings: tuple[str, ...]

    def parse(self, text: str) -> "list[Message] | None":
        for opening, has_system in self.openings:
            if text.startswith(opening):
                turns = self._turns(text[len(opening) :], has_system)
                if turns is not None:
                    return turns
        return None

    def _turns(self, rest: str, has_system: bool) -> "list[Message] | None":
        turns: list[Message] = []
        if has_system:
            content, found, rest = rest.partition(self.after_system)
            if not found:
                return None
            turns.append({"role": "system", "content": content})
        while True:
            match = _first(self.before_answers, rest)
            if match is None:
                return None
            turns.append({"role": "user", "content": rest[: match.start()]})
            rest = rest[match.end() :]
            match = _first(self.before_users, rest)
            if match is None:
                turns.append({"role": "assistant", "content": self._without_ending(rest)})
                return turns
            turns.append({"role": "assistant", "content": rest[: match.start()]})
            rest = rest[match.end() :]

    def _without_ending(self, text: str) -> str:
        for ending in self.endings:
            if text.endswith(ending):
                return text[: -len(ending)]
        return text  # cut off by a token limit


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """Reads text of one chat template back. Holds strings only, so it can be pickled."""

    name: str
    grammars: tuple[_Grammar, ...]

    @classmethod
    def of(cls, source: str) -> "ChatFormat":
        """A format by name, or that of the tokenizer in a directory.

        Raises:
            UsageError: there is no such format, or its template cannot be turned round.
        """
        if source in TEMPLATES:
            renders = [_jinja(template) for template in TEMPLATES[source]]
            return cls(source, tuple(_grammar(render, _BOS.get(source, "")) for render in renders))
        path = Path(source)
        if not path.is_dir():
            raise UsageError(
                f"chat_format: {source!r} is none of {', '.join(sorted(TEMPLATES))}, and no "
                "directory of a tokenizer"
            )
        try:
            return cls(source, (_grammar(*_tokenizer(path)),))
        except (TemplateError, ValueError) as error:
            raise UsageError(
                f"chat_format: the template of {source} cannot be read back: {error}"
            ) from None

    def parse(self, text: str) -> "list[Message]":
        """The conversation that ``text`` holds; its last turn is the assistant's.

        Raises:
            ItemError: ``template_failed`` where it does not parse.
        """
        for grammar in self.grammars:
            if (turns := grammar.parse(text)) is not None:
                return turns
        raise ItemError(
            "template_failed", f"the text is no conversation in the chat format {self.name}"
        )


def _first(separators: Sequence[str], text: str) -> "re.Match[str] | None":
    """The earliest separator; of several at one place the longest."""
    longest_first = sorted(separators, key=len, reverse=True)
    return re.search("|".join(map(re.escape, longest_first)), text)


def _grammar(render: Render, bos: str) -> _Grammar:
    user, answer = {"role": "user", "content": _USER}, {"role": "assistant", "content": _ANSWER}
    later = [{"role": "user", "content": _USER2}, {"role": "assistant", "content": _ANSWER2}]
    start, to_answer, to_user, to_answer2, end = _between(
        render([user, answer, *later], False), _USER, _ANSWER, _USER2, _ANSWER2
    )
    _, to_last, _ = _between(render([user, answer], False), _USER, _ANSWER)
    _, to_new = _between(render([user], True), _USER)
    openings, after_system = [(start, False)], ""
    try:
        turns = [{"role": "system", "content": _SYSTEM}, user, answer]
        start, after_system, *_ = _between(render(turns, False), _SYSTEM, _USER, _ANSWER)
        openings.append((start, True))
    except (TemplateError, ValueError):
        pass  # this template knows no system turn
    openings += [(s.removeprefix(bos), system) for s, system in openings if bos]
    if not (to_answer and to_user and to_answer2):
        raise ValueError("nothing stands between its turns")
    answers = {to_answer, to_answer2, to_last, to_new} - {""}
    return _Grammar(
        openings=tuple(sorted(dict.fromkeys(openings), key=lambda opening: -len(opening[0]))),
        after_system=after_system,
        before_answers=tuple(sorted(answers)),
        before_users=(to_user,),
        endings=tuple(_endings(end)),
    )


def _endings(end: str) -> Iterator[str]:
    """All of it, or what a model writes itself: up to the end of its stop token."""
    if end:
        yield end
    if end.rstrip() and end.rstrip() != end:
        yield end.rstrip()
    if end.strip() and end.strip() not in (end, end.rstrip()):
        yield end.strip()


def _between(text: str, *markers: str) -> list[str]:
    """What stands before, between and after the markers."""
    parts: list[str] = []
    for marker in markers:
        before, found, text = text.partition(marker)
        if not found:
            raise ValueError("it leaves turns out")
        parts.append(before)
    return [*parts, text]


def _jinja(template: str) -> Render:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _raise
    compiled = environment.from_string(template)

    def render(messages: Sequence[dict[str, str]], add_generation_prompt: bool) -> str:
        return compiled.render(messages=list(messages), add_generation_prompt=add_generation_prompt)

    return render


def _raise(message: str) -> None:
    raise TemplateError(message)


def _tokenizer(path: Path) -> tuple[Render, str]:
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"chat_format: {path}: no usable tokenizer: {reason}") from None
    if not tokenizer.chat_template:
        raise UsageError(f"chat_format: the tokenizer of {path} has no chat template")

    def render(messages: Sequence[dict[str, str]], add_generation_prompt: bool) -> str:
        return str(
            tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )

    return render, tokenizer.bos_token or ""
