"""What is logged about a rollout, a validation and a test."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence

from collab.conversation import Group, Score, Scored
from collab.parsing.agenda_state import distinct_questions
from collab.rewards.metrics import assistant_tokens

Values = dict[str, list[float | None]]  # metric -> what its mean is over; None where it could not be had


def means(values: Values, sum_up: Callable[[list[float]], list[float]] = lambda sums: sums) -> dict[str, float]:
    """The mean of each list; missing values are left out, and what nobody has is nan.

    Args:
        values: Metric -> values of this process.
        sum_up: Adds numbers up over all processes, which have to have the same metrics.
    """
    known = [[value for value in listed if value is not None and value == value] for listed in values.values()]
    totals = iter(sum_up([number for listed in known for number in (math.fsum(listed), float(len(listed)))]))
    pairs = zip(values, totals, totals, strict=True)
    return {name: total / count if count else math.nan for name, total, count in pairs}


def group_values(groups: Sequence[Group], weights: dict[str, float]) -> Values:
    """What a rollout was like. `*_spread`: of each group, standard deviation of a part times its weight.

    Spreads tell which part of MR the comparison of candidates is made by.
    """
    candidates = [candidate for group in groups for candidate in group.candidates]
    futures = [future for candidate in candidates for future in candidate.futures if future.valid]
    spoken = [turn.reply for future in futures for turn in future.turns]
    found: Values = {
        "mr": [c.mr for c in candidates],
        "mr_spread": [_spread([c.mr for c in g.candidates]) for g in groups],
        "assistant_tokens": [float(assistant_tokens(future)) for future in futures],
        "turns": [float(len(future.turns)) for future in futures],
        "context_turn": [float(group.context.turn) for group in groups],
        "reply_tokens": [float(candidate.reply.num_tokens) for candidate in candidates],
        "cut_replies": [float(reply.finish_reason == "length") for reply in spoken],
    }
    found["distinct_questions"] = distinct_questions(futures)
    for name, weight in weights.items():
        found[name] = [c.part(name) for c in candidates]
        if weight:
            found[f"{name}_spread"] = [_spread([c.part(name) for c in g.candidates], abs(weight)) for g in groups]
    if "token_penalty" in weights:
        found["token_penalty_saturated"] = _saturated([score for c in candidates for score in c.scores])
    return found


def scores_of(scored: Sequence[Scored]) -> list[dict[str, float | None]]:
    """Of each conversation: `reward` (R*) and its parts, distinct questions, tokens, turns; None for an invalid one."""
    distinct = iter(distinct_questions([conversation for conversation, _ in scored if conversation.valid]))
    found = []
    for conversation, score in scored:
        values: dict[str, float | None] = {"reward": score.reward, **score.parts}
        own = ("distinct_questions", "assistant_tokens", "turns")
        if conversation.valid:
            tokens, turns = float(assistant_tokens(conversation)), float(len(conversation.turns))
            found.append(values | dict(zip(own, (next(distinct), tokens, turns), strict=True)))
        else:
            found.append(values | dict.fromkeys(own))
    return found


def conversation_values(scored: Sequence[Scored], names: Iterable[str]) -> Values:
    """Of whole conversations: what `scores_of` has, of the parts `names`, and whether replies are cut at the limit.

    Of valid ones alone; `invalid` tells the others, `unscored` the valid ones without a reward. With a token penalty
    among the parts, also whether it is saturated.
    """
    names = list(names)
    invalid: list[float | None] = [float(not conversation.valid) for conversation, _ in scored]
    scored = [(conversation, score) for conversation, score in scored if conversation.valid]
    rows = scores_of(scored)
    found: Values = {
        "invalid": invalid,
        "unscored": [float(score.reward is None) for _, score in scored],
        **{
            name: [row.get(name) for row in rows]
            for name in ("reward", *names, "distinct_questions", "assistant_tokens", "turns")
        },
        "cut_replies": [float(turn.reply.finish_reason == "length") for c, _ in scored for turn in c.turns],
    }
    if "token_penalty" in names:
        found["token_penalty_saturated"] = _saturated([score for _, score in scored])
    return found


def conversation_metrics(scored: Sequence[Scored]) -> dict[str, float]:
    """Means of `conversation_values`, of all parts that the scores have."""
    return means(conversation_values(scored, dict.fromkeys(name for _, score in scored for name in score.parts)))


def _saturated(scores: Sequence[Score]) -> list[float | None]:
    """Whether each token penalty is at its limit."""
    values = [score.parts["token_penalty"] for score in scores]
    return [None if value is None else float(value >= 1) for value in values]


def _spread(values: Sequence[float | None], weight: float = 1.0) -> float | None:
    known = [value for value in values if value is not None]
    return weight * statistics.pstdev(known) if known else None
