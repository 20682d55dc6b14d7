"""Hosted calls, tokens and dollars of a run before it starts: `dry_run=true`, and the check of the budget.

Conversations are taken to be as long as they may be, every reply as long as its limit, and no call to be answered by
the cache or made twice: about what a run costs at most if nothing fails and no guard objects. Tokens are guessed from
characters.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from collab.chat.budget import price
from collab.chat.completions import guessed_tokens
from collab.config.policies import HostedPolicy, named_policies
from collab.config.schema import (
    Config,
    EndpointConfig,
    LLMJudgeConfig,
    LLMUserConfig,
    MixUserConfig,
    PairwiseConfig,
    UserConfig,
)
from collab.rewards.judge import JudgedMetric
from collab.simulation.schedule import candidates_at, context_turns
from collab.util.errors import BadInput
from collab.util.targets import load_target

if TYPE_CHECKING:
    from collab.datamodules.goals import GoalSplits

_INSTRUCTION = 600  # tokens of the instruction of a user or judge, about
_USER_MESSAGE = 64  # tokens of what a user says, about; what it thinks beside is in its limit


@dataclass
class Calls:
    """Calls of one role to one model, and the tokens of all of them together."""

    role: str
    model: str | None
    calls: float = 0
    prompt_tokens: float = 0
    completion_tokens: float = 0

    @property
    def tokens(self) -> float:
        return self.prompt_tokens + self.completion_tokens

    def usd(self, config: Config) -> float:
        return price(config.budget, self.model, self.prompt_tokens, self.completion_tokens)

    def times(self, count: float) -> Calls:
        numbers = (self.calls * count, self.prompt_tokens * count, self.completion_tokens * count)
        return Calls(self.role, self.model, *numbers)


@dataclass
class Estimate:
    """What is to be called, an entry for each role and model.

    Attributes:
        total: In the whole run.
        unit: In the least that is worth starting for: a training step, or one conversation.
        name: What that unit is called.
    """

    total: list[Calls]
    unit: list[Calls]
    name: str


def estimate(config: Config, goals: GoalSplits, entry: str) -> Estimate:
    """Estimate a run from its checked config.

    Args:
        config: The checked config.
        goals: Of the task.
        entry: "train", "evaluate" or "synthesize".
    """
    calls = _Conversations(config, goals)
    return {"train": _training, "evaluate": _evaluation, "synthesize": _synthesis}[entry](config, goals, calls)


def _training(config: Config, goals: GoalSplits, calls: _Conversations) -> Estimate:
    trainer = config.trainer
    drawn = context_turns(config.task.max_turns, config.sampler.last_turns)
    step: list[Calls] = []
    if config.algorithm.data is None:
        contexts = _sum(call for turn in drawn for call in calls.group(turn))
        step = [call.times(trainer.goals_per_step / len(drawn)) for call in contexts]
    validations = math.ceil(trainer.max_steps / trainer.val_every) if trainer.val_every else 0
    tests = len(goals.test) * config.evaluation.num_conversations
    played = [*calls.whole(len(goals.val) * validations, test=False), *calls.whole(3 * tests)]
    total = [*(call.times(trainer.max_steps) for call in step), *played, *calls.compared(2 * tests)]
    return Estimate(_sum(total), step, "training step")


def _evaluation(config: Config, goals: GoalSplits, calls: _Conversations) -> Estimate:
    task, rows = config.task, named_policies(config.policies)
    prompts, replies = _policy_prompts(config, calls.turn), task.max_turns * task.max_new_tokens
    policies = [
        Calls("policy", row.model, task.max_turns, prompts, replies)
        for row in rows.values()
        if isinstance(row, HostedPolicy)
    ]
    tests = len(goals.test) * config.evaluation.num_conversations
    total = [*calls.whole(len(rows) * tests), *(policy.times(tests) for policy in policies)]
    total += calls.compared((len(rows) - 1) * tests)
    return Estimate(_sum(total), _sum([*calls.whole(1), *policies[:1]]), "conversation")


def _synthesis(config: Config, goals: GoalSplits, calls: _Conversations) -> Estimate:
    """One conversation grows through all its turns: each is opened once."""
    turns = range(1, config.task.max_turns + 1)
    grown = _sum([*calls.user(turns), *(call for turn in turns for call in calls.group(turn, opened=False))])
    count = len(goals.train[: config.synthesis.num_goals]) * config.synthesis.num_conversations
    return Estimate([call.times(count) for call in grown], grown, "conversation")


class _Conversations:
    """Calls of hosted users, judges and evaluators for the conversations of a run.

    Attributes:
        goal: Tokens of a goal, on average.
        turn: Tokens of a turn.
    """

    def __init__(self, config: Config, goals: GoalSplits) -> None:
        self.config = config
        every = [*goals.train, *goals.val, *goals.test]
        self.goal = round(statistics.fmean(guessed_tokens(g.prompt) + guessed_tokens(g.reference) for g in every))
        self.turn = _USER_MESSAGE + config.task.max_new_tokens

    def user(self, turns: Iterable[int], test: bool = False) -> list[Calls]:
        """The messages that open these turns; a prompt has the goal and the conversation so far."""
        prompts = [_INSTRUCTION + self.goal + (number - 1) * self.turn for number in turns]
        count, tokens = len(prompts), sum(prompts)
        return [
            Calls("user", one.endpoint.model, count, tokens, count * one.max_new_tokens).times(share)
            for share, one in _users(self.config.user, test)
            if one.endpoint.kind == "http"
        ]

    def judge(self) -> list[Calls]:
        """Of a finished conversation."""
        prompt = _INSTRUCTION + self.goal + self.config.task.max_turns * self.turn
        return [
            Calls(role, endpoint.model, count, count * prompt, count * reply)
            for role, endpoint, count, reply in _judgements(self.config)
            if endpoint.kind == "http"
        ]

    def group(self, turn: int, opened: bool = True) -> list[Calls]:
        """A context at this turn, its candidates and their futures; `opened` counts the messages up to it."""
        task, sampler = self.config.task, self.config.sampler
        left = min(sampler.window, task.max_turns - turn)
        futures = candidates_at(sampler, task.max_turns, turn) * (sampler.num_samples if sampler.window else 1)
        ahead = self.user(range(turn + 1, turn + left + 1))
        before = self.user(range(1, turn + 1)) if opened else []
        return [*before, *(call.times(futures) for call in (*ahead, *self.judge()))]

    def whole(self, count: float, test: bool = True) -> list[Calls]:
        """Conversations from the first turn to the last."""
        turns = range(1, self.config.task.max_turns + 1)
        return [call.times(count) for call in (*self.user(turns, test), *self.judge())]

    def compared(self, pairs: int) -> list[Calls]:
        """Pairs of conversations, in two orders, by two questions."""
        evaluator = self.config.evaluator
        if not isinstance(evaluator, PairwiseConfig) or evaluator.endpoint.kind != "http":
            return []
        count, prompt = 4 * pairs, self.goal + 2 * self.config.task.max_turns * self.turn
        return [Calls("evaluator", evaluator.endpoint.model, count, count * prompt, 8 * count)]


def told(config: Config, found: Estimate) -> str:
    """The whole run, a line for each role and model."""
    if not found.total:
        return "No hosted model takes part in this run: it makes no calls and costs nothing."
    lines = ["What this run calls, if all conversations are as long as they may be and nothing is in the cache:"]
    for call in found.total:
        price = f"{call.usd(config):.2f} $" if call.model in config.budget.prices else "no price in budget.prices"
        lines.append(
            f"  {call.role} ({call.model}): {call.calls:.0f} calls, {call.prompt_tokens:.0f} tokens of prompts, "
            f"{call.completion_tokens:.0f} tokens of replies, {price}"
        )
    lines.append(
        f"  all: {sum(c.calls for c in found.total):.0f} calls, {sum(c.tokens for c in found.total):.0f} tokens, "
        f"{sum(c.usd(config) for c in found.total):.2f} $"
    )
    return "\n".join(lines)


def check_budget(config: Config, found: Estimate) -> None:
    """Refuse a budget that does not reach for one step, or one conversation.

    Raises:
        BadInput: Names the cap, the estimate, and what would do.
    """
    usd, tokens = sum(call.usd(config) for call in found.unit), math.ceil(sum(call.tokens for call in found.unit))
    for name, cap, needed in (
        ("max_usd", config.budget.max_usd, f"{usd:.4f}"),
        ("max_tokens", config.budget.max_tokens, f"{tokens}"),
    ):
        if cap is not None and cap < float(needed):
            raise BadInput(
                f"budget.{name} ({cap}) must be at least what one {found.name} may cost, about {needed}: the run would "
                "stop in its first one. Raise it, or take fewer goals, candidates or turns; dry_run=true shows the "
                "whole estimate."
            )


def _users(user: UserConfig, test: bool) -> Iterator[tuple[float, LLMUserConfig]]:
    """Those that are language models, with their shares of the conversations."""
    if isinstance(user, LLMUserConfig):
        yield 1.0, user
    if isinstance(user, MixUserConfig):
        weights = (user.test_weights if test else {}) or user.weights
        for name, weight in weights.items():
            for share, one in _users(user.users[name], test):
                yield share * weight / sum(weights.values()), one


def _judgements(config: Config) -> Iterator[tuple[str, EndpointConfig, int, int]]:
    """(role, endpoint, calls for a conversation, tokens of a reply at most)."""
    if not isinstance(judge := config.judge, LLMJudgeConfig):
        return
    classes = [load_target(metric.target, name) for name, metric in config.task.metrics.items()]
    judged = sum(issubclass(metric, JudgedMetric) for metric in classes)
    yield "judge", judge.endpoint, judged, judge.max_new_tokens
    if judge.extract:
        copied = int(any(hasattr(metric, "extractor") for metric in classes))  # metrics share it
        yield "extractor", judge.extractor or judge.endpoint, copied, judge.max_extracted_tokens


def _policy_prompts(config: Config, turn: int) -> int:
    task = config.task
    return sum(guessed_tokens(task.system_prompt) + number * turn + _USER_MESSAGE for number in range(task.max_turns))


def _sum(calls: Iterable[Calls]) -> list[Calls]:
    """One entry for each role and model that is called at all."""
    found: dict[tuple[str, str | None], Calls] = {}
    for call in calls:
        one = found.setdefault((call.role, call.model), Calls(call.role, call.model))
        one.calls += call.calls
        one.prompt_tokens += call.prompt_tokens
        one.completion_tokens += call.completion_tokens
    return [call for call in found.values() if call.calls]
