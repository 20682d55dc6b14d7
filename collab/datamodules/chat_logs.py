"""Chat logs, from which a user model learns: the conversations that `chats.py` reads, as groups whose candidates are
the user's messages.

What the user wants, the intent, is the model's system message. It is the column `intent`; or it is made of the goal, if
the row has one (`single_turn_prompt`) or names one of the task (`goal`). Public logs have neither: then the first
message is context only, since nothing says what it is to say. At the end of a conversation the model learns to write
`END`, unless `ended_by` says that the user did not leave. A chat log without `ended_by` ends where the user left. In
the layouts of `conversations.py` a conversation may end at its last turn for other reasons, so there `ended_by` has to
say that the user left.

Left out and counted are rows whose `language` is not English, those that a simulation lost, and those that are no chat:
in logs that people made some do not begin with the user, or have empty messages.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from collab.config.algorithms import AlgorithmConfig
from collab.conversation import INVALID, Candidate, Conversation, Goal, Group, Reply, Turn
from collab.datamodules.chats import chat_rows, messages_of_row
from collab.datamodules.conversations import KEY, conversation_of, load_groups, whole_chats
from collab.datamodules.goals import GoalSplits
from collab.datamodules.readers import path_of, read_rows
from collab.datamodules.rows import COMPLETION, PROMPT, Row, id_of, metadata_of, text_of, unwrapped
from collab.datamodules.synthesis_folder import DATASET
from collab.parsing.intents import END, intent_of
from collab.util.errors import BadInput
from collab.util.text import is_blank

INTENT = "intent"  # the column of what the user wants, in the form "You are a user who wants ..."
NOBODY_KNOWS = "You are a user of an AI assistant."  # the system message without an intent

_LEAVES = ("satisfied", "patience")  # `ended_by` of a user that left
_UNSAID = _LEAVES[0]  # why a chat ended whose log does not say it: the user wrote no more
_HELD_OUT = 10  # every tenth intent is held out,
_MOST_HELD_OUT = 32  # of at most so many conversations

Scrub = Callable[[str], str]


def logs_of(algorithm: AlgorithmConfig, goals: GoalSplits) -> tuple[list[Group], list[str]]:
    """The groups of `algorithm.data` and notes about them, as `user_groups`; scrubbed with `algorithm.scrub`."""
    named = {goal.id: goal for goal in (*goals.train, *goals.val, *goals.test)}
    return user_groups(str(algorithm.data), named, scrubber() if getattr(algorithm, "scrub", True) else str)


def user_groups(
    source: str | Path, goals: Mapping[str, Goal], scrub: Scrub = str, key: str = KEY
) -> tuple[list[Group], list[str]]:
    """A group of one for each message of a user: context `[intent, user, assistant, ..., assistant]`, then the message.

    Args:
        source: As `chats.load_chats` takes it.
        goals: Id -> goal of the task, for rows that name one.
        scrub: Takes personal data out of a text. All texts go through it.
        key: The config field that names the source, for messages.

    Returns:
        The groups, those of one conversation in order; and notes for whoever starts the run.

    Raises:
        BadInput: Nothing can be read there; a row has none of the columns; no conversation is left.
    """
    left_out: Counter[str] = Counter()
    groups: list[Group] = []
    count = unknown = 0
    for chat in _chats(source, goals, key, left_out):
        found = list(_messages(_scrubbed(chat, scrub)))
        count, unknown = count + 1, unknown + (chat.system_prompt == NOBODY_KNOWS)
        groups += found
    notes = [f"{key}: {number} of {count + left_out.total()} conversations are left out: {why}"
             for why, number in left_out.items()]  # fmt: skip
    if not groups:
        raise BadInput(
            f"{key}={source} has no user's message to learn from. {' '.join(notes)} Take logs in English in which user "
            "and assistant take turns, the user first."
        )
    if unknown:
        notes.append(
            f"{key}: {unknown} of {count} conversations have no {INTENT}, so their first messages are not learned."
        )
    return groups, notes


def held_out(groups: Sequence[Group]) -> tuple[list[Group], list[Group]]:
    """Groups to train on, and held-out ones: every tenth intent, of conversations without one every tenth.

    Raises:
        BadInput: There is one intent alone.
    """
    names = {_known(group.context): None for group in groups}  # in the order of the first
    if len(names) < 2:
        raise BadInput(
            f"{KEY} has one {INTENT} alone, and a part of them is held out to measure the model. Take logs with more."
        )
    kept_back = set(list(names)[:: min(_HELD_OUT, len(names))][:_MOST_HELD_OUT])
    train = [group for group in groups if _known(group.context) not in kept_back]
    measured = [group for group in groups if _known(group.context) in kept_back]
    some = dict.fromkeys(group.context.goal.id for group in measured)
    chosen = set(itertools.islice(some, _MOST_HELD_OUT))
    return train, [group for group in measured if group.context.goal.id in chosen]


def _known(context: Conversation) -> str:
    return context.goal.id if context.system_prompt == NOBODY_KNOWS else context.system_prompt


def _messages(chat: Conversation) -> Iterator[Group]:
    """The groups of a chat whose system prompt is the intent. What is `pending` is the user's last word."""
    texts = [turn.user for turn in chat.turns]
    texts += [END] if chat.pending is None and chat.ended_by in _LEAVES else []
    texts += [] if chat.pending is None else [chat.pending]
    for number, text in enumerate(texts):
        if number or chat.system_prompt != NOBODY_KNOWS:
            context = replace(chat, turns=chat.turns[:number], pending=None)
            yield Group(context, (Candidate(Reply(text), mr=0.0),))  # nothing is compared with it


