"""Responses from a model server and gold labels from a reward URL, over real HTTP, resumed."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from reward_model.errors import SumzeroError, UsageError
from trainer.data.generate import GenerateSettings, generate
from trainer.data.label import LabelSettings, label
from trainer.data.rows import write_rows
from trainer.data.scored import read_scored


class Answers:
    """A chat server and a reward server in one; it can stop answering after some requests."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.stop_after: int | None = None

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            return 401, {"error": {"message": "gone", "type": "unauthorized"}}
        if path.endswith("/chat/completions"):
            text = body["messages"][-1]["content"]
            self.asked.append(text)
            if "too long" in text:
                return 400, {"error": "too long"}
            return 200, {"choices": [
                {"message": {"content": f"{text} {n}"}, "finish_reason": "length" if n else "stop"}
                for n in range(body["n"])
            ]}  # fmt: skip
        results = []
        for item in body["items"]:
            self.asked.append(json.dumps(item["prompt"]))
            scores = [None if "bad" in text else float(len(text)) for text in item["responses"]]
            errors = [{"type": "x", "message": "x"} if one is None else None for one in scores]
            results.append({"scores": scores, "errors": errors, "num_tokens": [1] * len(scores)})
        return 200, {"results": results, "model": {"version": "sha256:0"}, "model_version": "v"}


@contextmanager
def serving(answers: Answers) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status, content = answers.answer(self.path, body)
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    names = ["one", "two", "too long", "three", "four"]
    write_rows(path, [{"prompt_id": name, "prompt": name} for name in names])
    return path


def test_generate_and_its_resumption(prompts: Path, tmp_path: Path) -> None:
    answers = Answers()
    with serving(answers) as url:
        wanted = GenerateSettings(
            prompts=str(prompts), out=tmp_path / "out.jsonl", url=f"{url}/v1", model="m", n=2,
            at_once=1,
        )  # fmt: skip
        answers.stop_after = 2
        with pytest.raises(SumzeroError):
            generate(wanted)
        assert not wanted.out.exists()
        answers.stop_after = None
        counts = generate(wanted)
    assert answers.asked == ["one", "two", "too long", "three", "four"]
    assert counts == {"prompts": 4, "refused": 1, "cut_at_max_tokens": 4}
    found = [json.loads(line) for line in wanted.out.read_text().splitlines()]
    assert [row["prompt_id"] for row in found] == ["one", "two", "three", "four"]
    assert found[0]["responses"] == [
        {"model": "m", "text": "one 0"}, {"model": "m", "text": "one 1"}
    ]  # fmt: skip
    assert not Path(f"{wanted.out}.partial").exists()
    with pytest.raises(UsageError, match="is there already"):
        generate(wanted)


def test_a_journal_of_other_settings_is_refused(prompts: Path, tmp_path: Path) -> None:
    answers = Answers()
    answers.stop_after = 1
    with serving(answers) as url:
        base = {"prompts": str(prompts), "out": tmp_path / "o.jsonl", "url": url, "model": "m"}
        with pytest.raises(SumzeroError):
            generate(GenerateSettings(**base, at_once=1))
        with pytest.raises(UsageError, match="begun with other settings"):
            generate(GenerateSettings(**base, temperature=0.1))


def test_label_and_its_resumption(tmp_path: Path) -> None:
    source = tmp_path / "responses.jsonl"
    write_rows(source, [
        {"prompt_id": f"p{n}", "prompt": f"Q{n}", "responses": [
            {"model": "m", "text": "x" * (n + 1)}, {"model": "m", "text": f"bad {n}"},
        ]}
        for n in range(6)
    ])  # fmt: skip
    answers = Answers()
    with serving(answers) as url:
        wanted = LabelSettings(source=str(source), out=tmp_path / "s.jsonl", url=[url], at_once=2)
        answers.stop_after = 3
        with pytest.raises(SumzeroError, match="go on"):
            label(wanted)
        before = len(answers.asked)
        assert before >= 3
        answers.stop_after = None
        assert label(wanted) == {"prompts": 6, "responses": 6, "without_score": 6}
    assert len(answers.asked) == 6  # nothing was asked twice
    golds = [one.responses[0].gold for one in read_scored(str(wanted.out))]
    assert golds == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
