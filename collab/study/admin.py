"""The admin page, behind a token: progress live, and all data in one archive."""

from __future__ import annotations

import io
import tempfile
import time
import zipfile
from pathlib import Path
from statistics import mean
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from collab.chat.budget import Ledger, Spend
from collab.study.export import export
from collab.study.security import (
    ADMIN,
    SESSION,
    address_of,
    admin_cookie,
    fields_of,
    new_token,
    same,
    set_cookie,
)
from collab.study.server import INTERACTION, Pages
from collab.study.store import FINAL, IDLE, Record
from collab.util.errors import BadInput


class AdminPages:
    """What the people of the lab can ask of the server.

    Args:
        pages: Of the study.
        token: Whoever knows it sees everything.
        ledger: What the arms with an endpoint have cost.
    """

    def __init__(self, pages: Pages, token: str, ledger: Ledger) -> None:
        self._pages, self._token, self._ledger = pages, token, ledger

    def routes(self) -> list[Route]:
        return [
            Route("/admin", self.home),
            Route("/admin/login", self.login, methods=["POST"]),
            Route("/admin/table", self.table),
            Route("/admin/data.zip", self.data),
        ]

    def _known(self, request: Request) -> bool:
        return same(request.cookies.get(ADMIN, ""), admin_cookie(self._token))

    async def home(self, request: Request) -> Response:
        session = request.cookies.get(SESSION) or new_token()
        if not self._known(request):
            return self._pages.show(request, "login.html", session, error="")
        return self._pages.show(request, "admin.html", session, **await self._progress())

    async def login(self, request: Request) -> Response:
        await self._pages.limits.take("login", address_of(request))
        session = self._pages.session_of(request)  # without a cookie another site could sign somebody in
        given = await fields_of(request, session)
        if not same(str(given.get("token", "")).strip(), self._token):
            error = "This is not the token. It stands in the file that the server named when it started."
            return self._pages.show(request, "login.html", session, 403, error=error)
        response = RedirectResponse("/admin", 303)
        set_cookie(response, request, ADMIN, admin_cookie(self._token))
        return response

    async def table(self, request: Request) -> Response:
        """The table alone, which the page asks for again and again."""
        if not self._known(request):
            return Response("Sign in again.", 403)
        session = request.cookies.get(SESSION) or new_token()
        return self._pages.show(request, "progress.html", session, **await self._progress())

    async def data(self, request: Request) -> Response:
        if not self._known(request):
            return RedirectResponse("/admin", 303)
        try:
            archive = await run_in_threadpool(self._archive)
        except BadInput as error:  # nobody has taken part yet
            raise HTTPException(409, str(error)) from None
        headers = {"Content-Disposition": 'attachment; filename="study.zip"'}
        return Response(archive, media_type="application/zip", headers=headers)

    def _archive(self) -> bytes:
        buffer = io.BytesIO()
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in export(self._pages.store.records(), self._pages.study, Path(folder)):
                archive.write(file, file.name)
        return buffer.getvalue()

    async def _progress(self) -> dict[str, Any]:
        records = await run_in_threadpool(self._pages.store.records)
        arms, spent = self._pages.study.arms, self._ledger.spent
        rows = [
            _row(arm, [r for r in records if r.arm == arm], None if arms[arm].policy else spent.get(arm, Spend()))
            for arm in arms
        ]
        total = Spend(usd=self._ledger.total_usd, completion_tokens=self._ledger.total_tokens)
        return {
            "rows": [*rows, _row("all", records, total)],
            "budget": self._ledger.budget,
            "spent": sorted(self._pages.writers.spent),
            "now": time.strftime("%H:%M:%S"),
        }


def _row(name: str, records: list[Record], spend: Spend | None) -> dict[str, object]:
    """Counts and means of an arm, for the table; an arm without an endpoint costs nothing."""
    finished = [r for r in records if r.submitted_at is not None]
    active = [r for r in records if r.submitted_at is None and r.seen_at >= time.time() - IDLE]
    minutes = [(r.submitted_at - r.started_at) / 60 for r in finished if r.submitted_at and r.started_at]
    replies = [reply for r in records for turn in r.turns for reply in turn.replies.values()]

    def rated(scale: str) -> str:
        values = [r.ratings[FINAL, scale] for r in finished if (FINAL, scale) in r.ratings]
        return f"{mean(values):.2f}" if values else ""

    return {
        "name": name,
        "joined": len(records),
        "active": len(active),
        "finished": len(finished),
        "left": len(records) - len(active) - len(finished),
        "turns": f"{mean(r.answered for r in records):.1f}" if records else "",
        "minutes": f"{mean(minutes):.1f}" if minutes else "",
        "document": rated("document"),
        "interaction": rated(INTERACTION),
        "failures": sum(reply.failures for reply in replies),
        "cost": f"{spend.usd:.2f} $, {spend.tokens} tokens" if spend else "",
    }
