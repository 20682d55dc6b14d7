"""The database of a study: participants, what they wrote, what they were answered, and their ratings.

SQLite in WAL mode, or PostgreSQL. What a participant does is committed before the server answers, so a killed server
loses nothing. SQLite's commits reach the operating system at once, and the disk every `_TO_DISK` seconds: otherwise
people would wait for a busy disk. So a power cut may cost those seconds. PostgreSQL waits for the disk.

One server at a time writes; a lock in it makes writes follow each other. Reading goes on meanwhile.

No address of a participant is stored, and of the secret in its cookie only a hash.

Times are seconds since 1970, UTC. Final ratings stand at turn `FINAL`.
"""

from __future__ import annotations

import hashlib
import json
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from collab.study.study_file import LONGEST_ARM, LONGEST_DOCUMENT, StudyConfig, fixed_settings
from collab.util.errors import BadInput

FINAL = 0  # the turn at which final ratings stand
_TO_DISK = 2.0
IDLE = 1800.0  # seconds without a sign of life after which a participant who has not finished counts as gone

_tables = sa.MetaData()
_meta = sa.Table("meta", _tables, sa.Column("name", sa.String(40), primary_key=True), sa.Column("value", sa.Text))
_participants = sa.Table(
    "participants",
    _tables,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("token_hash", sa.String(64), nullable=False, unique=True),
    sa.Column("external_id", sa.String(100), nullable=False, server_default=""),
    sa.Column("arm", sa.String(LONGEST_ARM), nullable=False),
    sa.Column("document", sa.String(LONGEST_DOCUMENT), nullable=False),
    sa.Column("topic", sa.Text, nullable=False, server_default=""),
    sa.Column("consented_at", sa.Float, nullable=False),
    sa.Column("started_at", sa.Float),
    sa.Column("seen_at", sa.Float, nullable=False),
    sa.Column("submitted_at", sa.Float),
    sqlite_autoincrement=True,  # the number of somebody who was deleted is not given again
)


def _of_participant(name: str, *columns: sa.Column[Any]) -> sa.Table:
    owner: sa.Column[int] = sa.Column("participant", sa.ForeignKey("participants.id"), primary_key=True)
    return sa.Table(name, _tables, owner, *columns)


_turns = _of_participant(
    "turns",
    sa.Column("turn", sa.Integer, primary_key=True),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("sent_at", sa.Float, nullable=False),
)
_replies = _of_participant(
    "replies",
    sa.Column("turn", sa.Integer, primary_key=True),
    sa.Column("arm", sa.String(LONGEST_ARM), primary_key=True),
    sa.Column("text", sa.Text),  # null until there is a whole reply
    sa.Column("finish_reason", sa.String(10)),
    sa.Column("failures", sa.Integer, nullable=False, server_default="0"),
    sa.Column("finished_at", sa.Float),
)
_ratings = _of_participant(
    "ratings",
    sa.Column("turn", sa.Integer, primary_key=True),
    sa.Column("scale", sa.String(20), primary_key=True),
    sa.Column("value", sa.Integer, nullable=False),
    sa.Column("rated_at", sa.Float, nullable=False),
)
_drafts = _of_participant(
    "drafts",
    sa.Column("name", sa.String(20), primary_key=True),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
)


@dataclass
class StoredReply:
    """A reply.

    Attributes:
        text: None until there is a whole one.
        finish_reason: As in `collab.conversation.Reply`.
        failures: Failed attempts.
        finished_at: When it was whole.
    """

    text: str | None = None
    finish_reason: str = "stop"
    failures: int = 0
    finished_at: float | None = None


@dataclass
class StoredTurn:
    """A message.

    Attributes:
        text: Of the participant.
        sent_at: When it was stored.
        replies: Arm -> its reply.
    """

    text: str
    sent_at: float
    replies: dict[str, StoredReply] = field(default_factory=dict)


@dataclass
class Record:
    """All of one participant.

    Attributes:
        id: Number of the participant.
        external_id: What the recruiting platform calls the participant; "" if the link had no id.
        arm: Name of the assistant; "" if the participant sees all, side by side.
        document: Document type.
        topic: What the participant wants to write, which the assistant is not told; "" before the conversation.
        consented_at, started_at, seen_at, submitted_at: Times; None if it has not come to that.
        turns: In order.
        ratings: (turn, scale) -> 1..10.
        drafts: Name -> (text, version), of what is saved while it is written.
    """

    id: int
    external_id: str
    arm: str
    document: str
    topic: str
    consented_at: float
    started_at: float | None
    seen_at: float
    submitted_at: float | None
    turns: list[StoredTurn] = field(default_factory=list)
    ratings: dict[tuple[int, str], int] = field(default_factory=dict)
    drafts: dict[str, tuple[str, int]] = field(default_factory=dict)

    @property
    def answered(self) -> int:
        """Number of turns in which every assistant has replied."""
        return sum(all(r.text is not None for r in turn.replies.values()) for turn in self.turns)

    def draft(self, name: str) -> str:
        return self.drafts.get(name, ("", 0))[0]


