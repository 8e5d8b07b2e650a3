"""A judge: what it's sent, what its replies count for, and what is said where it can't be reached."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from llama3_scratch import evaluate
from llama3_scratch.errors import Llama3Error, UsageError
from llama3_scratch.evaluation.judge import PROMPT, Judge, mark_in
from tests import tiny


class Endpoint:
    """An OpenAI-compatible endpoint that says what it's told to, and keeps what it was asked."""

    def __init__(self) -> None:
        self.says: list[tuple[int, str]] = [(200, completion("80"))]
        self.asked: list[tuple[str, str | None, dict]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append((self.path, self.headers.get("Authorization"), body))
                status, text = outer.says[min(len(outer.asked), len(outer.says)) - 1]
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *args) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def completion(text: str) -> str:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


@pytest.fixture
def endpoint():
    endpoint = Endpoint()
    yield endpoint
    endpoint.server.shutdown()
    endpoint.server.server_close()


@pytest.mark.parametrize(
    ("reply", "mark"),
    [
        *(("85", 85), (" 100.", 100), ("Mark: 0", 0), ("<think>not 90, rather less</think>\n70", 70)),
        *(("101", None), ("-5", None), ("7.5", None), ("very good", None), ("", None)),
    ],
)
def test_the_mark_in_a_reply(reply, mark):
    assert mark_in(reply) == mark


def test_the_judge_sees_task_reference_and_answer(endpoint):
    assert Judge(endpoint.url + "/", "fair", key="secret").mark("Add 1 and 1.", "2", "two") == 80
    [(path, key, body)] = endpoint.asked
    assert (path, key) == ("/v1/chat/completions", "Bearer secret")
    assert body["model"] == "fair" and body["temperature"] == 0
    assert body["messages"][0]["content"] == PROMPT.format(task="Add 1 and 1.", reference="2", answer="two")


def test_it_is_asked_again_where_that_may_help(endpoint):
    endpoint.says = [(503, ""), (429, ""), (200, completion("40"))]
    assert Judge(endpoint.url, "fair", pause=0).mark("a", "b", "c") == 40 and len(endpoint.asked) == 3
    endpoint.says, endpoint.asked[:] = [(503, "")], []
    with pytest.raises(Llama3Error, match="/v1: HTTP 503"):
        Judge(endpoint.url, "fair", pause=0).mark("a", "b", "c")
    assert len(endpoint.asked) == 3


@pytest.mark.parametrize(
    ("says", "said"),
    [((401, ""), "HTTP 401"), ((200, "<html>"), "isn't a chat completion's JSON"), ((200, "{}"), "isn't a chat")],
)
def test_what_no_second_try_can_mend_is_said_at_once(endpoint, says, said):
    endpoint.says = [says]
    with pytest.raises(Llama3Error, match=said):
        Judge(endpoint.url, "fair", pause=0).mark("a", "b", "c")
    assert len(endpoint.asked) == 1


def test_an_address_is_of_the_web():
    with pytest.raises(UsageError, match="must begin with http:// or https://, got 'file:///etc/passwd'"):
        Judge("file:///etc/passwd", "fair")
    with pytest.raises(Llama3Error, match=r"judge http://127\.0\.0\.1:9 can\'t be reached: .*refused; see that"):
        Judge("http://127.0.0.1:9", "fair", pause=0).mark("a", "b", "c")


def test_evaluate_marks_the_answers_of_both_models(endpoint, tmp_path, capsys, monkeypatch):
    model, other = (tiny.folder(tmp_path / name, "llama3") for name in ("one", "two"))
    rows = [{"instruction": f"Say {n}", "input": "", "output": str(n)} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    endpoint.says = [(200, completion(text)) for text in ("10", "20", "none", "60", "60", "60")]
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    asked = [str(model), "--against", str(other), "--instructions", str(tmp_path / "rows.jsonl"), "--max-tokens", "4"]
    judged = [*asked, "--judge", endpoint.url, "--judge-model", "fair"]
    assert evaluate.main([*judged, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["instructions"]
    assert [row["reference"] for row in found["rows"]] == ["0", "1", "2"]
    assert [row[f"mark of {model}"] for row in found["rows"]] == [10, 20, None]
    assert found["marks"][str(model)] == {"judge": "fair", "marked": 2, "mean": 15.0, "error": 5.0}
    assert found["marks"][str(other)]["mean"] == 60 and found["marks"][str(other)]["error"] == 0
    assert all(key == "Bearer secret" for _, key, _ in endpoint.asked)
    assert evaluate.main(judged) == 0
    out = capsys.readouterr().out
    assert "reference: 2" in out and "mark of 3" in out and "60.0" in out
    endpoint.says, endpoint.asked[:] = [(200, completion("70")), (401, "")], []
    assert evaluate.main([*judged, "--json"]) == 1  # a judge that fails loses no answer
    out, err = capsys.readouterr()
    found = json.loads(out)["instructions"]
    assert all(row[str(model)] and row[str(other)] for row in found["rows"]) and "HTTP 401" in err
    assert found["marks"][str(model)]["mean"] == 70 and found["marks"][str(model)]["error"] is None
    assert [found["marks"][str(name)]["marked"] for name in (model, other)] == [1, 0] and len(endpoint.asked) == 2
    too_long = (400, json.dumps({"error": {"message": "the context is 4096 tokens, the request has 9000"}}))
    endpoint.says, endpoint.asked[:] = [too_long, (200, completion("70"))], []
    assert evaluate.main([*judged, "--json"]) == 0  # an answer that can't be marked doesn't end the others' marks
    out, err = capsys.readouterr()
    assert (
        f"rows.jsonl, conversation 1: no mark: judge {endpoint.url}: HTTP 400 Bad Request: the context is 4096" in err
    )
    assert [one["marked"] for one in json.loads(out)["instructions"]["marks"].values()] == [2, 3]
    endpoint.says, endpoint.asked[:] = [too_long], []
    assert evaluate.main([*judged, "--json"]) == 1 and "error: judge" in capsys.readouterr().err
    asked_before = len(endpoint.asked)
    assert evaluate.main(asked) == 0  # without a judge the answers alone
    assert "reference: 1" in capsys.readouterr().out and len(endpoint.asked) == asked_before


def test_a_judge_and_what_it_is_to_mark_come_together(tmp_path, capsys):
    for more in (["--judge", "http://x"], ["--instructions", "x", "--judge", "http://x"], ["--judge-model", "fair"]):
        assert evaluate.main(["model", "--text", "x", *more]) == 2
        assert "give these, --judge and --judge-model together" in capsys.readouterr().err
