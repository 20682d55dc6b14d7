"""Fixed conversations and contexts of all three tasks, and one server on loopback that is user, judge and policy.

Its verdicts are drawn from all messages that a prompt shows, each of which has a code. So two programs get equal
verdicts only if they show their judge the same conversation. As extractor, it copies what stands between angle
quotes.
"""

from __future__ import annotations

import json
import re
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from collab.conversation import Agenda, AgendaItem, Conversation, Goal, Reply

_CODE = re.compile(r"#\d{4}")
_TESTS = """\
import unittest

class TestCases(unittest.TestCase):
    def test_values(self):
        self.assertEqual(task_func(3), 6)
        self.assertEqual(task_func(0), 0)
"""
GOALS = {
    "doc_edit": Goal(
        "official/doc_edit",
        "Write a notice about the summer fair.",
        "The summer fair is on Saturday at noon. Bring cake, and bring your neighbours!",
    ),
    "code": Goal(
        "official/code",
        "Write a function that doubles a number.",
        "def task_func(x):\n    return 2 * x\n",
        {
            "entry_point": "task_func",
            "tests": _TESTS,
            "agenda": Agenda(
                "program",
                "I need a function.",
                (AgendaItem("signature", "It has to start like this:\ndef task_func(x):"),),
            ).entry(),
        },
    ),
    "math": Goal("official/math", "What is 3 times 14?", "The product is 42, so the answer is \\boxed{42}."),
}
_RESULTS = {  # what the assistant writes in each of four conversations, in parts
    "doc_edit": (
        ("The summer fair is on Saturday at noon. Bring cake, and bring your neighbours!",),
        ("Summer fair: Saturday, noon.", " Please bring cake."),
        ("Ein Sommerfest, ünïcode 漢字 <|endoftext|> and a very different text",),
        ("",),
    ),
    "code": (
        ("def task_func(x):\n    return 2 * x\n",),
        ("import math\n\n", "def task_func(x):\n    return math.prod((2, x))\n"),
        ("def task_func(x):\n    return x + 3\n",),
        ("",),
    ),
    "math": (("42",), ("3 times 14 is", " 42"), ("41",), ("",)),
}
_CONTEXTS = ("doc_edit", "doc_edit", "code", "math")


@dataclass(frozen=True)
class Case:
    """A finished conversation, or a context with a candidate whose futures are played."""

    name: str
    task: str
    messages: list[dict[str, str]] = field(default_factory=list)

    @property
    def is_context(self) -> bool:
        return self.name.startswith("context")

    def conversation(self) -> Conversation:
        chat = Conversation(GOALS[self.task])
        for user, reply in zip(self.messages[::2], self.messages[1::2], strict=True):
            chat = chat.with_user(user["content"]).with_reply(Reply(reply["content"]))
        return chat


def cases() -> list[Case]:
    found = []
    for task, results in _RESULTS.items():
        for number, parts in enumerate(results):
            code = 1000 * (1 + list(_RESULTS).index(task)) + 10 * number
            found.append(Case(f"{task} {number + 1}", task, _talk(code, parts)))
    for number, task in enumerate(_CONTEXTS):
        found.append(Case(f"context {number + 1}", task, _talk(5000 + 10 * number, _RESULTS[task][number % 2])))
    return found


def _talk(code: int, parts: tuple[str, ...]) -> list[dict[str, str]]:
    texts = [f"Hello, I could use some help. #{code}", f"Gladly. Which day do you have in mind? #{code + 1}"]
    for number, part in enumerate(parts):
        place = code + 2 + 2 * number
        texts += [f"Please go on with it. #{place}", f"Here: «{part}» #{place + 1}"]
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


# --- the server ------------------------------------------------------------------------------------------------------


class Server:
    """Use it as a context manager. `url` is its address up to /v1."""

    def __enter__(self) -> Server:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer({"object": "list", "data": [{"id": name} for name in ("judge", "user", "policy")]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                message = {"role": "assistant", "content": _ANSWERS[body["model"]](body["messages"])}
                usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
                choice = {"index": 0, "finish_reason": "stop", "message": message}
                self.answer(
                    {"id": "-", "object": "chat.completion", "created": 0, "model": body["model"], "usage": usage}
                    | {"choices": [choice]}
                )

            def answer(self, found: Any) -> None:
                data = json.dumps(found).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _codes(text: str) -> list[str]:
    return list(dict.fromkeys(_CODE.findall(text)))


def _judge(messages: list[dict[str, str]]) -> str:
    text = "\n".join(message["content"] for message in messages)
    drawn = zlib.crc32(" ".join(_codes(text)).encode()) % 1000
    mark = re.search(r"with the mark ([0-9a-f]{8})", text)
    if "final_completion" in text or "<document" in text or "<program" in text:
        copy = "".join(json.loads(f'"{part}"') if "\\u" in part else part for part in re.findall("«(.*?)»", text, re.S))
        if mark is None:
            return json.dumps({"thought": "-", "final_completion": copy}, ensure_ascii=False)
        name = "document" if "<document" in text else "program"
        return f"<{name} {mark[1]}>\n{copy}\n</{name} {mark[1]}>"
    accuracy = '"accuracy"' in text or "right answer to a problem" in text
    score: float = drawn % 2 if accuracy else drawn / 1000
    if mark is None:
        return json.dumps({"thought": "-", "accuracy" if accuracy else "interactivity": score})
    return json.dumps({"reasons": "-", f"score_{mark[1]}": score})


def _user(messages: list[dict[str, str]]) -> str:
    last = max(int(code[1:]) for code in _codes("\n".join(message["content"] for message in messages)))
    said = f"Could the {('first', 'last')[last % 4 > 1]} part be friendlier? #{last + 1}"
    return json.dumps({"current_answer": "-", "thought": "-", "response": said, "message": said})


def _policy(messages: list[dict[str, str]]) -> str:
    last = int(_CODE.findall(messages[-1]["content"])[-1][1:])
    return f"I made it friendlier: «{' and more' if last % 4 > 1 else ''}» #{last + 1}"


_ANSWERS: dict[str, Callable[[list[dict[str, str]]], str]] = {"judge": _judge, "user": _user, "policy": _policy}
