"""The pages that participants see. The server knows how far each is, so the back button and reloading lose nothing.

`/` is the consent, the topic, the conversation or the end, whatever comes next for the participant of the cookie;
`/final` has the final ratings. What is written is saved while it is written (`/draft`), and a message is stored before
it is answered. The reply comes from `/reply` as server-sent events: whoever opens it starts the reply, or reads on.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates

from collab.study.assistants import Assistant
from collab.study.security import SESSION, Limits, SafeHeaders, address_of, csrf_of, fields_of, new_token, set_cookie
from collab.study.store import Record, Store
from collab.study.study_file import StudyConfig
from collab.study.writers import Writers, clean
from collab.util.text import is_blank

PAGES = Path(__file__).parent / "pages"
INTERACTION, DOCUMENT = "interaction", "document"  # scales of ratings
SCALE = range(1, 11)
_MAX_MESSAGE, _MAX_TEXT = 10_000, 100_000  # characters
_DRAFTS = ("message", "document", "strengths", "weaknesses", "rating_document", "rating_interaction")
_PLATFORM_IDS = ("PROLIFIC_PID", "workerId", "participant")  # in the link: of Prolific, MTurk, and others
_EVENTS = {"Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"}

Handler = Callable[[Request], Awaitable[Response]]


class Pages:
    """Everything that participants can ask of the server.

    Args:
        study: The study.
        store: Its database.
        assistants: Name of the arm -> who speaks.
        side_by_side: Not a study: one person talks to all arms at once and sees their names.
    """

    def __init__(
        self, study: StudyConfig, store: Store, assistants: dict[str, Assistant], side_by_side: bool = False
    ) -> None:
        self.study, self.store, self.side_by_side = study, store, side_by_side
        self.limits, self.writers = Limits(), Writers(store, assistants)
        self._templates = Jinja2Templates(PAGES)

    def routes(self) -> list[Route | Mount]:
        pages: list[Route | Mount] = [
            Route("/", self.home),
            Route("/message", self.message, methods=["POST"]),
            Route("/reply", self.reply),
            Route("/draft", self.draft, methods=["POST"]),
            Route("/healthz", self.health),
            Mount("/static", StaticFiles(directory=PAGES / "static")),
        ]
        if self.side_by_side:
            return [*pages, Route("/new", self.new, methods=["POST"])]
        return [
            *pages,
            Route("/consent", self.consent, methods=["POST"]),
            Route("/topic", self.topic, methods=["POST"]),
            Route("/rating", self.rating, methods=["POST"]),
            Route("/final", self.final, methods=["GET", "POST"]),
        ]

    # --- how far a participant is ------------------------------------------------------------------------------------

    def arms_of(self, record: Record) -> list[str]:
        """The assistants of a participant. Pages know them by their places in this list alone."""
        return list(self.writers.assistants) if self.side_by_side else [record.arm]

    def seconds_left(self, record: Record) -> float:
        if self.side_by_side or record.started_at is None:
            return self.study.max_minutes * 60
        return record.started_at + self.study.max_minutes * 60 - time.time()

    def rating_due(self, record: Record) -> bool:
        """Whether the next thing is to rate the interaction."""
        done = record.answered
        due = done == len(record.turns) and done > 0 and done % self.study.rate_every == 0
        return due and not self.side_by_side and (done, INTERACTION) not in record.ratings

    def spent(self, record: Record) -> bool:
        """Whether the assistant does not answer any more, since the budget is used up. Side by side there is none."""
        return record.arm in self.writers.spent

    def closed(self, record: Record) -> bool:
        """Whether no further message is taken. Side by side there is no end."""
        if self.side_by_side:
            return False
        return self.seconds_left(record) <= 0 or record.answered >= self.study.max_turns or self.spent(record)

    def may_finish(self, record: Record) -> bool:
        """Whether the final ratings are open: after enough turns, or where the conversation cannot go on."""
        failed = bool(record.turns) and any(
            reply.text is None and reply.failures for reply in record.turns[-1].replies.values()
        )
        enough = record.answered >= self.study.min_turns or self.closed(record) or failed
        return enough and not self.side_by_side

    def _progress(self, record: Record) -> dict[str, Any]:
        """What the page shows beside the conversation."""
        return {
            "turns": len(record.turns),
            "answered": record.answered,
            "rate": self.rating_due(record),
            "finish": self.may_finish(record),
            "closed": self.closed(record),
            "spent": self.spent(record),
        }

    # --- pages -------------------------------------------------------------------------------------------------------

    def show(self, request: Request, page: str, session: str, status: int = 200, **values: Any) -> Response:
        """A page of the folder `pages`, with the cookie of the session."""
        shared = {"study": self.study, "csrf": csrf_of(session), "scale": SCALE, "side_by_side": self.side_by_side}
        response = self._templates.TemplateResponse(request, page, {**shared, **values}, status)
        if request.cookies.get(SESSION) != session:
            set_cookie(response, request, SESSION, session)
        return response

    async def home(self, request: Request) -> Response:
        session = request.cookies.get(SESSION) or new_token()
        record = await self._find(session)
        if record is None and self.side_by_side:
            await run_in_threadpool(self.store.join, session, self.study, "", [""])
            record = await self._find(session)
        if record is None:
            self._open_arms()
            given = next((request.query_params[name] for name in _PLATFORM_IDS if name in request.query_params), "")
            external = given if re.fullmatch(r"[\w.-]{1,100}", given) else ""
            paragraphs = [part for part in re.split(r"\n\s*\n", self.study.consent.strip()) if part.strip()]
            return self.show(request, "consent.html", session, paragraphs=paragraphs, external=external)
        if record.submitted_at is not None:
            return self.show(request, "done.html", session)
        if record.started_at is None and not self.side_by_side:
            return self.show(request, "topic.html", session, record=record, error="")
        arms = self.arms_of(record)
        now_written = {
            (index, len(record.turns)): writing.text
            for index, arm in enumerate(arms)
            if (writing := self.writers.of(record.id, arm)) is not None
        }
        return self.show(
            request,
            "chat.html",
            session,
            record=record,
            arms=arms,
            writing=now_written,
            seconds=max(0, int(self.seconds_left(record))),
            max_message=_MAX_MESSAGE,
            max_text=_MAX_TEXT,
            progress=self._progress(record),
        )

    async def consent(self, request: Request) -> Response:
        session = self.session_of(request)
        await self.limits.take("join", address_of(request))
        given = await fields_of(request, session)
        if given.get("agree") != "yes":
            raise HTTPException(400, "To take part you have to agree. Go back, tick the box, and go on.")
        external = clean(str(given.get("external", "")))[:100]
        await run_in_threadpool(self.store.join, session, self.study, external, self._open_arms())
        return RedirectResponse("/", 303)

    def _open_arms(self) -> list[str]:
        """The arms that answer; refuses who comes when there is none."""
        if not (names := [name for name in self.study.arms if name not in self.writers.spent]):
            raise HTTPException(503, "This study takes no further participants at present.")
        return names

    async def topic(self, request: Request) -> Response:
        session, record, given = await self._posted(request, "save")
        topic = clean(str(given.get("topic", ""))).strip()[:_MAX_MESSAGE]
        if is_blank(topic):
            error = "Write in a sentence or two what your document is to be about."
            return self.show(request, "topic.html", session, 400, record=record, error=error)
        await run_in_threadpool(self.store.start, record.id, topic)
        return RedirectResponse("/", 303)

    async def message(self, request: Request) -> Response:
        session, record, given = await self._posted(request, "message")
        text, turn = clean(str(given.get("text", ""))), given.get("turn")
        if is_blank(text) or len(text) > _MAX_MESSAGE or type(turn) is not int:
            raise HTTPException(400, f"A message has 1 to {_MAX_MESSAGE} characters. Change it, then send it again.")
        if turn not in range(1, len(record.turns) + 2):
            raise HTTPException(409, "The conversation went on in another window. Reload the page.")
        again = turn <= len(record.turns) and record.turns[turn - 1].text == text
        if not again:
            self._refuse_late(record)
            if self.rating_due(record):
                raise HTTPException(409, "Rate the conversation first. Reload the page.")
            if any(self.writers.of(record.id, arm) for arm in self.arms_of(record)):
                raise HTTPException(409, "The assistant is still answering in another window. Reload the page.")
            stored = await run_in_threadpool(self.store.add_message, record.id, turn, text, self.arms_of(record))
            if not stored:
                raise HTTPException(409, "The conversation went on in another window. Reload the page.")
        now = await self._find(session)
        assert now is not None
        failures = [now.turns[turn - 1].replies[arm].failures for arm in self.arms_of(now)]
        return JSONResponse({"version": now.drafts.get("message", ("", 0))[1], "failures": failures})

    def _refuse_late(self, record: Record) -> None:
        if record.submitted_at is not None or (record.started_at is None and not self.side_by_side):
            raise HTTPException(409, "The conversation is not open. Reload the page.")
        if self.closed(record):
            raise HTTPException(409, "The conversation has ended. Reload the page, and go on to the final questions.")

    async def reply(self, request: Request) -> Response:
        """The reply to the last message as events: `text` (all so far), `more`, then `done` or `failed`.

        `again` is the number of failures that the page knows of: with it, a reply that failed is asked for once more.
        """
        session, record = await self._participant(request)
        await self.limits.take("reply", str(record.id))
        arms = self.arms_of(record)
        query = request.query_params
        numbers = [query.get(name, default) for name, default in (("turn", ""), ("arm", "0"), ("again", "0"))]
        if not all(number.isdecimal() and len(number) < 9 for number in numbers):
            raise HTTPException(400, "This request cannot be read.")
        turn, place, again = map(int, numbers)
        if turn not in range(1, len(record.turns) + 1) or place >= len(arms):
            raise HTTPException(404, "There is no such message. Reload the page.")
        return StreamingResponse(self._events(session, record, turn, arms[place], again), headers=_EVENTS)

    async def _events(self, session: str, record: Record, turn: int, arm: str, again: int) -> AsyncIterator[str]:
        writing = self.writers.of(record.id, arm) if turn == len(record.turns) else None
        if writing is None:
            record = await self._find(session) or record  # a reply may have ended since it was read
        reply = record.turns[turn - 1].replies[arm]
        # Only the last message is answered: an earlier one that failed stays without a reply.
        if writing is None and turn == len(record.turns) and reply.text is None and reply.failures == again:
            writing = self.writers.start(record, arm)
        state, text = ("done", reply.text) if reply.text is not None else ("failed", "")
        if writing is not None:
            sent: str | None = None
            async for text in writing.texts():
                if sent is not None and text.startswith(sent):
                    yield _event("more", text[len(sent) :])
                else:
                    yield _event("text", text)
                sent = text
            state, text = writing.state, writing.text
        now = await self._find(session)
        assert now is not None
        failures = now.turns[turn - 1].replies[arm].failures
        name = "done" if state == "done" else "failed"
        yield _event(name, {**self._progress(now), "text": text, "full": state == "full", "failures": failures})

    async def draft(self, request: Request) -> Response:
        _, record, given = await self._posted(request, "save")
        name, text, version = given.get("name"), clean(str(given.get("text", ""))), given.get("version")
        if name not in _DRAFTS or not isinstance(version, int) or len(text) > _MAX_TEXT:
            raise HTTPException(400, f"This text cannot be saved: {_MAX_TEXT} characters are the limit.")
        if record.submitted_at is not None:
            raise HTTPException(409, "You have finished already, so nothing more is saved.")
        saved = await run_in_threadpool(self.store.save_draft, record.id, str(name), text, version)
        if saved is None:
            raise HTTPException(409, "This text was changed in another window. Reload the page to see it.")
        return JSONResponse({"version": saved})

    async def rating(self, request: Request) -> Response:
        _, record, given = await self._posted(request, "save")
        value = _rating(given.get("rating"))
        if value is None:
            raise HTTPException(400, "Choose a number from 1 to 10. Go back, and choose one.")
        if self.rating_due(record):
            await run_in_threadpool(self.store.rate, record.id, record.answered, INTERACTION, value)
        return RedirectResponse("/", 303)

    async def final(self, request: Request) -> Response:
        given: dict[str, Any] = {}
        if request.method == "POST":
            session, record, given = await self._posted(request, "save")
        else:
            session, record = await self._participant(request)
        if record.submitted_at is not None or not self.may_finish(record):
            return RedirectResponse("/", 303)
        error = ""
        if request.method == "POST":
            changed = False  # in another window
            for name in ("document", "strengths", "weaknesses"):
                version = str(given.get(f"version_{name}", ""))
                written_on = int(version) if version.isdecimal() and len(version) < 9 else 0
                text = clean(str(given.get(name, "")))[:_MAX_TEXT].replace("\r\n", "\n")  # as browsers send forms
                saved = await run_in_threadpool(self.store.save_draft, record.id, name, text, written_on)
                changed = changed or saved is None
            ratings = {scale: _rating(given.get(f"rating_{scale}")) for scale in (DOCUMENT, INTERACTION)}
            if changed:
                error = "Your texts were changed in another window. Here is what was saved last: check it, then finish."
            elif is_blank(str(given.get("document", ""))) and record.answered:
                error = "Your document is empty. Write it, or copy what the assistant wrote."
            elif any(value is None for value in ratings.values()):
                error = "Choose a number from 1 to 10 for each of the two ratings."
            else:
                whole = {scale: value for scale, value in ratings.items() if value is not None}
                await run_in_threadpool(self.store.submit, record.id, whole)
                return RedirectResponse("/", 303)
            record = await self._find(session) or record
        return self.show(
            request, "final.html", session, 400 if error else 200, record=record, error=error, max_text=_MAX_TEXT
        )

    async def new(self, request: Request) -> Response:
        """Side by side: a new conversation."""
        session = self.session_of(request)
        await fields_of(request, session)
        response = RedirectResponse("/", 303)
        set_cookie(response, request, SESSION, new_token())
        return response

    async def health(self, request: Request) -> Response:
        return Response("ok\n")

    # --- who asks ----------------------------------------------------------------------------------------------------

    def session_of(self, request: Request) -> str:
        session = request.cookies.get(SESSION, "")
        if not session:
            raise HTTPException(403, "Your browser sent no cookie, which this page needs. Allow cookies, and reload.")
        return session

    async def _find(self, session: str) -> Record | None:
        return await run_in_threadpool(self.store.find, session)

    async def _participant(self, request: Request) -> tuple[str, Record]:
        session = self.session_of(request)
        record = await self._find(session)
        if record is None:
            raise HTTPException(403, "You do not take part yet. Open the first page.")
        return session, record

    async def _posted(self, request: Request, limit: str) -> tuple[str, Record, dict[str, Any]]:
        session, record = await self._participant(request)
        await self.limits.take(limit, str(record.id))  # a cookie that somebody made up gets no limit of its own
        given = await fields_of(request, session)
        return session, record, given

    async def on_error(self, request: Request, error: Exception) -> Response:
        """What went wrong, as a page or, for scripts, as JSON."""
        status = error.status_code if isinstance(error, HTTPException) else 500
        text = error.detail if isinstance(error, HTTPException) else "Something went wrong here. Try again."
        if request.url.path in ("/message", "/draft", "/reply"):
            return JSONResponse({"error": text}, status)
        session = request.cookies.get(SESSION) or new_token()
        return self.show(request, "problem.html", session, status, text=text)


def make_app(pages: Pages, more: list[Route] | None = None, middleware: list[Middleware] | None = None) -> Starlette:
    """The server of a study, with further routes and middleware."""
    handlers: Any = {HTTPException: pages.on_error, 500: pages.on_error}
    return Starlette(
        routes=[*pages.routes(), *(more or [])],
        middleware=[Middleware(SafeHeaders), *(middleware or [])],
        exception_handlers=handlers,
    )


def _event(name: str, data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def _rating(value: Any) -> int | None:
    return int(value) if str(value) in map(str, SCALE) else None
