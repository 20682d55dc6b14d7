"""A real HTTP server on loopback that speaks what of the Hugging Face hub an upload needs.

It takes each file as a part of the commit (`uploadMode` "regular"). The hub itself takes large files through its own
storage, which only the hub has; that part of `huggingface_hub` is not tried here.
"""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from huggingface_hub import constants

TOKEN = "hf_of-ada"


class HubServer:
    """Use it as a context manager; it listens on a port of its own.

    Args:
        role: Of the token, as the hub tells it.
        refuse: Paths that are answered with 403.

    Attributes:
        repos: "models/OWNER/NAME" or "datasets/OWNER/NAME" -> {"private": ..., "files": {path: content}}.
        calls: Method and path of each request.
    """

    def __init__(self, role: str = "write", refuse: tuple[str, ...] = ()) -> None:
        self.role, self.refuse = role, refuse
        self.repos: dict[str, dict[str, Any]] = {}
        self.calls: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._send(200, b"")

            def do_GET(self) -> None:
                self._answer({})

            def do_POST(self) -> None:
                self._answer(self.rfile.read(int(self.headers.get("content-length", 0))))

            def _answer(self, body: Any) -> None:
                path = unquote(self.path.partition("?")[0])
                hub.calls.append(f"{self.command} {path}")
                status, answer = 403, {"error": "forbidden"}
                if self.headers.get("authorization") != f"Bearer {TOKEN}":
                    status, answer = 401, {"error": "invalid token"}
                elif path not in hub.refuse:
                    status, answer = hub.answer(path.strip("/").split("/"), body)
                self._send(status, json.dumps(answer).encode())

            def _send(self, status: int, data: bytes) -> None:
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                if status == 404:
                    self.send_header("x-error-code", "RepoNotFound")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()  # seconds to its end
        return self

    def __exit__(self, *details: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: list[str], body: bytes) -> tuple[int, dict[str, Any]]:
        """Status and JSON."""
        match path:
            case ["api", "whoami-v2"]:
                token = {"displayName": "test", "role": self.role}
                return 200, {"name": "ada", "orgs": [{"name": "lab"}], "auth": {"accessToken": token}}
            case ["api", "repos", "create"]:
                asked = json.loads(body)
                name = f"{asked.get('type', 'model')}s/{asked.get('organization') or 'ada'}/{asked['name']}"
                private = asked.get("private") is True or asked.get("visibility") == "private"
                there = name in self.repos
                self.repos.setdefault(name, {"private": private, "files": {}})
                place = name.removeprefix("models/")
                return 409 if there else 200, {"url": f"{self.url}/{place}"}
            case ["api", "validate-yaml"]:
                return 200, {"errors": [], "warnings": []}
            case ["api", kind, owner, name, "preupload", _]:
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                    for file in json.loads(body)["files"]
                ]
                return 200, {"files": files}
            case ["api", kind, owner, name, "commit", _]:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        content = base64.b64decode(line["value"]["content"])
                        self.repos[f"{kind}/{owner}/{name}"]["files"][line["value"]["path"]] = content
                return 200, {"commitUrl": f"{self.url}/{owner}/{name}/commit/1", "commitOid": "1" * 40, "success": True}
            case ["api", kind, owner, name, *_] if f"{kind}/{owner}/{name}" in self.repos:
                repo = self.repos[f"{kind}/{owner}/{name}"]
                about = {"id": f"{owner}/{name}", "private": repo["private"], "sha": "0" * 40, "siblings": []}
                return 200, about
        return 404, {"error": "there is no such repository"}

    def download(self, name: str, folder: Path) -> Path:
        """Write the files of a repository below a folder."""
        for path, content in self.repos[name]["files"].items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        return folder


def use_hub(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this server were the hub, and its token were here."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for name in ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
