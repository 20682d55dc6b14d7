"""The words of the project as plain data: goal, conversation, context, candidate, group.

Everything here is immutable where it can be forked: forward sampling branches one history into many futures
(`t_{1:j} + t^f` of Eq. 1), and a branch must never be able to disturb its siblings. No torch in this file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from collab.util.errors import BadInput

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]
Artefact = Literal["text", "answer", "program", "reply"]  # what a conversation is to end with
INVALID = "invalid"  # how `Conversation.ended_by` begins where the conversation counts nowhere


@dataclass(frozen=True)
class AgendaItem:
    """One thing that the user wants and does not say unasked.

    Attributes:
        kind: What sort of thing it is, e.g. "signature"; naming it gives nothing away.
        text: The sentence in which the user tells it.
        cues: Words, besides those of `kind` and `text`, by which a question can ask for it.
    """

    kind: str
    text: str
    cues: str = ""


@dataclass(frozen=True)
class Agenda:
    """What the user says first, and what only when asked: the entry `agenda` of a goal's metadata.

    Attributes:
        makes: What the conversation is to end with. A "reply" ends it whatever it says.
        opening: What the user gives away at once.
        items: What the user holds back, in the order in which it is told to a question about everything.
    """

    makes: Artefact
    opening: str
    items: tuple[AgendaItem, ...]

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> Agenda:
        """From metadata: `{"makes": ..., "opening": ..., "items": [{"kind": ..., "text": ..., "cues": ...}]}`.

        Raises:
            BadInput: A part is missing, is not known or is no text; `cues` may be left out.
        """
        rule = (
            'it must be an object {"makes": ..., "opening": ..., "items": [{"kind": ..., "text": ..., "cues": ...}]} '
            f"of texts, makes one of {', '.join(get_args(Artefact))}; cues may be left out"
        )
        items = entry.get("items")
        good = entry.keys() == {"makes", "opening", "items"} and entry["makes"] in get_args(Artefact)
        good = good and _is_text(entry["opening"]) and isinstance(items, list | tuple)
        for item in items if good and items is not None else ():
            good = good and isinstance(item, Mapping) and {"kind", "text"} <= item.keys() <= {"kind", "text", "cues"}
            good = good and all(map(_is_text, item.values()))
        if not good or items is None:
            raise BadInput(f"the agenda in the metadata is {str(dict(entry))[:80]!r}; {rule}. Fix it.")
        return cls(entry["makes"], entry["opening"], tuple(AgendaItem(**item) for item in items))

    def entry(self) -> dict[str, Any]:
        """As `read` takes it, fit for JSON."""
        items = [{"kind": i.kind, "text": i.text, **({"cues": i.cues} if i.cues else {})} for i in self.items]
        return {"makes": self.makes, "opening": self.opening, "items": items}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


@dataclass(frozen=True)
class Goal:
    """What the user wants (`g` in the paper); the assistant never sees it.

    Attributes:
        id: Unique within its file.
        prompt: What the user wants, in one message (`single_turn_prompt`).
        reference: The artefact that would satisfy the user (`single_turn_completion`, `y_g` of Eq. 3).
        metadata: Preferences and descriptions, e.g. title, tone, audience, length (`single_turn_metadata`); `notes`, a
            list of texts, is what the user knows, and `cues` has for each note the words by which it can be asked for.
    """

    id: str
    prompt: str
    reference: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user knows, in its own words: the entry `notes` of the metadata; empty where there is none."""
        return tuple(self.metadata.get("notes") or ())

    @property
    def agenda(self) -> Agenda | None:
        """The agenda that the metadata spells out; None where reference and preferences are the agenda."""
        entry = self.metadata.get("agenda")
        return Agenda.read(entry) if isinstance(entry, Mapping) else None


@dataclass(frozen=True)
class Message:
    """One chat message. `token_ids`, where known, are the ids that were sampled: they are never re-tokenised."""

    role: Role
    content: str
    token_ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Usage:
    """Tokens of one request as a server counted them, or guessed where it does not; reasoning is part of completion."""

    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int = 0


