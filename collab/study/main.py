"""`collab study serve|export|forget`, `collab chat --web`. Heavy imports come after the arguments have been checked."""

from __future__ import annotations

import os
import re
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collab.study.study_file import ArmConfig, StudyConfig, read_study
from collab.util.errors import BadInput
from collab.util.files import only_writer

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from collab.study.store import Store

USAGE = """A user study: people write with assistants that they do not know, and rate them.

  collab study serve STUDY.yaml
  collab study export STUDY.yaml
  collab study forget STUDY.yaml participant=NUMBER

Options (name=value):
  folder       where data are; default: outputs/study/NAME of the study file
  database     as in postgresql://USER@HOST/NAME; default: SQLite in the folder
  host         serve: address to listen at; default: 127.0.0.1
  port         serve: default: 8080
  to           export: folder that gets the files; default: export, in that of the study
  participant  forget: whose data: the number in the export, or the id of the recruiting platform"""
CHAT_USAGE = """Talk to two policies at once in the browser, side by side.

  collab chat --web policy=outputs/RUN/policy

Options (name=value): policy, system_prompt, temperature, max_new_tokens, seed as without --web, and
  beside    the other policy; default: base
  port      8080"""
_NO_EXTRA = "{} is not installed, which the pages need. Install it: pip install 'collab-llm[study]'"


@dataclass(frozen=True)
class Options:
    action: str
    file: Path
    folder: Path
    database: str
    host: str = "127.0.0.1"
    port: int = 8080
    to: Path | None = None
    participant: str = ""


_NAMES = {"serve": ("host", "port"), "export": ("to",), "forget": ("participant",)}  # besides folder and database


def parse(arguments: Sequence[str]) -> Options:
    """Options of `collab study`.

    Raises:
        BadInput: No action, no study file, nobody to forget, an unknown name or a wrong value.
    """
    action, *rest = arguments or [""]
    if action not in _NAMES:
        raise BadInput(f"collab study {action}: there are {', '.join(_NAMES)}. Write collab study serve STUDY.yaml.")
    files = [argument for argument in rest if "=" not in argument]
    if len(files) != 1:
        raise BadInput(f"collab study {action} takes one study file, and {len(files)} were given. Name one YAML file.")
    given = _given([argument for argument in rest if "=" in argument], ("folder", "database", *_NAMES[action]))
    participant = given.get("participant", "")
    if action == "forget" and not participant:
        raise BadInput("collab study forget deletes the data of one participant. Name it: participant=NUMBER.")
    file = Path(files[0])
    folder = Path(given.get("folder") or Path("outputs/study") / file.stem)
    database = given.get("database") or f"sqlite:///{(folder / 'study.sqlite3').absolute()}"
    to = Path(given.get("to") or folder / "export")
    return Options(action, file, folder, database, given.get("host") or "127.0.0.1", _port(given), to, participant)


