"""How human simulated users are: `collab simulator-report user=OPTION`. `--help` has the command line.

All users play the same conversations (`collab.app.report_sources`), and `collab.simulation.user_measures` measures
them. They are compared with real chats (`report.chats`) or with each other (`collab.reports.users`). With stored
conversations alone (`report.stored`) no user is played, and no model is needed. Imports that need torch are inside
functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from collab.app.report_sources import OWN, REPORT, Played, Sources, check_sources, play_with, read_sources
from collab.app.resume import interruptible
from collab.config.fields import nodes
from collab.config.schema import Config, EndpointConfig
from collab.conversation import Conversation, Score
from collab.reports.tables import markdown, rich_table
from collab.reports.users import summarise_users, user_rows
from collab.simulation.user_measures import disclosure_by_turn, measure, messages_of
from collab.util.errors import BadInput
from collab.util.files import write_json

PEOPLE = "people"  # the row of `report.chats`


def users_of(config: Config) -> dict[str, Any]:
    """Row -> user that is played: `user` unless there are stored rows, and those of `evaluation.users`."""
    return ({} if config.report.stored else {OWN: config.user}) | config.evaluation.users


def check_report(config: Config) -> Sources:
    """Read everything that the report is about, and check the models that it needs; loads none.

    Raises:
        BadInput: As `read_sources` and `check_sources`; or two rows share a name.
    """
    users, sources = users_of(config), read_sources(config, playing=bool(users_of(config)))
    names = [*([PEOPLE] if sources.chats else []), *sources.stored, *users]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadInput(
            f"{', '.join(twice)} names two rows of the report, and names must differ: {', '.join(names)}. Rename a "
            "user of evaluation.users, or write NAME:PATH in report.stored."
        )
    check_sources(config, sources, "simulator-report", playing=bool(users))
    return sources


def simulator_report(config: Config) -> None:
    """Play and measure; write `report.json`, `report.md`, `users.png` and `transcripts.jsonl`, print the table."""
    from collab.app import build
    from collab.callbacks.progress import Progress
    from collab.callbacks.transcripts import TranscriptWriter
    from collab.reports.plots import users_figure

    folder, users = Path(config.output_dir), users_of(config)
    sources = read_sources(config, playing=bool(users))
    with (
        interruptible("the same command; replies of servers are in the cache"),
        Progress(animate=config.callbacks.progress_bar) as progress,
        build.endpoints(config, progress) as endpoints,
    ):
        build.start(config)
        advance = endpoints.shown_by(progress.advance)
        played: dict[str, Played] = {}
        writer = TranscriptWriter(folder)
        for name, user in users.items():
            progress.phase(name, len(sources.goals))
            played[name] = play_with(config, user, sources, endpoints, advance)
            progress.done()
            writer.write(((talk, Score(None, {})) for talk in played[name].conversations), phase="test", policy=name)
        progress.say(*endpoints.ledger.table())
        report = figures(config, sources, played)
        write_json(folder / REPORT, report)
        header, rows, caption = user_rows(report)
        (folder / "report.md").write_text(markdown(header, rows, caption), encoding="utf-8")
        users_figure(report, folder / "users.png")
        progress.console.print(rich_table(header, rows, caption))
        for what, name in (("figures", REPORT), ("table", "report.md"), ("picture", "users.png")):
            progress.say(f"{what:>15}: {folder / name}")


def figures(config: Config, sources: Sources, played: Mapping[str, Played]) -> dict[str, Any]:
    """`report.json`: the parts of `summarise_users`, and by row `disclosure_by_turn`, `totals` and `problems`."""
    talks: dict[str, list[Conversation]] = {PEOPLE: sources.chats} if sources.chats else {}
    talks |= sources.stored
    talks |= {name: one.conversations for name, one in played.items()}
    measured = {
        name: [(talk.goal.id, values) for talk, values in zip(group, measure(group), strict=True)]
        for name, group in talks.items()
    }
    turns = max((len(messages_of(talk)) for group in talks.values() for talk in group), default=0)
    users = users_of(config)
    return {
        **summarise_users(measured, PEOPLE if sources.chats else None, config.seed),
        "disclosure_by_turn": {name: disclosure_by_turn(group, turns) for name, group in talks.items()},
        "totals": {
            name: _totals(config, group, played.get(name), users.get(name), sources) for name, group in talks.items()
        },
        "problems": {name: {k: n for k, n in sorted(one.problems.items()) if n} for name, one in played.items()},
        "config": asdict(config),
    }


def _totals(
    config: Config, talks: list[Conversation], played: Played | None, user: Any, sources: Sources
) -> dict[str, Any]:
    """Counts, and what one message of `user` took and cost; None where it was not measured.

    Time is wall-clock time of all conversations at once, measured where the assistant's replies are stored. Calls,
    tokens and dollars are those of servers, so a local model that plays the user has none of them, and rules have 0.
    Where the cache gave a reply, nothing of this is known.
    """
    messages = sum(len(messages_of(talk)) for talk in talks)
    totals: dict[str, Any] = {"conversations": len(talks), "messages": messages}
    costs = dict.fromkeys(f"{what}_per_message" for what in ("seconds", "calls", "tokens", "dollars"))
    if played is not None and messages and not played.spent.cached:
        if sources.replies is not None:
            costs["seconds_per_message"] = played.seconds / messages
        endpoints = [node for _, node in nodes(user) if isinstance(node, EndpointConfig)]
        if all(endpoint.kind == "http" for endpoint in endpoints):
            costs["calls_per_message"] = played.spent.calls / messages
            costs["tokens_per_message"] = played.spent.tokens / messages
            if all(endpoint.model in config.budget.prices for endpoint in endpoints):
                costs["dollars_per_message"] = played.spent.usd / messages
    return totals | costs
