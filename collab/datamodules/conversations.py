"""The file format of conversations: rows to scored groups, which training learns from, and back to rows.

Two layouts are read, those of the public collabllm-multiturn data sets and of the code that came with them:

- nested, a row for each conversation: `turns`, a list of `{prompt: [messages], responses: [{completion, score, ...}]}`,
  and `single_turn_prompt`, `single_turn_completion`, `single_turn_metadata` for the goal. `collab synthesize` writes
  this layout.
- flat, a row for each response: `prompt`, `completion`, `conv_id`, `score`, and the goal's columns. Rows of one
  `conv_id` with the same `prompt` are the candidates of one context, so `turn_id` is not needed.

The rows of verl's CollabLLM recipe for reinforcement learning are flat ones that are wrapped; they are read too. Those
of its SFT, and of verl's multiturn SFT in general, are whole chats: the column `messages`, or `prompt` alone. Each
reply of a chat is learned. It has no score, and is the only candidate of its context.

`prompt` is the history that the response answers: user, assistant, user, ..., ending with the user; a system message
may come first. `score` is MR; a response with the score null is left out, since a missing score is not 0. `rewards`, if
given, maps the name of a metric to its values in the forward samples. A response with `finish_reason` "length" was cut
at the token limit, so training does not teach an end of turn after it. Other columns are not read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from collab.config.algorithms import AlgorithmConfig
from collab.conversation import Candidate, Conversation, Goal, Group, Reply, Score, Turn, as_record
from collab.datamodules.readers import path_of, read_rows
from collab.datamodules.rows import (
    COMPLETION,
    METADATA,
    PROMPT,
    Row,
    checked,
    derived_id,
    field_of,
    id_of,
    kind_of,
    metadata_of,
    missing,
    unwrapped,
)
from collab.datamodules.synthesis_folder import DATASET, conversation_files
from collab.util.errors import BadInput

KEY = "algorithm.data"  # the config field that names the data
_MESSAGES = "messages"  # the column of whole chats
MR = "MR"  # the entry of `rewards` that is the sum of the others


def load_groups(source: str | Path, system_prompt: str, key: str = KEY) -> list[Group]:
    """The scored groups of a JSONL or Parquet file, a folder of `datasets` or a hub data set (its split `train`).

    Args:
        source: As `readers.read_rows` takes it; or a folder of `collab synthesize`, whose data set is read.
        system_prompt: The assistant's instruction where a row's `prompt` does not start with one.
        key: The config field that names the source, for messages.

    Returns:
        A group for each context, in the order of their first rows. Candidates have no token ids and no futures; their
        scores hold the metrics in `rewards`, and their MR is the stored `score`.

    Raises:
        BadInput: Nothing can be read there; a field is missing or of another kind; user and assistant do not take
            turns, or the user's message is not the last; no response has a score. Names the row and the turn.
    """
    folder = path_of(source, key)
    if (folder / DATASET).is_dir():
        source = folder / DATASET
    elif files := conversation_files(folder):
        raise BadInput(
            f"{key}={source} is the folder of a synthesis that has not finished: it has no {DATASET} folder yet. Run "
            f"its command once more, or name {files[0]} to train on the conversations that are done."
        )
    contexts: dict[Any, tuple[Conversation, list[Candidate]]] = {}
    for where, row in read_rows(source, "train", key):
        row = unwrapped(row)
        for context, candidate in _layout(row)(row, where, system_prompt):
            history = context.goal.id, tuple((m.role, m.content) for m in context.messages())
            candidates = contexts.setdefault(history, (context, []))[1]
            if candidate is not None:
                candidates.append(candidate)
    groups = [Group(context, tuple(candidates)) for context, candidates in contexts.values() if candidates]
    if not groups:
        raise BadInput(
            f"{key}={source} holds no response with a score; at least one is needed to learn from. Name data whose "
            "responses have scores."
        )
    return groups


def training_groups(algorithm: AlgorithmConfig, system_prompt: str) -> list[Group]:
    """The groups of `algorithm.data`, as `load_groups`; with `algorithm.best_path` those of `best_paths`."""
    groups = load_groups(str(algorithm.data), system_prompt)
    return best_paths(groups) if getattr(algorithm, "best_path", False) else groups


def best_paths(groups: Iterable[Group]) -> list[Group]:
    """Of each conversation the path that the best reply to its longest history ends: a group of one for each turn.

    This is what CollabLLM's code and verl's recipe learn in SFT. All candidates of a path have the MR and the scores of
    its last reply, so a path is kept or dropped as a whole.
    """
    ends: dict[str, Group] = {}  # conversation -> its longest context, with the best of the candidates there
    for group in groups:
        other = ends.get(group.context.goal.id)
        if other is None or _end(group) > _end(other):
            ends[group.context.goal.id] = group
    return [turn for end in ends.values() for turn in _path(end)]


def whole_chats(groups: Iterable[Group]) -> list[Conversation]:
    """Each conversation as a whole: its longest history with the best reply to it."""
    ends = {group.context.goal.id: group for group in best_paths(groups)}  # the last one of each path
    return [group.context.with_reply(group.candidates[0].reply) for group in ends.values()]


def _end(group: Group) -> tuple[int, float]:
    return group.context.turn, max(candidate.mr or 0.0 for candidate in group.candidates)


def _path(end: Group) -> Iterator[Group]:
    context, best = end.context, max(end.candidates, key=lambda candidate: candidate.mr or 0.0)
    for number, turn in enumerate(context.turns):
        earlier = replace(context, turns=context.turns[:number], pending=turn.user)
        yield Group(earlier, (replace(best, reply=turn.reply),))
    yield Group(context, (best,))


# --- writing ---------------------------------------------------------------------------------------------------------


def as_row(
    conv_id: str, goal: Goal, turns: Iterable[tuple[Conversation, Sequence[Candidate], int]], **extra: Any
) -> dict[str, Any]:
    """A JSON-ready row in the nested layout; `load_groups` reads it.

    Args:
        conv_id: Names the conversation; unique in the data set.
        goal: What its user wants.
        turns: For each turn: context, all candidates, and `num_proactive`. The last `num_proactive` candidates were
            sampled under the proactive instruction. As in the public data sets, the row leaves instructions out.
        **extra: More columns.
    """
    return {
        "conv_id": conv_id,
        PROMPT: goal.prompt,
        COMPLETION: goal.reference,
        METADATA: dict(goal.metadata),
        "turns": [
            {
                "prompt": [
                    {"role": message.role, "content": message.content}
                    for message in context.messages()
                    if message.role != "system"
                ],
                "responses": [
                    _response(candidate, proactive=number >= len(candidates) - num_proactive)
                    for number, candidate in enumerate(candidates)
                ],
            }
            for context, candidates, num_proactive in turns
        ],
        **extra,
    }


def as_futures(conv_id: str, turns: Iterable[tuple[Conversation, Sequence[Candidate], int]]) -> list[dict[str, Any]]:
    """JSON-ready records of all forward conversations of one conversation, those without a score too.

    Args:
        conv_id: As in `as_row`.
        turns: As in `as_row`.

    Returns:
        Records as in `conversation.as_record`, with `conv_id`, the number `turn`, from 1, and `response` and `sample`,
        which count the candidates of the turn and the forward samples of each from 0.
    """
    return [
        as_record(future, score, conv_id=conv_id, turn=context.turn, response=number, sample=sample)
        for context, candidates, _ in turns
        for number, candidate in enumerate(candidates)
        for sample, (future, score) in enumerate(zip(candidate.futures, candidate.scores, strict=True))
    ]


def _response(candidate: Candidate, proactive: bool) -> dict[str, Any]:
    names = list(candidate.scores[0].parts) if candidate.scores else []
    return {
        "completion": candidate.reply.text,
        "score": candidate.mr,
        "rewards": {
            MR: [score.reward for score in candidate.scores],
            **{name: [score.parts[name] for score in candidate.scores] for name in names},
        },
        "finish_reason": candidate.reply.finish_reason,
        "proactive": proactive,
    }


# --- rows ------------------------------------------------------------------------------------------------------------

_Scored = tuple[Conversation, Candidate | None]  # a context and a response to it; None if that has no score
_LAYOUTS = "A row is a response with prompt, completion, conv_id and score, or a conversation with turns or messages."


def _layout(row: Row) -> Callable[[Row, str, str], Iterator[_Scored]]:
    if "turns" in row:
        return _nested
    return _chat if _MESSAGES in row or row.keys() == {"prompt"} else _flat


def _chat(row: Row, where: str, system_prompt: str) -> Iterator[_Scored]:
    name = _MESSAGES if _MESSAGES in row else "prompt"
    messages = field_of(row, name, where, "a list", _LAYOUTS)
    conv_id = derived_id(str(messages)) if row.get("conv_id") is None else id_of(row, "conv_id", where)
    chat = conversation_of(messages, _goal(row, conv_id, where), system_prompt, lambda n: f"{where}: message {n}")
    if not chat.turns:
        raise BadInput(
            f"{where}: there is no message by 'assistant' in {name}, so nothing can be learned. Remove the row."
        )
    for number, turn in enumerate(chat.turns):
        context = replace(chat, turns=chat.turns[:number], pending=turn.user)
        yield context, Candidate(turn.reply, mr=0.0)  # nothing is compared with it


def _nested(row: Row, where: str, system_prompt: str) -> Iterator[_Scored]:
    goal = _goal(row, where if row.get("conv_id") is None else id_of(row, "conv_id", where), where)
    for number, turn in enumerate(field_of(row, "turns", where, "a list"), 1):
        place = f"{where}, turn {number}"
        prompt = field_of(checked(turn, "an object", place), "prompt", place, "a list")
        context = _context(prompt, goal, system_prompt, place)
        for response in field_of(turn, "responses", place, "a list"):
            yield context, _candidate(checked(response, "an object", f"{place}: a response"), place)


def _flat(row: Row, where: str, system_prompt: str) -> Iterator[_Scored]:
    prompt = field_of(row, "prompt", where, "a list", _LAYOUTS)
    goal = _goal(row, id_of(row, "conv_id", where), where)
    yield _context(prompt, goal, system_prompt, where), _candidate(row, where)


def _goal(row: Row, name: str, where: str) -> Goal:
    prompt, reference = ("" if row.get(n) is None else field_of(row, n, where) for n in (PROMPT, COMPLETION))
    return Goal(name, prompt, reference, metadata_of(row, where))


def _context(messages: Sequence[Any], goal: Goal, system_prompt: str, where: str) -> Conversation:
    context = conversation_of(messages, goal, system_prompt, lambda n: f"{where}: message {n} of the prompt")
    if context.pending is None:
        ends = "ends with a message by 'assistant'" if context.turns else "has no message by 'user'"
        raise BadInput(
            f"{where}: the prompt {ends}; it must end with the user's message that the responses answer. Fix the "
            "row or remove it."
        )
    return context


def conversation_of(
    messages: Sequence[Any],
    goal: Goal,
    system_prompt: str = "",
    place: Callable[[int], str] = "message {} of the chat".format,
) -> Conversation:
    """A conversation of dicts with `role` and `content`. A message of the user at the end is `pending`.

    Args:
        messages: A system message, if there is one, then user and assistant in turns.
        goal: What the user wants.
        system_prompt: The assistant's instruction if there is no system message.
        place: Number of a message, from 1 -> what an error calls it.

    Raises:
        BadInput: A message is no such dict, or it is not its role's turn.
    """
    history = [_message(message, place(number)) for number, message in enumerate(messages, 1)]
    if history and history[0][0] == "system":
        system_prompt, history = history[0][1], history[1:]
    skipped = len(messages) - len(history)
    for number, (role, _) in enumerate(history):
        expected = ("user", "assistant")[number % 2]
        if role != expected:
            raise BadInput(
                f"{place(number + 1 + skipped)} is by '{role}' and must be by '{expected}': after a system "
                "message, if there is one, user and assistant take turns, the user first. Fix or remove it."
            )
    texts = [text for _, text in history]
    turns = tuple(Turn(user, Reply(reply)) for user, reply in zip(texts[0::2], texts[1::2], strict=False))
    return Conversation(goal, system_prompt, turns, pending=texts[-1] if len(texts) % 2 else None)


def _message(message: Any, where: str) -> tuple[str, str]:
    """Role and content."""
    content = field_of(checked(message, "an object", where), "content", where)
    return str(message.get("role")), content


def _candidate(response: Row, where: str) -> Candidate | None:
    text = field_of(response, "completion", where, why=_LAYOUTS)
    if "score" not in response:
        raise missing(response, "score", where, _LAYOUTS)
    mr = _number(response["score"], f"{where}: field score")
    if mr is None:
        return None
    cut = response.get("finish_reason") == "length"
    return Candidate(Reply(text, finish_reason="length" if cut else "stop"), scores=_scores(response, where), mr=mr)


def _scores(response: Row, where: str) -> tuple[Score, ...]:
    """A score for each forward sample, with the metrics in `rewards` as its parts."""
    if response.get("rewards") is None:
        return ()
    columns = {
        name: [
            _number(value, f"{where}: field rewards.{name}")
            for value in (given if isinstance(given, list) else [given])
        ]
        for name, given in field_of(response, "rewards", where, "an object").items()
        if given is not None
    }
    samples = [dict(zip(columns, values, strict=True)) for values in zip_longest(*columns.values())]
    return tuple(Score(sample.pop(MR, None), sample) for sample in samples)


def _number(value: Any, what: str) -> float | None:
    """A number as a float; None for null and NaN. Raises `BadInput` for an infinite one, e.g. 1e400."""
    try:
        number = math.nan if value is None else float(checked(value, "a number", what))
    except OverflowError:  # a whole number of more than 308 digits
        number = math.inf
    if math.isinf(number):
        raise BadInput(f"{what} is {kind_of(value)}; it must be finite, or null if there is none. Fix it.")
    return None if math.isnan(number) else number
