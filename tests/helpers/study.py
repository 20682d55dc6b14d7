"""A study as a lab runs it: the command in a process of its own, and a person in a real browser or over plain HTTP."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from collab.study.main import main

ROOT = Path(__file__).parents[2]
CONSENT = "You take part in a study about writing with assistants.\n\nYou can stop at any time."


def study_file(folder: Path, url: str, models: tuple[str, ...] = ("one", "two", "three"), **fields: Any) -> Path:
    """A study file whose arms are models of a server; `arm_one` is the name of the arm of the model `one`."""
    arms = {f"arm_{model}": {"endpoint": {"base_url": url, "model": model, "read_timeout": 5}} for model in models}
    study = {
        **{"title": "Writing with an assistant", "consent": CONSENT, "completion_code": "C0DE-7"},
        **{"documents": ["blog post", "short story"], "arms": arms, **fields},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    return path


class StudyServer:
    """`collab study serve`, in a process of its own, at a port that stays the same over restarts.

    Args:
        file: The study file.
        folder: Of the data, and of `server.log`.
        command: Another one that serves pages, without its port.

    Attributes:
        url: Where participants go.
    """

    def __init__(self, file: Path, folder: Path, command: Sequence[str] = ()) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url, self.file, self.folder = f"http://127.0.0.1:{self.port}", file, folder
        self._command = [*(command or ["study", "serve", str(file), f"folder={folder}"]), f"port={self.port}"]

    def __enter__(self) -> StudyServer:
        self.start()
        return self

    def __exit__(self, *details: object) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(20)

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            env = {**os.environ, "PYTHONPATH": str(ROOT)}
            command = [sys.executable, "-m", "collab", *self._command]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=env)
        for _ in range(300):
            assert self._process.poll() is None, self.log.read_text()
            try:
                httpx.get(f"{self.url}/healthz", trust_env=False)
                return
            except httpx.HTTPError:
                time.sleep(0.1)
        raise AssertionError(f"the server does not start: {self.log.read_text()}")

    def kill(self) -> None:
        """As a power cut does it."""
        self._process.kill()
        self._process.wait(20)

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    @property
    def token(self) -> str:
        return (self.folder / "admin_token").read_text()


def exported(server: StudyServer) -> tuple[list[dict[str, str]], Path]:
    """`collab study export`: the rows of `participants.csv`, and the folder of all files."""
    folder = server.folder / "export"
    assert main(["export", str(server.file), f"folder={server.folder}"]) == 0
    with (folder / "participants.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file)), folder


def chromium() -> str | None:
    """The path of a Chromium: Debian's, or one that `playwright install chromium` got; None if there is none."""
    if found := shutil.which("chromium"):
        return found
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).is_file() else None


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium, driven by playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # A sandbox of its own needs user namespaces, which containers lack.
        opened = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield opened
        opened.close()


class Person:
    """A participant in the browser.

    Args:
        opened: The browser.
        url: Of the study.
        options: Of the browser's context, e.g. `viewport`.

    Attributes:
        page: What the participant sees.
        errors: What the browser reports as wrong with the page.
    """

    def __init__(self, opened: Any, url: str, **options: Any) -> None:
        self.url, self.context = url, opened.new_context(**options)
        self.context.set_default_timeout(15_000)
        self.errors: list[str] = []
        self.page = self.tab()

    def tab(self) -> Any:
        page = self.context.new_page()
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(self.url)
        return page

    def begin(self, topic: str = "The summer party of our street.") -> None:
        """Agree, and say what the document is about."""
        self.page.check("input[name=agree]")
        self.page.get_by_role("button", name="Begin").click()
        self.page.fill("#topic", topic)
        self.page.click("text=To the conversation")
        self.page.locator("#progress:not(:empty)").wait_for()  # the page's script has run

    def send(self, text: str) -> None:
        self.page.fill("#message", text)
        self.page.press("#message", "Enter")

    def answered(self, count: int) -> None:
        """Wait for so many whole replies."""
        self.page.locator(".reply[data-state=done]").nth(count - 1).wait_for()

    def says(self, text: str) -> None:
        """Wait until the page shows a text."""
        self.page.get_by_text(text).first.wait_for()

    def rate(self, value: int) -> None:
        self.page.check(f"#rate input[value='{value}']")
        with self.page.expect_navigation():
            self.page.click("#rate button")

    def messages(self) -> list[str]:
        """All that was said, in order."""
        return self.page.locator("#log .words").all_inner_texts()


class Caller:
    """A participant over plain HTTP, as the page's script calls the server.

    Attributes:
        seconds: Path -> what each request took; without the replies, which the model takes.
    """

    def __init__(self, url: str) -> None:
        # Loading certificates for each would take longer than what is measured.
        options: dict[str, Any] = {"timeout": 60, "follow_redirects": True, "trust_env": False, "verify": False}
        self.client = httpx.AsyncClient(base_url=url, **options)
        self.seconds: dict[str, list[float]] = {}
        self.csrf = ""

    async def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        started = time.monotonic()
        response = await self.client.request(method, path, **options)
        self.seconds.setdefault(path, []).append(time.monotonic() - started)
        return response

    async def get(self, path: str = "/") -> httpx.Response:
        response = await self.request("GET", path)
        if found := re.search(r'name="csrf" value="(\w+)"|data-csrf="(\w+)"', response.text):
            self.csrf = found[1] or found[2]
        return response

    async def form(self, path: str, **fields: Any) -> httpx.Response:
        return await self.request("POST", path, data={"csrf": self.csrf, **fields})

    async def post(self, path: str, **fields: Any) -> httpx.Response:
        body = json.dumps({"csrf": self.csrf, **fields})  # httpx sends no halves of surrogate pairs, as a browser may
        return await self.request("POST", path, content=body, headers={"Content-Type": "application/json"})

    async def reply(self, turn: int, again: int = 0) -> tuple[str, str]:
        """(`done` or `failed`, all that the last event says) of a reply."""
        response = await self.client.get("/reply", params={"turn": turn, "arm": 0, "again": again})
        response.raise_for_status()
        name, data = response.text.strip().rpartition("event: ")[2].split("\n", 1)
        return name, data

    async def begin(self, topic: str = "The summer party.") -> None:
        await self.get()
        await self.form("/consent", agree="yes")
        await self.form("/topic", topic=topic)
        await self.get()
