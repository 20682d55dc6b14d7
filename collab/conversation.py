"""Conversation data types: goal, conversation, context, candidate, group.

They are immutable, because forward sampling branches one history into many futures (`t_{1:j} + t^f` of Eq. 1), and no
branch may change its siblings. This file does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import stdev
from typing import Any, Literal, NamedTuple, get_args

from collab.util.errors import BadInput

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]
Artefact = Literal["text", "answer", "program", "reply", "action"]  # the result of a conversation
INVALID = "invalid"  # start of `Conversation.ended_by` if the conversation does not count


@dataclass(frozen=True)
class AgendaItem:
    """One thing that the user wants but only says when asked.

    Attributes:
        kind: E.g. "signature"; the kind alone gives nothing away.
        text: The sentence in which the user says it.
        cues: Words, besides those of `kind` and `text`, by which a question can ask for it.
    """

    kind: str
    text: str
    cues: str = ""


@dataclass(frozen=True)
class Agenda:
    """What the user says at once and what only when asked: the entry `agenda` of a goal's metadata.

    Attributes:
        makes: The result of the conversation. With "reply", the first reply ends it, whatever it says. With "action"
            it is what tools have done, and no message holds it.
        opening: What the user says at once.
        items: What the user holds back, in the order in which open questions bring it out.
    """

    makes: Artefact
    opening: str
    items: tuple[AgendaItem, ...]

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> Agenda:
        """From metadata: `{"makes": ..., "opening": ..., "items": [{"kind": ..., "text": ..., "cues": ...}]}`.

        Raises:
            BadInput: A part is missing, unknown or not a text; `cues` may be left out.
        """
        rule = (
            'it must be an object {"makes": ..., "opening": ..., "items": [{"kind": ..., "text": ..., "cues": ...}]} '
            f"of texts, makes one of {', '.join(get_args(Artefact))}; cues may be left out"
        )
        good = entry.keys() == {"makes", "opening", "items"} and entry["makes"] in get_args(Artefact)
        good = good and _is_text(entry["opening"]) and isinstance(entry["items"], list | tuple)
        if not good or not all(map(_is_item, entry["items"])):
            raise BadInput(f"the agenda in the metadata is {str(dict(entry))[:80]!r}; {rule}. Fix it.")
        return cls(entry["makes"], entry["opening"], tuple(AgendaItem(**item) for item in entry["items"]))

    def entry(self) -> dict[str, Any]:
        """The JSON-ready form that `read` reads."""
        items = [{"kind": i.kind, "text": i.text, **({"cues": i.cues} if i.cues else {})} for i in self.items]
        return {"makes": self.makes, "opening": self.opening, "items": items}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_item(item: Any) -> bool:
    fits = isinstance(item, Mapping) and {"kind", "text"} <= item.keys() <= {"kind", "text", "cues"}
    return fits and all(map(_is_text, item.values()))


@dataclass(frozen=True)
class Goal:
    """What the user wants (`g` in the paper); the assistant never sees it.

    Attributes:
        id: Unique within its file.
        prompt: What the user wants, in one message (`single_turn_prompt`).
        reference: The result that would satisfy the user (`single_turn_completion`, `y_g` of Eq. 3).
        metadata: More about it (`single_turn_metadata`). The user tells its `title`, its `form`, its `preferences`
            (name -> value) and its `notes`, which list what the user knows; `cues` has for each note the words by
            which a question can ask for it. The user tells nothing else of it.
    """

    id: str
    prompt: str
    reference: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user knows: the entry `notes` of the metadata, or empty."""
        return tuple(self.metadata.get("notes") or ())

    @cached_property  # read for each question of each message
    def agenda(self) -> Agenda | None:
        """The agenda in the metadata; None if notes and preferences are the agenda."""
        entry = self.metadata.get("agenda")
        return Agenda.read(entry) if isinstance(entry, Mapping) else None


@dataclass(frozen=True)
class Message:
    """One chat message. `token_ids`, if known, are the sampled ids; they are used instead of tokenising `content`."""

    role: Role
    content: str
    token_ids: tuple[int, ...] | None = None


