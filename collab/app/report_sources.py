"""What the reports about users and judges read and play: stored conversations, and conversations with a user.

A conversation that is played has an assistant that says again what another one said about the same goal
(`report.replies`), so that all users hear the same; or the model of the config speaks.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from collab.chat.base import ChatModel, Sampling
from collab.chat.budget import Spend
from collab.config.policies import named_sources
from collab.config.schema import Config, EndpointConfig, EvaluatorConfig, JudgeConfig
from collab.conversation import Conversation, Goal, Message, Refusal, Reply
from collab.datamodules.chats import load_chats
from collab.datamodules.goals import GoalSplits, load_splits
from collab.randomness import RngKey
from collab.simulation.conversation_loop import Players, play
from collab.simulation.user import UserSimulator
from collab.util.errors import BadInput

if TYPE_CHECKING:
    from collab.chat.endpoints import Endpoints

T = TypeVar("T")

REPORT = "report.json"
OWN = "user"  # the row of the config's user


@dataclass(frozen=True)
class Sources:
    """What a report is about.

    Attributes:
        chats: Of `report.chats`; empty without.
        stored: Row -> its stored conversations.
        goals: What the conversations that are played are about.
        replies: For each of them, what the assistant says in turn; None if the model plays it.
    """

    chats: list[Conversation]
    stored: Mapping[str, list[Conversation]]
    goals: list[Goal]
    replies: list[list[str]] | None


@dataclass
class Played:
    """The conversations with one user.

    Attributes:
        conversations: In the order of the goals.
        problems: Unusable replies of the model that plays the user, by kind.
        seconds: Wall-clock time, that of the assistant included.
        spent: On hosted models that played the user.
    """

    conversations: list[Conversation]
    problems: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    spent: Spend = field(default_factory=Spend)


def read_sources(config: Config, playing: bool = True) -> Sources:
    """Read all files that the report names, and the goals of the task.

    Args:
        config: The checked config.
        playing: Whether conversations are played.

    Raises:
        BadInput: As `load_chats` and `load_splits`; or `report.replies` has no goal that a user could have.
    """
    report, splits = config.report, load_splits(config.task)
    count = report.num_conversations
    known = [*splits.train, *splits.val, *splits.test]

    def read(source: str, key: str) -> list[Conversation]:
        return spread(load_chats(source, key, known), count)

    chats = read(report.chats, "report.chats") if report.chats else []
    stored = {name: read(source, "report.stored") for name, source in named_sources(report.stored).items()}
    goals, replies = spread(splits.test, count), None
    if report.replies and playing:
        found = load_chats(report.replies, "report.replies", known)
        told = [chat for chat in found if chat.goal.prompt and chat.turns]
        if not told:
            raise BadInput(
                f"report.replies={report.replies} has {len(found)} conversations, none with replies to a user whose "
                "goal is known. Give each row single_turn_prompt, or set report.replies=null: the model then plays the "
                "assistant."
            )
        told = spread(told, count)
        goals, replies = [chat.goal for chat in told], [chat.assistant_texts for chat in told]
    return Sources(chats, stored, goals, replies)


def spread(items: Sequence[T], count: int) -> list[T]:
    """`count` of the items, or all, at even distances."""
    count = min(count, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def check_sources(config: Config, sources: Sources, entry: str, playing: bool) -> None:
    """Check models, classes and servers that the report needs; reads no weights.

    Args:
        config: The checked config.
        sources: Of the report.
        entry: The command.
        playing: Whether conversations are played.

    Raises:
        BadInput: As `collab.app.preflight.check_players`; or the folder has a report.
    """
    from collab.app.preflight import check_players

    if (Path(config.output_dir) / REPORT).exists():
        raise BadInput(
            f"output_dir={config.output_dir} has a report, which is not overwritten. Set output_dir to another folder."
        )
    if entry == "simulator-report":
        if not playing:
            return  # nobody speaks
        config = replace(unjudged(config), evaluator=EvaluatorConfig("none"))
    policy_here = playing and sources.replies is None
    check_players(config, GoalSplits([], [], sources.goals), policy_here, entry)


def unjudged(config: Config) -> Config:
    """The config without judge and metrics: a report measures what it plays, or asks its judges, by itself."""
    return replace(config, judge=JudgeConfig("none"), task=replace(config.task, metrics={}))


def play_with(config: Config, user: Any, sources: Sources, endpoints: Endpoints, advance: Callable[[], None]) -> Played:
    """Play a conversation about each goal.

    Args:
        config: The checked config.
        user: The node of the user that plays.
        sources: Goals, and what the assistant says.
        endpoints: The hosted models of the report.
        advance: Called at the end of each conversation.
    """
    from collab.app import build

    simulation = build.simulation(replace(unjudged(config), user=user), endpoints, advance)
    policy: ChatModel | None = None
    if sources.replies is None:
        policy = build.chat_model(config, EndpointConfig(kind="local", model=config.model.path), endpoints)
    before = replace(endpoints.ledger.spent.get("user", Spend()))

    async def one(number: int, goal: Goal) -> Conversation:
        speaker, turns = policy, simulation.max_turns
        if sources.replies is not None:
            speaker, turns = Says(sources.replies[number]), min(turns, len(sources.replies[number]))
        assert speaker is not None
        players = Players(speaker, simulation.user, simulation.sampling, turns, advance)
        key = RngKey(config.seed, split="test", goal=goal.id)
        done = await play(players, Conversation(goal, config.task.system_prompt), key)
        if sources.replies is not None and done.ended_by == "max_turns":
            done = await heard_out(simulation.user, done, key)
        advance()
        return done

    async def everyone() -> list[Conversation]:
        return list(await asyncio.gather(*(one(*each) for each in enumerate(sources.goals))))

    began = time.perf_counter()
    conversations = asyncio.run(everyone())
    seconds, after = time.perf_counter() - began, endpoints.ledger.spent.get("user", before)
    spent = Spend(**{count.name: getattr(after, count.name) - getattr(before, count.name) for count in fields(Spend)})
    return Played(conversations, simulation.problems, seconds, spent)


async def heard_out(user: UserSimulator, conversation: Conversation, key: RngKey) -> Conversation:
    """The conversation with the end that the user gives it once it has read the last stored reply.

    `play` stops behind the last reply, before the user has read it, which is often the finished text. A user that would
    go on has no reply to go on with: then `ended_by` is "", which is not known. What it would say is left out.
    """
    turn = await user.respond(conversation, key.at(role="user", turn=conversation.turn))
    refused = (Refusal(conversation.turn, *refusal) for refusal in turn.refused)
    return replace(
        conversation,
        ended_by=turn.end,
        user=turn.user or conversation.user,
        refused=(*conversation.refused, *refused),
    )


class Says:
    """A `ChatModel` that says `replies`, one a turn."""

    def __init__(self, replies: Sequence[str]) -> None:
        self.replies = replies

    async def complete(self, messages: Sequence[Message], sampling: Sampling, key: RngKey) -> Reply:
        return Reply(self.replies[key.turn - 1])