def _given(arguments: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    given = {}
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name not in names:
            raise BadInput(f"{name} is no option here. Write name=value, with one of {', '.join(names)}.")
        given[name] = value
    return given


def _port(given: dict[str, str]) -> int:
    value = given.get("port", "8080")
    if not re.fullmatch(r"\d{1,5}", value) or not 0 <= int(value) < 65536:
        raise BadInput(f"port ({value}) must be a whole number below 65536. Set port=8080.")
    return int(value)


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0, or 1 for bad input."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    actions = {"serve": _serve, "export": _export, "forget": _forget}

    def work() -> None:
        options = parse(arguments)
        actions[options.action](options)

    return _run(work)


def _run(work: Callable[[], None]) -> int:
    try:
        work()
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "collab":
            raise
        print(f"error: {_NO_EXTRA.format(error.name)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


def _serve(options: Options) -> None:
    study = read_study(options.file)
    from collab.chat.budget import Ledger
    from collab.study.admin import AdminPages
    from collab.study.assistants import load_assistants
    from collab.study.server import Pages, make_app
    from collab.study.store import Store

    options.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with only_writer(options.folder, "server.lock"), listening(options.host, options.port) as place:
        store = Store(options.database)
        ledger = Ledger(study.budget, options.folder / "spend.json")
        try:
            store.check(study)
            assistants = load_assistants(study.arms, study.seed, ledger)
            store.bind(study)  # once all arms are there: a mistyped model is none that answers depend on
            pages = Pages(study, store, assistants)
            token, file = admin_token(options.folder)
            app = make_app(pages, AdminPages(pages, token, ledger).routes())
            url = f"http://{options.host}:{place.getsockname()[1]}"
            print(f"Participants: {url}/ (docs/study.md says how others reach it)")
            print(f"Admin: {url}/admin, with the token in {file}", flush=True)
            run_server(app, place)
        finally:
            ledger.write()
            store.close()


def admin_token(folder: Path) -> tuple[str, Path]:
    """The token of the admin page and its file, which only its owner may read; made if it is missing."""
    from collab.study.security import new_token

    file = folder / "admin_token"
    if not file.is_file():
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
            opened.write(new_token())
    token = file.read_text(encoding="utf-8").strip()
    if len(token) < 16:
        raise BadInput(f"{file} must hold a token of at least 16 characters. Delete it for a new one.")
    return token, file


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens, taken before a model is loaded; port 0 takes any.

    Raises:
        BadInput: The port is in use, or the address is none of this machine.
    """
    try:
        opened = socket.create_server((host, port), backlog=512)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise BadInput(
            f"host={host} port={port}: cannot listen there ({reason}). Set another port, or stop what "
            "listens at this one."
        ) from None
    with opened:
        yield opened


def run_server(app: Starlette, place: socket.socket) -> None:
    """Serve until Ctrl-C. Accesses are not logged: their lines have addresses and ids of participants."""
    import uvicorn

    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
    uvicorn.Server(config).run(sockets=[place])


def _export(options: Options) -> None:
    study = read_study(options.file)
    from collab.study.export import export

    assert options.to is not None
    store = _existing(options)
    try:
        store.check(study)
        files = export(store.records(), study, options.to)
    finally:
        store.close()
    print((options.to / "statistics.md").read_text(encoding="utf-8"))
    print(f"{len(files)} files in {options.to}: {', '.join(file.name for file in files)}")


def _forget(options: Options) -> None:
    study = read_study(options.file)
    store = _existing(options)
    try:
        store.check(study)
        count = store.forget(options.participant)
    finally:
        store.close()
    if not count:
        raise BadInput(
            f"participant={options.participant}: this study has nobody with this number or id. The numbers are in "
            "participants.csv of collab study export."
        )
    people = "participant" if count == 1 else "participants"
    print(f"Deleted: {count} {people} with all messages, ratings and drafts. An earlier export still has them.")


def _existing(options: Options) -> Store:
    """The study's database; `BadInput` if there is none."""
    if options.database.startswith("sqlite:///") and not Path(options.database.removeprefix("sqlite:///")).is_file():
        raise BadInput(f"There are no data in {options.folder}. Name the folder of the study with folder=FOLDER.")
    return _store(options.database)


def _store(database: str) -> Store:
    from collab.study.store import Store

    return Store(database)


def chat(arguments: Sequence[str]) -> int:
    """`collab chat --web`. Exit code: 0, or 1 for bad input."""
    if {"-h", "--help"} & set(arguments):
        print(CHAT_USAGE)
        return 0
    return _run(lambda: _chat(arguments))


def _chat(arguments: Sequence[str]) -> None:
    from collab.app import chat as terminal

    own = [argument for argument in arguments if argument.partition("=")[0] in ("beside", "port")]
    given = _given(own, ("beside", "port"))
    port, beside = _port(given), given.get("beside") or "base"
    options = terminal.parse([argument for argument in arguments if argument not in own])
    shared: dict[str, Any] = {"temperature": options.temperature, "max_new_tokens": options.max_new_tokens}
    if beside == options.policy:
        raise BadInput(f"policy and beside are both {beside}. Name two different ones, as in beside=base.")
    policies = [beside, options.policy]
    names = list(map(_short, policies))
    if names[0] == names[1]:
        names = policies
    arms = {
        name: ArmConfig(policy, system_prompt=options.system_prompt, **shared)
        for name, policy in zip(names, policies, strict=True)
    }
    study = StudyConfig("Side by side", "", arms, ["text"], "", seed=options.seed)
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from collab.study.assistants import load_assistants
    from collab.study.server import Pages, make_app

    with tempfile.TemporaryDirectory() as folder, listening("127.0.0.1", port) as place:
        store = _store(f"sqlite:///{folder}/chat.sqlite3")
        pages = Pages(study, store, load_assistants(arms, options.seed), side_by_side=True)
        only_here = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
        print(
            f"{' and '.join(arms)}: http://127.0.0.1:{place.getsockname()[1]}/ (Ctrl-C ends it; nothing is kept)",
            flush=True,
        )
        try:
            run_server(make_app(pages, middleware=[only_here]), place)
        finally:
            store.close()


def _short(policy: str) -> str:
    """The name of the run that exported a policy, or the last part of its path or id."""
    path = Path(policy).expanduser().resolve()
    return path.parent.name if path.name in ("policy", "policy_last") else path.name
