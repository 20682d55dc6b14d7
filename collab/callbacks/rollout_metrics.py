"""Metrics of a rollout, a validation and a test."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence

from collab.conversation import Group, Score, Scored
from collab.parsing.agenda_state import distinct_questions
from collab.rewards.metrics import assistant_tokens

Values = dict[str, list[float | None]]  # metric -> the values that its mean is over; None is a missing value
_OWN = ("distinct_questions", "assistant_tokens", "turns")  # metrics of every conversation, whatever the reward


def means(values: Values, sum_up: Callable[[list[float]], list[float]] = lambda sums: sums) -> dict[str, float]:
    """The mean of each list without missing values; nan if no process has a value.

    Args:
        values: Metric -> values of this process.
        sum_up: Sums each number over all processes, which must have the same metrics.
    """
    known = [[value for value in listed if value is not None and value == value] for listed in values.values()]
    totals = iter(sum_up([number for listed in known for number in (math.fsum(listed), float(len(listed)))]))
    pairs = zip(values, totals, totals, strict=True)
    return {name: total / count if count else math.nan for name, total, count in pairs}


def group_values(groups: Sequence[Group], weights: dict[str, float]) -> Values:
    """The metrics of a rollout.

    `*_spread` is the standard deviation of a part of the reward within a group, times the part's weight. It shows which
    parts decide the comparison of candidates.

    Args:
        groups: Of this process.
        weights: Part of the reward -> its weight.
    """
    candidates = [candidate for group in groups for candidate in group.candidates]
    futures = [future for candidate in candidates for future in candidate.futures if future.valid]
    values: Values = {
        "mr": [c.mr for c in candidates],
        "mr_spread": [_spread([c.mr for c in g.candidates]) for g in groups],
        "assistant_tokens": [float(assistant_tokens(future)) for future in futures],
        "turns": [float(len(future.turns)) for future in futures],
        "context_turn": [float(group.context.turn) for group in groups],
        "reply_tokens": [float(candidate.reply.num_tokens) for candidate in candidates],
        # an estimate of the entropy: the mean of -log p over what was drawn
        "sampled_entropy": [-logprob for candidate in candidates for logprob in candidate.reply.logprobs],
        "cut_replies": [float(turn.reply.finish_reason == "length") for future in futures for turn in future.turns],
        "distinct_questions": distinct_questions(futures),
    }
    for name, weight in weights.items():
        values[name] = [c.part(name) for c in candidates]
        if weight:
            values[f"{name}_spread"] = [_spread([c.part(name) for c in g.candidates], abs(weight)) for g in groups]
    if "token_penalty" in weights:
        values["token_penalty_saturated"] = _saturated([score for c in candidates for score in c.scores])
    return values


def scores_of(scored: Sequence[Scored]) -> list[dict[str, float | None]]:
    """For each conversation: `reward` (R*), its parts, distinct questions, tokens and turns; None if it is invalid."""
    distinct = iter(distinct_questions([conversation for conversation, _ in scored if conversation.valid]))
    rows = []
    for conversation, score in scored:
        row: dict[str, float | None] = {"reward": score.reward, **score.parts, **dict.fromkeys(_OWN)}
        if conversation.valid:
            own = (next(distinct), float(assistant_tokens(conversation)), float(len(conversation.turns)))
            row |= dict(zip(_OWN, own, strict=True))
        rows.append(row)
    return rows


def conversation_values(scored: Sequence[Scored], parts: Iterable[str]) -> Values:
    """The metrics of whole conversations, all but `invalid` of the valid ones alone.

    Args:
        scored: Conversations of this process.
        parts: Parts of the reward.
    """
    valid = [(conversation, score) for conversation, score in scored if conversation.valid]
    rows, parts = scores_of(valid), list(parts)
    values: Values = {
        "invalid": [float(not conversation.valid) for conversation, _ in scored],
        "unscored": [float(score.reward is None) for _, score in valid],
        **{name: [row.get(name) for row in rows] for name in ("reward", *parts, *_OWN)},
        "cut_replies": [float(turn.reply.finish_reason == "length") for c, _ in valid for turn in c.turns],
    }
    if "token_penalty" in parts:
        values["token_penalty_saturated"] = _saturated([score for _, score in valid])
    return values


def _saturated(scores: Sequence[Score]) -> list[float | None]:
    """Whether each token penalty is at its limit."""
    values = [score.parts["token_penalty"] for score in scores]
    return [None if value is None else float(value >= 1) for value in values]


def _spread(values: Sequence[float | None], weight: float = 1.0) -> float | None:
    known = [value for value in values if value is not None]
    return weight * statistics.pstdev(known) if known else None
