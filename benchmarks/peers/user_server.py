"""A simulated user that always says the same, as an OpenAI-compatible server on loopback that answers after a delay.

It answers in the form that the official package expects of its user simulator: a JSON object with three keys.
"""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from wire import answer

_CONTENT = json.dumps(
    {"current_answer": "", "thought": "", "response": "Please keep it short, and mention the garden gate."}
)
_COMPLETION = json.dumps(
    {
        "id": "user",
        "object": "chat.completion",
        "created": 0,
        "model": "user",
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": _CONTENT}},
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
).encode()


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True
    latency = 0.0
    answered = 0
    lock = threading.Lock()


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"  # connections are kept
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(self.server.latency)
        with self.server.lock:
            self.server.answered += 1
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(_COMPLETION)))
        self.end_headers()
        self.wfile.write(_COMPLETION)

    def log_message(self, *args: Any) -> None:
        pass


def start(latency: float) -> Any:
    server = _Server(("127.0.0.1", 0), _Handler)
    server.latency = latency
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    return {"url": url}, {"answered": lambda: {"answered": server.answered}}


if __name__ == "__main__":
    answer(start)