def guessed_tokens(text: str) -> int:
    """A guess of a text's tokens: one for four characters of ASCII, and one for each other character."""
    ascii = len(text.encode("ascii", "ignore"))
    return -(-ascii // 4) + len(text) - ascii


@dataclass(frozen=True)
class Usage:
    """Tokens of one request; `completion_tokens` include the reasoning. `guessed`: the server's count was of no use."""

    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int = 0
    guessed: bool = False


@dataclass(frozen=True)
class Reply:
    """Reply of a `ChatModel` to one request.

    Attributes:
        text: The decoded reply without special tokens, stripped.
        token_ids: The sampled ids, with the end-of-turn id if the model produced it. Empty over HTTP.
        logprobs: Log-probability of each id under the distribution that it was sampled from (temperature included).
        finish_reason: "stop" if the model ended its turn or wrote a stop string, "length" if it was cut at
            `max_new_tokens`.
        prompt_ids: The ids of the prompt. Empty over HTTP.
        usage: The server's count; None from local weights.
        reasoning: The model's reasoning before the reply, which is not part of the conversation.
        reasoning_tokens: How many of `token_ids` are no part of `text` for that reason.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    finish_reason: FinishReason = "stop"
    prompt_ids: tuple[int, ...] = ()
    usage: Usage | None = None
    reasoning: str = ""
    reasoning_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        """Number of tokens without reasoning: by the server's count, of the sampled ids, or guessed from the text."""
        if self.usage is not None:
            return self.usage.completion_tokens - self.usage.reasoning_tokens
        return len(self.token_ids) - self.reasoning_tokens or guessed_tokens(self.text)

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Reply:
        """The reply of `dataclasses.asdict`, read back from JSON."""
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
        if values.get("usage") is not None:
            values["usage"] = Usage(**values["usage"])
        return cls(**values)


class Refusal(NamedTuple):
    """What a model that plays the user wrote, and was refused.

    Attributes:
        turn: Number of the turn that it was to open, from 1.
        kind: What is wrong with it, e.g. "leak".
        text: The raw reply of the model; "" if there was none.
    """

    turn: int
    kind: str
    text: str


@dataclass(frozen=True)
class Turn:
    """`t_j = (u_j, m_j)`: a user message and the response to it. `state` is as in `Conversation`, behind `u_j`."""

    user: str
    reply: Reply
    state: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Conversation:
    """Finished turns and possibly a user message without its response.

    With `pending`, it is a context: the history `t^h_j = t_{1:j-1} + u_j` of Eq. 1.

    Attributes:
        goal: What the simulated user wants.
        system_prompt: The assistant's instruction; empty for none.
        turns: Finished turns.
        pending: The user message that the assistant must answer next.
        ended_by: Reason of the end: "" (not ended), "satisfied", "patience", "environment" (the rules of an environment
            end it), "max_turns", "window", or "invalid: ..." if the user or a policy over HTTP failed, or the
            conversation became too long ("invalid: context_full").
        user: Name of the user or persona, if there are several.
        refused: Replies of the user's model that could not be used, in order. Nobody in the conversation sees them.
        state: What an environment or tools hold behind the user's last message, e.g. a calendar; None without. Futures
            of a context share it, so it is never changed in place: whoever goes on works on a copy.
        hidden: Finished turns that are not in `turns`, since this is what a user sees, who sees no calls of tools.
    """

    goal: Goal
    system_prompt: str = ""
    turns: tuple[Turn, ...] = ()
    pending: str | None = None
    ended_by: str = ""
    user: str = ""
    refused: tuple[Refusal, ...] = ()
    state: Any = field(default=None, compare=False, repr=False)
    hidden: int = field(default=0, repr=False)

    @property
    def valid(self) -> bool:
        """Whether the conversation can be measured: an error of the simulation says nothing about the assistant."""
        return not self.ended_by.startswith(INVALID)

    @property
    def turn(self) -> int:
        """Number j, from 1, of the open or next turn."""
        return len(self.turns) + self.hidden + 1

    def with_user(self, text: str, user: str = "") -> Conversation:
        return replace(self, pending=text, user=user or self.user)

    def with_reply(self, reply: Reply) -> Conversation:
        assert self.pending is not None, "a reply needs a user message to answer"
        return replace(self, turns=(*self.turns, Turn(self.pending, reply, self.state)), pending=None)

    def with_end(self, reason: str) -> Conversation:
        return replace(self, ended_by=reason, pending=None)

    @property
    def assistant_texts(self) -> list[str]:
        return [turn.reply.text for turn in self.turns]

    def messages(self) -> list[Message]:
        """The conversation as the assistant sees it: the goal is not in it."""
        found = [Message("system", self.system_prompt)] if self.system_prompt else []
        for turn in self.turns:
            found.append(Message("user", turn.user))
            found.append(Message("assistant", turn.reply.text, turn.reply.token_ids or None))
        if self.pending is not None:
            found.append(Message("user", self.pending))
        return found


def official_history(conversation: Conversation) -> str:
    """The messages of a conversation as the official code shows them in its prompts; "" before the first."""
    return "\n".join(f"**User**: {turn.user}\n**Assistant**: {turn.reply.text}" for turn in conversation.turns)


@dataclass(frozen=True)
class Score:
    """The conversation-level reward `R*(t | g)` (Eq. 2) and its parts.

    Attributes:
        reward: The weighted sum; None (not 0) if a part with a weight is missing.
        parts: Metric name -> value in 0..1 before weighting; None if it is missing.
        raw: Metric name -> raw replies of its judge, in order.
    """

    reward: float | None
    parts: Mapping[str, float | None]
    raw: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


Scored = tuple[Conversation, Score]


@dataclass(frozen=True)
class Candidate:
    """One response `m_j` to a context, with its simulated futures.

    Attributes:
        reply: The sampled response.
        futures: Finished conversations `t_{1:j} + t^f`, one per forward sample; empty if read from a file.
        scores: `R*` of each future.
        mr: Mean of the rewards that are not missing (Eq. 1); None if all are.
    """

    reply: Reply
    futures: tuple[Conversation, ...] = ()
    scores: tuple[Score, ...] = ()
    mr: float | None = None

    @property
    def spread(self) -> float | None:
        """Standard deviation of the rewards of the futures; None if fewer than two have one."""
        rewards = [score.reward for score in self.scores if score.reward is not None]
        return stdev(rewards) if len(rewards) > 1 else None

    def part(self, name: str) -> float | None:
        """Mean of one metric over the futures that have it; None if none has it."""
        values = [value for score in self.scores if (value := score.parts.get(name)) is not None]
        return sum(values) / len(values) if values else None


@dataclass(frozen=True)
class Group:
    """Candidates of the same context. All have an MR.

    Attributes:
        context: What they answer.
        candidates: The responses.
        number: Number of the goal in the run, which is part of the random keys of a rollout; None in stored data.
    """

    context: Conversation
    candidates: tuple[Candidate, ...]
    number: int | None = None


def as_record(conversation: Conversation, score: Score | None = None, **extra: Any) -> dict[str, Any]:
    """A JSON-ready record of a conversation: a line of `transcripts.jsonl`."""
    record: dict[str, Any] = {
        **extra,
        "goal": conversation.goal.id,
        "messages": [{"role": m.role, "content": m.content} for m in conversation.messages()],
        "finish_reasons": [turn.reply.finish_reason for turn in conversation.turns],
        "reply_tokens": [turn.reply.num_tokens for turn in conversation.turns],
        "ended_by": conversation.ended_by,
    }
    if conversation.user:
        record["user"] = conversation.user
    if conversation.refused:
        record["refused"] = [refusal._asdict() for refusal in conversation.refused]
    if any(turn.reply.reasoning for turn in conversation.turns):
        record["thoughts"] = [turn.reply.reasoning for turn in conversation.turns]
    if score is not None:
        record["reward"] = score.reward
        record["parts"] = dict(score.parts)
        if score.raw:
            record["judge"] = {name: list(replies) for name, replies in score.raw.items()}
    return record
