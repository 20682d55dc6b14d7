"""The file format of conversations: rows to scored groups, which training learns from, and back to rows.

Two layouts are read, those of the public collabllm-multiturn data sets and of the code that came with them:

- nested, a row for each conversation: `turns`, a list of `{prompt: [messages], responses: [{completion, score, ...}]}`,
  and `single_turn_prompt`, `single_turn_completion`, `single_turn_metadata` for the goal. `collab synthesize` writes
  this layout.
- flat, a row for each response: `prompt`, `completion`, `conv_id`, `score`, and the goal's columns. Rows of one
  `conv_id` with the same `prompt` are the candidates of one context, so `turn_id` is not needed.

`prompt` is the history that the response answers: user, assistant, user, ..., ending with the user; a system message
may come first. `score` is MR; a response whose score is null is left out, since a missing score is not 0. `rewards`, if
given, maps the name of a metric to its values in the forward samples. A response with `finish_reason` "length" was cut
at the token limit, so training does not teach an end of turn after it. Other columns are not read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from collab.conversation import Candidate, Conversation, Goal, Group, Reply, Score, Turn
from collab.datamodules.readers import read_rows
from collab.datamodules.rows import COMPLETION, METADATA, PROMPT, Row, kind_of, metadata_of
from collab.datamodules.synthesis_folder import CONVERSATIONS, DATASET
from collab.util.errors import BadInput

KEY = "algorithm.data"  # the config field that names the data
MR = "MR"  # the entry of `rewards` that is the sum of the others


def load_groups(source: str | Path, system_prompt: str, key: str = KEY) -> list[Group]:
    """The scored groups of a JSONL or Parquet file, a folder of `datasets` or a hub data set (its split `train`).

    Args:
        source: As `readers.read_rows` takes it; or a folder of `collab synthesize`, whose data set is read.
        system_prompt: The assistant's instruction where a row's `prompt` does not start with one.
        key: The config field that names the source, for messages.

    Returns:
        A group for each context, in the order of their first rows, without token ids. A candidate has no futures. Its
        scores hold the metrics in `rewards`, its MR is the stored `score`.

    Raises:
        BadInput: Nothing can be read there; a column is missing or holds something else; turns do not alternate or do
            not end with the user's message; no response has a score. Names the row and the turn.
    """
    folder = Path(source).expanduser()
    if (folder / DATASET).is_dir():
        source = folder / DATASET
    elif (folder / CONVERSATIONS).is_file():
        raise BadInput(
            f"{key}={source} is the folder of a synthesis that has not finished: it has no {DATASET} folder yet. Run "
            f"its command once more, or name {folder / CONVERSATIONS} to train on the conversations that are done."
        )
    contexts: dict[Any, tuple[Conversation, list[Candidate]]] = {}
    for place, row in read_rows(source, "train", "conversations", key):
        where = f"{source}, {place}"
        if not isinstance(row, Mapping):
            raise BadInput(f"{where} is {kind_of(row)}; each row must be an object: a conversation or a response.")
        read = _nested if "turns" in row else _flat
        for context, candidate in read(row, where, system_prompt):
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

_Scored = tuple[Conversation, Candidate | None]  # a context and a response to it; None where that has no score


def _nested(row: Row, where: str, system_prompt: str) -> list[_Scored]:
    goal = _goal(row, where, default=where)
    scored: list[_Scored] = []
    for number, turn in enumerate(_list(row, "turns", where), 1):
        place = f"{where}, turn {number}"
        if not isinstance(turn, Mapping):
            raise BadInput(f"{place} is {kind_of(turn)}; a turn must be an object with prompt and responses.")
        context = _context(_list(turn, "prompt", place), goal, system_prompt, place)
        for response in _list(turn, "responses", place):
            if not isinstance(response, Mapping):
                raise BadInput(f"{place}: a response is {kind_of(response)}; it must be an object.")
            scored.append((context, _candidate(response, place)))
    return scored


def _flat(row: Row, where: str, system_prompt: str) -> list[_Scored]:
    messages = _list(row, "prompt", where)
    goal = _goal(row, where, default=None)
    # A history that ends with the user's message has one user message in each turn.
    turn = sum(isinstance(message, Mapping) and message.get("role") == "user" for message in messages)
    place = f"{where}, turn {max(1, turn)}"
    return [(_context(messages, goal, system_prompt, place), _candidate(row, place))]


def _goal(row: Row, where: str, default: str | None) -> Goal:
    name = row.get("conv_id", default)
    if name is None:
        raise _missing(row, "conv_id", where)
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise _wrong(name, "conv_id", where, "text or a whole number")
    prompt, reference = (row.get(key) if isinstance(row.get(key), str) else "" for key in (PROMPT, COMPLETION))
    return Goal(str(name), str(prompt), str(reference), metadata_of(row.get(METADATA), where))


def _context(messages: Sequence[Any], goal: Goal, system_prompt: str, where: str) -> Conversation:
    history = [_message(message, number, where) for number, message in enumerate(messages, 1)]
    if history and history[0][0] == "system":
        system_prompt, history = history[0][1], history[1:]
    skipped = len(messages) - len(history)
    for number, (role, _) in enumerate(history):
        expected = ("user", "assistant")[number % 2]
        if role != expected:
            raise BadInput(
                f"{where}: message {number + 1 + skipped} of the prompt is by '{role}' and must be by '{expected}': "
                "after a system message, if there is one, user and assistant take turns, the user first. Fix the row "
                "or remove it."
            )
    if len(history) % 2 == 0:
        ends = "ends with a message by 'assistant'" if history else "has no message by 'user'"
        raise BadInput(
            f"{where}: the prompt {ends}; it must end with the user's message that the responses answer. Fix the "
            "row or remove it."
        )
    texts = [text for _, text in history]
    turns = tuple(Turn(user, Reply(reply)) for user, reply in zip(texts[0::2], texts[1::2], strict=False))
    return Conversation(goal, system_prompt, turns, pending=texts[-1])


def _message(message: Any, number: int, where: str) -> tuple[str, str]:
    if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
        raise BadInput(
            f"{where}: message {number} of the prompt is {kind_of(message)}; it must be an object with the texts "
            "role and content."
        )
    return str(message.get("role")), message["content"]


def _candidate(response: Row, where: str) -> Candidate | None:
    text = response.get("completion")
    if text is None:
        raise _missing(response, "completion", where)
    if not isinstance(text, str):
        raise _wrong(text, "completion", where, "text")
    if "score" not in response:
        raise _missing(response, "score", where)
    mr = _number(response["score"], "score", where)
    if mr is None:
        return None
    cut = response.get("finish_reason") == "length"
    return Candidate(Reply(text, finish_reason="length" if cut else "stop"), scores=_scores(response, where), mr=mr)


def _scores(response: Row, where: str) -> tuple[Score, ...]:
    """A score for each forward sample, with the metrics in `rewards` as its parts."""
    rewards = response.get("rewards")
    if rewards is None:
        return ()
    if not isinstance(rewards, Mapping):
        raise _wrong(rewards, "rewards", where, "an object, metric by metric")
    columns = {
        name: [_number(value, f"rewards.{name}", where) for value in (given if isinstance(given, list) else [given])]
        for name, given in rewards.items()
        if given is not None
    }
    samples = [dict(zip(columns, values, strict=True)) for values in zip_longest(*columns.values())]
    return tuple(Score(sample.pop(MR, None), sample) for sample in samples)


def _list(row: Row, name: str, where: str) -> Sequence[Any]:
    value = row.get(name)
    if value is None:
        raise _missing(row, name, where)
    if not isinstance(value, list | tuple):
        raise _wrong(value, name, where, "a list")
    return value


def _number(value: Any, name: str, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(value, name, where, "a number or null")
    return None if math.isnan(value) else float(value)


def _missing(row: Row, name: str, where: str) -> BadInput:
    return BadInput(
        f"{where}: field {name} is missing. It has: {', '.join(map(str, row)) or '-'}. A row is either a response "
        "with prompt, completion, conv_id and score, or a conversation with turns of prompt and responses. Rename the "
        "column."
    )


def _wrong(value: Any, name: str, where: str, rule: str) -> BadInput:
    return BadInput(f"{where}: field {name} is {kind_of(value)}; it must be {rule}. Fix the row or remove it.")