@dataclass(frozen=True)
class Reply:
    """What a `ChatModel` returns for one request.

    Attributes:
        text: The decoded reply without special tokens, stripped.
        token_ids: The sampled ids, the end-of-turn id included when the model produced it. Empty over HTTP.
        logprobs: Log-probability of each id under the distribution that it was drawn from (temperature included).
        finish_reason: "stop" when the model ended its turn or said a stop string, "length" when it was cut at
            `max_new_tokens`.
        prompt_ids: The ids that the reply was conditioned on. Empty over HTTP.
        usage: What a server counted; None from local weights.
        reasoning: What was thought before the reply; nobody in the conversation gets to see it.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    finish_reason: FinishReason = "stop"
    prompt_ids: tuple[int, ...] = ()
    usage: Usage | None = None
    reasoning: str = ""

    @property
    def num_tokens(self) -> int:
        """Length of what was said, reasoning left out: the sampled ids, or what a server counted."""
        if self.usage is None:
            return len(self.token_ids)
        return self.usage.completion_tokens - self.usage.reasoning_tokens

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Reply:
        """The reply that `dataclasses.asdict` made into `fields`, after they have been JSON."""
        found: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
        }
        if found.get("usage") is not None:
            found["usage"] = Usage(**found["usage"])
        return cls(**found)


@dataclass(frozen=True)
class Turn:
    """`t_j = (u_j, m_j)`: a user message and the response to it."""

    user: str
    reply: Reply


@dataclass(frozen=True)
class Conversation:
    """Turns so far, and maybe a user message that waits for its response.

    With `pending` set it is a context, the history `t^h_j = t_{1:j-1} + u_j` of Eq. 1.

    Attributes:
        goal: What the simulated user wants.
        system_prompt: The assistant's instruction; empty for none.
        turns: Finished turns.
        pending: The user message that the assistant has to answer next.
        ended_by: Why it is over: "" (it is not), "satisfied", "patience", "max_turns", "window", or "invalid: ..."
            where the user (or a policy over HTTP) failed.
        user: Who plays the user, where there are several users or personas.
    """

    goal: Goal
    system_prompt: str = ""
    turns: tuple[Turn, ...] = ()
    pending: str | None = None
    ended_by: str = ""
    user: str = ""

    @property
    def valid(self) -> bool:
        """Whether the conversation can be measured; one that the simulation spoilt says nothing about the assistant."""
        return not self.ended_by.startswith(INVALID)

    @property
    def turn(self) -> int:
        """The number j, from 1, of the turn that is open or comes next."""
        return len(self.turns) + 1

    def with_user(self, text: str, user: str = "") -> Conversation:
        return replace(self, pending=text, user=user or self.user)

    def with_reply(self, reply: Reply) -> Conversation:
        assert self.pending is not None, "a reply needs a user message to answer"
        return replace(self, turns=(*self.turns, Turn(self.pending, reply)), pending=None)

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


@dataclass(frozen=True)
class Score:
    """The conversation-level reward `R*(t | g)` (Eq. 2) and what it is made of.

    Attributes:
        reward: The weighted sum; None when a part could not be had (a missing score is missing, never 0).
        parts: Metric name -> its value in 0..1 before weighting, None where it could not be had.
        raw: Metric name -> the raw replies of the model that judged it, in order.
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
        futures: Finished conversations `t_{1:j} + t^f`, one per forward sample; none where it was read from a file.
        scores: `R*` of each future.
        mr: Mean of the rewards that could be had (Eq. 1), None if none could.
    """

    reply: Reply
    futures: tuple[Conversation, ...] = ()
    scores: tuple[Score, ...] = ()
    mr: float | None = None

    def part(self, name: str) -> float | None:
        """Mean of one metric over the futures that have it; None if none has."""
        values = [value for score in self.scores if (value := score.parts.get(name)) is not None]
        return sum(values) / len(values) if values else None


@dataclass(frozen=True)
class Group:
    """Candidates for the same context: what an update compares. Candidates without MR have been left out."""

    context: Conversation
    candidates: tuple[Candidate, ...]


def as_record(conversation: Conversation, score: Score | None = None, **extra: Any) -> dict[str, Any]:
    """A JSON-ready record of a conversation, as `transcripts.jsonl` holds it."""
    messages: Sequence[Message] = conversation.messages()
    record: dict[str, Any] = {
        **extra,
        "goal": conversation.goal.id,
        "messages": [{"role": m.role, "content": m.content} for m in messages],
        "finish_reasons": [turn.reply.finish_reason for turn in conversation.turns],
        "reply_tokens": [turn.reply.num_tokens for turn in conversation.turns],
        "ended_by": conversation.ended_by,
    }
    if conversation.user:
        record["user"] = conversation.user
    if score is not None:
        record["reward"] = score.reward
        record["parts"] = dict(score.parts)
        if score.raw:
            record["judge"] = {name: list(replies) for name, replies in score.raw.items()}
    return record