class Store:
    """A study's database, which is made if it is empty.

    Args:
        url: SQLAlchemy's, e.g. `sqlite:///study.sqlite3` or `postgresql://host/name`.

    Raises:
        BadInput: The database cannot be opened.
    """

    def __init__(self, url: str) -> None:
        self._lock, self._written, self._closed = threading.Lock(), threading.Event(), threading.Event()
        try:
            parsed = sa.make_url(url)
            if parsed.drivername == "postgresql":
                parsed = parsed.set(drivername="postgresql+psycopg")
            if parsed.get_backend_name() not in ("sqlite", "postgresql"):
                raise BadInput(
                    f"database={parsed.render_as_string()}: it must be SQLite or PostgreSQL. Leave it out for SQLite, "
                    "or write postgresql://USER@HOST/NAME."
                )
            sqlite = parsed.get_backend_name() == "sqlite"
            options: dict[str, Any] = {"connect_args": {"timeout": 30}} if sqlite else {"pool_pre_ping": True}
            # Messages of errors would hold what people wrote.
            options |= {"hide_parameters": True, "pool_size": 20, "max_overflow": 30}
            self._engine = sa.create_engine(parsed, **options)
            if sqlite:
                event.listen(self._engine, "connect", _prepare_sqlite)
                threading.Thread(target=self._keep_on_disk, daemon=True).start()
            _tables.create_all(self._engine)
        except (sa.exc.SQLAlchemyError, ImportError) as error:
            cause = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            shown = parsed.render_as_string() if "parsed" in locals() else "as given"
            raise BadInput(
                f"The database ({shown}) cannot be opened: {cause}. Correct database=URL; a password is best put into "
                "the environment variable PGPASSWORD."
            ) from None

    def close(self) -> None:
        self._closed.set()
        self._engine.dispose()

    def _keep_on_disk(self) -> None:
        """Write what was committed to the disk, again and again. This holds up neither readers nor writers."""
        while not self._closed.wait(_TO_DISK):
            if self._written.is_set():
                self._written.clear()
                with self._engine.connect() as connection:
                    connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        with self._lock, self._engine.begin() as connection:
            yield connection
        self._written.set()

    def bind(self, study: StudyConfig) -> None:
        """Remember the study's settings, as long as nobody has taken part.

        Raises:
            BadInput: They differ from those that the stored answers were given under.
        """
        self.check(study)
        settings = json.dumps(fixed_settings(asdict(study)))
        with self._writing() as connection:
            if connection.scalar(sa.select(_participants.c.id).limit(1)) is None:
                connection.execute(sa.delete(_meta).where(_meta.c.name == "settings"))
                connection.execute(sa.insert(_meta).values(name="settings", value=settings))

    def check(self, study: StudyConfig) -> None:
        """Compare the study's settings with those that the stored answers were given under.

        Raises:
            BadInput: They differ.
        """
        with self._engine.connect() as connection:
            stored = connection.scalar(sa.select(_meta.c.value).where(_meta.c.name == "settings"))
            anybody = connection.scalar(sa.select(_participants.c.id).limit(1)) is not None
        if stored is None or not anybody:
            return
        before = fixed_settings(json.loads(stored))
        now = json.loads(json.dumps(fixed_settings(asdict(study))))
        if changed := [name for name in now if now[name] != before.get(name)]:
            raise BadInput(
                f"{', '.join(changed)} differ from when this study began, and its answers depend on that. Restore the "
                "study file, or start another study with folder=ANOTHER."
            )

    # --- participants ------------------------------------------------------------------------------------------------

    def join(self, token: str, study: StudyConfig, external_id: str = "", arms: Sequence[str] | None = None) -> int:
        """The number of the participant with this token; assigns arm and document type to a new one.

        A new participant gets the arm with the fewest participants, and of its document types the one with the fewest.
        Ties are drawn from the study's seed. Who has left without finishing (`IDLE`) does not count.

        Args:
            token: Secret of the participant's cookie.
            study: With arms and document types.
            external_id: Of the recruiting platform.
            arms: To choose from; None takes those of the study.
        """
        now, hashed = time.time(), _hash(token)
        with self._writing() as connection:
            there = connection.scalar(sa.select(_participants.c.id).where(_participants.c.token_hash == hashed))
            if there is not None:
                return int(there)
            counts: dict[tuple[str, str], int] = {}
            gone = _participants.c.submitted_at.is_(None) & (_participants.c.seen_at < now - IDLE)
            rows = connection.execute(sa.select(_participants.c.arm, _participants.c.document).where(~gone)).all()
            for row in rows:
                counts[row.arm, row.document] = counts.get((row.arm, row.document), 0) + 1
            total = connection.scalar(sa.select(sa.func.count()).select_from(_participants))
            dice = random.Random(f"{study.seed} {total}")
            names = list(study.arms) if arms is None else list(arms)
            arm = min(names, key=lambda a: (sum(n for (b, _), n in counts.items() if b == a), dice.random()))
            document = min(study.documents, key=lambda d: (counts.get((arm, d), 0), dice.random()))
            values = {"token_hash": hashed, "external_id": external_id, "arm": arm, "document": document}
            made = connection.execute(sa.insert(_participants).values(**values, consented_at=now, seen_at=now))
            assert made.inserted_primary_key is not None
            return int(made.inserted_primary_key[0])

    def find(self, token: str) -> Record | None:
        """The participant with this token."""
        found = self._records(_participants.c.token_hash == _hash(token))
        return found[0] if found else None

    def records(self) -> list[Record]:
        """All participants, in the order in which they came."""
        return self._records(sa.true())

    def _records(self, which: sa.ColumnElement[bool]) -> list[Record]:
        columns = [column for column in _participants.c if column.name != "token_hash"]
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(*columns).where(which).order_by(_participants.c.id))
            records = {row.id: Record(**row._mapping) for row in rows}
            mine = sa.select(_participants.c.id).where(which)

            def rows_of(table: sa.Table) -> Any:
                query = sa.select(table).where(table.c.participant.in_(mine)).order_by(*table.primary_key)
                return (row for row in connection.execute(query) if row.participant in records)

            for row in rows_of(_turns):
                records[row.participant].turns.append(StoredTurn(row.text, row.sent_at))
            for row in rows_of(_replies):
                reply = StoredReply(row.text, row.finish_reason or "stop", row.failures, row.finished_at)
                turns = records[row.participant].turns
                if row.turn <= len(turns):  # the turn may be newer than what was read before
                    turns[row.turn - 1].replies[row.arm] = reply
            for row in rows_of(_ratings):
                records[row.participant].ratings[row.turn, row.scale] = row.value
            for row in rows_of(_drafts):
                records[row.participant].drafts[row.name] = (row.text, row.version)
        return list(records.values())

    def start(self, participant: int, topic: str) -> None:
        """Begin the conversation, once."""
        now, begun = time.time(), _participants.c.started_at.is_(None)
        self._update(participant, begun, topic=topic, started_at=now, seen_at=now)

    def submit(self, participant: int, ratings: Mapping[str, int]) -> None:
        """Take the final ratings, and end the participation, both or neither; scale -> 1..10. Once."""
        now = time.time()
        with self._writing() as connection:
            row = _participants.c.id == participant
            update = sa.update(_participants).where(row, _participants.c.submitted_at.is_(None))
            if connection.execute(update.values(submitted_at=now, seen_at=now)).rowcount:
                for scale, value in ratings.items():
                    _put(connection, _ratings, participant, {"turn": FINAL, "scale": scale}, value=value, rated_at=now)

    def forget(self, participant: str) -> int:
        """Delete all of the participant with this number, or this id of the recruiting platform.

        Returns:
            How many were deleted: somebody who joined twice has two numbers.

        Raises:
            BadInput: It is the number of one participant and the id of another.
        """
        by_number = sa.cast(_participants.c.id, sa.String) == participant
        with self._writing() as connection:
            number, ids = (
                connection.scalars(sa.select(_participants.c.id).where(which)).all()
                for which in (by_number, _participants.c.external_id == participant)
            )
            if number and set(ids) - set(number):
                raise BadInput(
                    f"participant={participant} is the number of one participant and the platform's id of number "
                    f"{', '.join(map(str, ids))}. Give the number if you mean the latter; the former can then be given."
                )
            found = {*number, *ids}
            for table in (_turns, _replies, _ratings, _drafts):
                connection.execute(sa.delete(table).where(table.c.participant.in_(found)))
            connection.execute(sa.delete(_participants).where(_participants.c.id.in_(found)))
        if self._engine.dialect.name == "sqlite":
            with self._engine.connect() as connection:  # the log has the old pages until it is emptied
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        return len(found)

    def _update(self, participant: int, condition: Any, **values: Any) -> None:
        with self._writing() as connection:
            connection.execute(
                sa.update(_participants).where(_participants.c.id == participant, condition).values(**values)
            )

    # --- conversation ------------------------------------------------------------------------------------------------

    def add_message(self, participant: int, turn: int, text: str, arms: Sequence[str]) -> bool:
        """Store the message of a turn; False if another one stands there, or the turn before has no reply.

        A message that no arm has answered is replaced if a reply to it failed.

        Args:
            participant: Who wrote it.
            turn: From 1.
            text: Of the message.
            arms: Who has to answer it.
        """
        now = time.time()
        with self._writing() as connection:
            mine = _turns.c.participant == participant
            there = connection.execute(sa.select(_turns.c.turn, _turns.c.text).where(mine)).all()
            stored = {row.turn: row.text for row in there}
            if stored.get(turn) == text:
                return True
            of_last = (_replies.c.participant == participant) & (_replies.c.turn == len(stored))
            replies = connection.execute(sa.select(_replies.c.text, _replies.c.failures).where(of_last)).all()
            answered = any(row.text is not None for row in replies) or not stored
            failed = any(row.failures for row in replies) and not answered
            if not (turn == len(stored) + 1 and answered) and not (turn == len(stored) and failed):
                return False
            _put(connection, _turns, participant, {"turn": turn}, text=text, sent_at=now)
            for arm in arms:
                _put(connection, _replies, participant, {"turn": turn, "arm": arm}, text=None)
            _put_draft(connection, participant, "message", "")
            row = _participants.c.id == participant
            connection.execute(sa.update(_participants).where(row).values(seen_at=now))
            return True

    def add_reply(
        self, participant: int, turn: int, arm: str, message: str, text: str, finish_reason: str
    ) -> str | None:
        """Store the reply to a message, unless there is one already; returns what is stored.

        None, and nothing stored, if the message of this turn is another one by now.
        """
        values = {"text": text, "finish_reason": finish_reason, "finished_at": time.time()}
        with self._writing() as connection:
            of_turn = (_turns.c.participant == participant) & (_turns.c.turn == turn)
            if connection.scalar(sa.select(_turns.c.text).where(of_turn)) != message:
                return None
            where = _reply_row(participant, turn, arm)
            there = connection.scalar(sa.select(_replies.c.text).where(where))
            if there is None:
                connection.execute(sa.update(_replies).where(where).values(**values))
            return text if there is None else str(there)

    def add_failure(self, participant: int, turn: int, arm: str) -> None:
        where = _reply_row(participant, turn, arm)
        with self._writing() as connection:
            connection.execute(sa.update(_replies).where(where).values(failures=_replies.c.failures + 1))

    def rate(self, participant: int, turn: int, scale: str, value: int) -> None:
        """Store a rating of 1..10, in place of an earlier one of the same turn and scale."""
        now = time.time()
        with self._writing() as connection:
            key = {"turn": turn, "scale": scale}
            _put(connection, _ratings, participant, key, value=value, rated_at=now)

    def save_draft(self, participant: int, name: str, text: str, version: int) -> int | None:
        """Store what is being written; returns its new version.

        Args:
            participant: Who writes.
            name: Of the field.
            text: All of it.
            version: That the text was written on; 0 for none. None is returned, and nothing stored, if another window
                has stored another text since.
        """
        with self._writing() as connection:
            where = (_drafts.c.participant == participant) & (_drafts.c.name == name)
            row = connection.execute(sa.select(_drafts.c.text, _drafts.c.version).where(where)).first()
            stored, newest = (row.text, row.version) if row else ("", 0)
            if stored == text:
                return newest
            if newest != version:
                return None
            _put_draft(connection, participant, name, text)
            seen = sa.update(_participants).where(_participants.c.id == participant).values(seen_at=time.time())
            connection.execute(seen)
            return newest + 1


def _reply_row(participant: int, turn: int, arm: str) -> sa.ColumnElement[bool]:
    return (_replies.c.participant == participant) & (_replies.c.turn == turn) & (_replies.c.arm == arm)


def _put(connection: sa.Connection, table: sa.Table, participant: int, key: dict[str, Any], **values: Any) -> None:
    """Insert a row, or update it if it is there."""
    key = {"participant": participant, **key}
    where = [table.c[name] == value for name, value in key.items()]
    if not connection.execute(sa.update(table).where(*where).values(**values)).rowcount:
        connection.execute(sa.insert(table).values(**key, **values))


def _put_draft(connection: sa.Connection, participant: int, name: str, text: str) -> None:
    where = (_drafts.c.participant == participant) & (_drafts.c.name == name)
    version = connection.scalar(sa.select(_drafts.c.version).where(where)) or 0
    _put(connection, _drafts, participant, {"name": name}, text=text, version=version + 1)


def _prepare_sqlite(connection: Any, _: Any) -> None:
    # secure_delete: what is deleted is overwritten, not only marked as free
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "secure_delete=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()  # the token is random, so it needs no salt