def _scrubbed(chat: Conversation, scrub: Scrub) -> Conversation:
    turns = tuple(Turn(scrub(turn.user), Reply(scrub(turn.reply.text))) for turn in chat.turns)
    pending = None if chat.pending is None else scrub(chat.pending)
    return replace(chat, system_prompt=scrub(chat.system_prompt), turns=turns, pending=pending)


def _chats(source: str | Path, goals: Mapping[str, Goal], key: str, left_out: Counter[str]) -> Iterator[Conversation]:
    """The conversations, each with an id of its own and the intent as its system prompt."""
    if (rows := chat_rows(source, key)) is None:
        made = path_of(source, key) / DATASET  # by a synthesis
        yield from _stored(load_groups(source, "", key), _ends(made if made.is_dir() else source, key))
        return
    for number, (where, row) in enumerate(rows):
        language = row.get("language") or "English"
        if language not in ("English", "en"):
            left_out["they are not in English."] += 1
        elif str(row.get("ended_by", "")).startswith(INVALID):
            left_out["their simulation failed."] += 1
        else:
            intent, messages = _intent(row, where, goals), messages_of_row(row, where)
            # Instructions of the assistant, which may come at any place of a log, are no part of what is said.
            said = [one for one in messages if not isinstance(one, dict) or one.get("role") != "system"]
            try:
                chat = conversation_of(said, Goal(str(number), "", ""), place=lambda n: f"message {n}")
            except BadInput:
                chat = Conversation(Goal("", "", ""))
            texts = [text for turn in chat.turns for text in (turn.user, turn.reply.text)]
            if not texts or any(map(is_blank, [*texts, chat.pending or "?"])):
                left_out["user and assistant do not take turns, or a message is empty."] += 1
            else:
                yield replace(chat, system_prompt=intent, ended_by=str(row.get("ended_by") or _UNSAID))


def _stored(groups: Iterable[Group], reasons: Mapping[str, str]) -> Iterator[Conversation]:
    for chat in whole_chats(groups):
        yield replace(chat, system_prompt=intent_of(chat.goal), ended_by=reasons.get(chat.goal.id, ""))


def _ends(source: str | Path, key: str) -> dict[str, str]:
    """Name of a conversation in `load_groups`, which leaves this out -> why it ended, of the rows that say it."""
    rows = ((where, unwrapped(row)) for where, row in read_rows(source, "train", key))
    return {
        where if row.get("conv_id") is None else id_of(row, "conv_id", where): str(row["ended_by"])
        for where, row in rows
        if row.get("ended_by")
    }


def _intent(row: Row, where: str, goals: Mapping[str, Goal]) -> str:
    if row.get(INTENT) is not None:
        return text_of(row, INTENT, where, "It is what the user wants.")
    if row.get(PROMPT) is not None:
        prompt = text_of(row, PROMPT, where)
        return intent_of(Goal(where, prompt, str(row.get(COMPLETION) or ""), metadata_of(row, where)))
    goal = goals.get(str(row.get("goal")))
    return NOBODY_KNOWS if goal is None else intent_of(goal)


def scrubber() -> Scrub:
    """Text -> the text with marks such as [EMAIL_1] in place of personal data.

    datafog finds e-mail addresses, telephone numbers, US social security numbers, credit cards and IP addresses by
    patterns, on this machine. It finds no names and no addresses.

    Raises:
        BadInput: The library is not installed.
    """
    try:
        import datafog
    except ImportError as error:
        raise BadInput(
            "algorithm.scrub=true takes personal data out of the logs with datafog, which is not installed. Install it "
            "(pip install 'collab-llm[scrub]'), or set algorithm.scrub=false for logs that have none."
        ) from error
    kinds = ["EMAIL", "PHONE", "SSN", "CREDIT_CARD", "IP_ADDRESS"]
    return lambda text: str(datafog.sanitize(text, engine="regex", entity_types=kinds))
