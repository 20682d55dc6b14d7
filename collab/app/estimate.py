"""Estimates the hosted calls, tokens and dollars of a run before it starts, for `dry_run=true` and the budget check.

There are two. The first is about the most that a run costs if no call fails and no guard objects: all conversations
have their full number of turns, every reply has its maximal length, and no reply comes from the cache. Budgets are
checked against it. The second has replies of the lengths that the paper measured (CollabLLM, Table 7). Token counts
are guessed from characters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING

from collab.app.judge_report import INJECTED, judged_metrics, judges_of
from collab.app.simulator_report import users_of
from collab.chat.budget import price
from collab.config.endpoints import has_teacher
from collab.config.policies import HostedPolicy, named_policies
from collab.config.schema import (
    Config,
    EndpointConfig,
    LLMJudgeConfig,
    MixUserConfig,
    PairwiseConfig,
    SpokenUserConfig,
    UserConfig,
)
from collab.conversation import guessed_tokens
from collab.rewards.judge import JudgedMetric
from collab.rewards.probes import injections
from collab.simulation.schedule import candidates_at, context_turns
from collab.util.errors import BadInput
from collab.util.targets import load_target

if TYPE_CHECKING:
    from collab.datamodules.goals import GoalSplits

_INSTRUCTION = 600  # approximate tokens of the instruction of a user or judge
USER_MESSAGE = 64  # approximate tokens of a user message; the limit of a reply also covers the user's thoughts
_COPIES = "extractor"  # the role whose reply repeats a part of the conversation
_EXPECTED = "expected, with replies as long as in the paper's Table 7, or as their limit"
_VERDICT = 8  # tokens of an evaluator's reply
# Tokens of one reply of the policy and of one of the user: means of Table 7 over w = 1, 2, 3.
REPLY = round((420 + 910 + 1220) / (1 + 2 + 3))
USER_REPLY = round((260 + 690 + 1060) / (1 + 2 + 3))


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
    """Calls, an entry for each role and model.

    Attributes:
        total: In the whole run, at most.
        unit: In the smallest useful part of a run: a training step, or one conversation.
        name: "training step" or "conversation".
        expected: In the whole run, with replies as long as the paper's.
    """

    total: list[Calls]
    unit: list[Calls]
    name: str
    expected: list[Calls] = field(default_factory=list)


def estimate(config: Config, goals: GoalSplits, entry: str) -> Estimate:
    """Estimate a run from its checked config.

    Args:
        config: The checked config.
        goals: Of the task.
        entry: The command: "train", "evaluate", "synthesize", "simulator-report" or "judge-report".
    """
    name = entry.replace("-", "_")
    most, expected = (getattr(_Run(config, goals, limits), name)() for limits in (True, False))
    return replace(most, expected=expected.total)


def together(parts: Sequence[Estimate]) -> Estimate:
    """The estimate of a run that has several parts; its unit is the dearest one of theirs."""
    dearest = max(parts, key=lambda part: sum(call.tokens for call in part.unit))
    total, expected = (_sum(call for part in parts for call in getattr(part, name)) for name in ("total", "expected"))
    return replace(dearest, total=total, expected=expected)


class _Run:
    """Calls of hosted policies, users, judges and evaluators in a run, with replies at their limits or as expected."""

    def __init__(self, config: Config, goals: GoalSplits, limits: bool) -> None:
        self.config, self.goals, self.limits = config, goals, limits
        every = [*goals.train, *goals.val, *goals.test]
        self.goal = round(fmean(guessed_tokens(goal.prompt) + guessed_tokens(goal.reference) for goal in every))
        self.artefact = round(fmean(guessed_tokens(goal.reference) for goal in every))
        self.reply = self.length(config.task.max_new_tokens, REPLY)
        self.turn = USER_MESSAGE + self.reply  # tokens of a turn
        self.turns = range(1, config.task.max_turns + 1)
        self.tests = len(goals.test) * config.evaluation.num_conversations  # conversations of one row
        self.meetings = 1 + len(config.evaluation.users)  # rows of one policy

    def length(self, limit: int, expected: int) -> int:
        return limit if self.limits else min(limit, expected)

    def copied(self, limit: int) -> int:
        return self.length(limit, self.artefact)

    # --- commands ------------------------------------------------------------------------------------------------

    def train(self) -> Estimate:
        trainer = self.config.trainer
        step: list[Calls] = []
        if self.config.algorithm.plays_user:
            return Estimate([], step, "training step")  # nothing is played
        if self.config.algorithm.data is None:
            drawn = context_turns(self.config.task.max_turns, self.config.sampler.last_turns)
            contexts = _sum(call for turn in drawn for call in self.group(turn))
            step = [call.times(trainer.goals_per_step / len(drawn)) for call in contexts]
        validations = math.ceil(trainer.max_steps / trainer.val_every) if trainer.val_every else 0
        played = [*self.whole(len(self.goals.val) * validations, test=False), *self.tested(3)]
        pairs = 2 * self.tests * self.meetings
        total = [*(call.times(trainer.max_steps) for call in step), *played, *self.compared(pairs)]
        return Estimate(_sum(total), step, "training step")

    def evaluate(self) -> Estimate:
        rows = named_policies(self.config.policies)
        policies = [self.policy(row.model, self.turns) for row in rows.values() if isinstance(row, HostedPolicy)]
        total = [*self.tested(len(rows)), *(policy.times(self.tests * self.meetings) for policy in policies)]
        total += self.compared((len(rows) - 1) * self.tests * self.meetings)
        return Estimate(_sum(total), _sum([*self.whole(1), *policies[:1]]), "conversation")

    def synthesize(self) -> Estimate:
        """One conversation has candidates at each of its turns, and each turn is opened once."""
        candidates = (call for turn in self.turns for call in self.group(turn, opened=False))
        conversation = _sum([*self.user(self.turns), *candidates])
        synthesis = self.config.synthesis
        count = len(self.goals.train[: synthesis.num_goals]) * synthesis.num_conversations
        return Estimate([call.times(count) for call in conversation], conversation, "conversation")

    def simulator_report(self) -> Estimate:
        """Each user plays each conversation; the assistant costs nothing."""
        one = _sum(call for user in users_of(self.config).values() for call in self.user(self.turns, True, user))
        return Estimate([call.times(self.config.report.num_conversations) for call in one], one, "conversation")

    def judge_report(self) -> Estimate:
        """Each judge rates every conversation and its copies, and compares it with a copy."""
        config, count = self.config, self.config.report.num_conversations
        copies = 2 * count + 2 * len(injections()) * min(INJECTED, count)
        prompt = _INSTRUCTION + self.goal + len(self.turns) * self.turn
        one: list[Calls] = [] if config.report.chats else self.user(self.turns)
        total = [call.times(count) for call in one]
        for judge in judges_of(config).values():
            if not isinstance(judge, LLMJudgeConfig) or judge.endpoint.kind != "http":
                continue
            rated, model = len(judged_metrics(config)), judge.endpoint.model
            call = Calls("judge", model, rated, rated * prompt, rated * judge.max_new_tokens)
            one.append(call)
            total += [call.times(copies), Calls("evaluator", model, 4, 8 * prompt, 4 * _VERDICT).times(count)]
        return Estimate(_sum([*total, *self.compared(count)]), _sum(one), "conversation")

    # --- parts ---------------------------------------------------------------------------------------------------

    def user(self, turns: Iterable[int], test: bool = False, played: UserConfig | None = None) -> list[Calls]:
        """The messages that open these turns. A prompt has the goal and the conversation so far.

        `played` is the user, None for the config's.
        """
        prompts = [_INSTRUCTION + self.goal + (number - 1) * self.turn for number in turns]
        count, tokens = len(prompts), sum(prompts)
        return [
            Calls(
                "user", user.endpoint.model, count, tokens, count * self.length(user.max_new_tokens, USER_REPLY)
            ).times(share)
            for share, user in llm_users(played or self.config.user, test)
            if user.endpoint.kind == "http"
        ]

    def policy(self, model: str | None, turns: Sequence[int]) -> Calls:
        """The replies of a hosted policy in these turns. A prompt has the instruction and the conversation so far."""
        instruction = guessed_tokens(self.config.task.system_prompt) + USER_MESSAGE
        prompts = sum(instruction + (number - 1) * self.turn for number in turns)
        return Calls("policy", model, len(turns), prompts, len(turns) * self.reply)

    def teacher(self, turns: Sequence[int]) -> list[Calls]:
        return [self.policy(self.config.teacher.model, turns)] if has_teacher(self.config) else []

    def judge(self, turns: int) -> list[Calls]:
        """The judgements of one conversation of so many turns."""
        prompt = _INSTRUCTION + self.goal + turns * self.turn
        return [
            Calls(
                role, endpoint.model, count, count * prompt, count * (self.copied(reply) if role == _COPIES else reply)
            )
            for role, endpoint, count, reply in judgements(self.config)
            if endpoint.kind == "http"
        ]

    def group(self, turn: int, opened: bool = True) -> list[Calls]:
        """The candidates of a context, their futures and, with `opened`, the messages up to the context."""
        task, sampler = self.config.task, self.config.sampler
        size = candidates_at(sampler, task.max_turns, turn)
        futures = size * (sampler.num_samples if sampler.window else 1)
        last = min(turn + sampler.window, task.max_turns)
        window = range(turn + 1, last + 1)
        before = self.user(range(1, turn + 1)) if opened else []
        replies = (call.times(size) for call in self.teacher([turn]))
        future = [*self.user(window), *self.teacher(window), *self.judge(last)]
        return [*before, *replies, *(call.times(futures) for call in future)]

    def whole(self, count: float, test: bool = True) -> list[Calls]:
        """Conversations from the first turn to the last."""
        return [call.times(count) for call in (*self.user(self.turns, test), *self.judge(len(self.turns)))]

    def tested(self, rows: int) -> list[Calls]:
        """The test conversations of so many policies with every user."""
        users = [self.config.user, *self.config.evaluation.users.values()]
        each = [*self.judge(len(self.turns)) * len(users)]
        each += [call for user in users for call in self.user(self.turns, True, user)]
        return [call.times(rows * self.tests) for call in each]

    def compared(self, pairs: int) -> list[Calls]:
        """Pairs of conversations, in both orders, with two questions."""
        evaluator = self.config.evaluator
        if not isinstance(evaluator, PairwiseConfig) or evaluator.endpoint.kind != "http":
            return []
        count, prompt = 4 * pairs, self.goal + 2 * self.config.task.max_turns * self.turn
        return [Calls("evaluator", evaluator.endpoint.model, count, count * prompt, _VERDICT * count)]


def describe(config: Config, expected: Estimate) -> str:
    """The whole run, a line for each role and model."""
    total = expected.total
    if not total:
        return "No hosted model takes part in this run: it makes no calls and costs nothing."
    lines = [
        "What this run calls at most, if all conversations are as long as they may be and nothing is in the cache:"
    ]
    for call in total:
        cost = _dollars(call.usd(config)) if call.model in config.budget.prices else "no price in budget.prices"
        lines.append(
            f"  {call.role} ({call.model}): {call.calls:.0f} calls, {call.prompt_tokens:.0f} tokens of prompts, "
            f"{call.completion_tokens:.0f} tokens of replies, {cost}"
        )
    for name, made in (("all", total), (_EXPECTED, expected.expected)):
        calls, tokens, usd = (sum(c.calls for c in made), sum(c.tokens for c in made), sum(c.usd(config) for c in made))
        lines.append(f"  {name}: {calls:.0f} calls, {tokens:.0f} tokens, {_dollars(usd)}")
    return "\n".join(lines)


def _dollars(usd: float) -> str:
    """0.00 is what costs nothing."""
    return "less than 0.01 $" if 0 < usd < 0.005 else f"{usd:.2f} $"


def check_budget(config: Config, expected: Estimate) -> None:
    """Refuse a budget that is too small for one step, or one conversation.

    Raises:
        BadInput: Names the limit, the estimate, and the way out.
    """
    usd = sum(call.usd(config) for call in expected.unit)
    tokens = math.ceil(sum(call.tokens for call in expected.unit))
    for name, limit, needed in (
        ("max_usd", config.budget.max_usd, f"{usd:.4f}"),
        ("max_tokens", config.budget.max_tokens, f"{tokens}"),
    ):
        if limit is not None and limit < float(needed):
            raise BadInput(
                f"budget.{name} ({limit}) must be at least what one {expected.name} may cost, about {needed}: the run "
                "would stop in its first one. Raise it, or reduce goals, candidates or turns; dry_run=true shows the "
                "whole estimate."
            )


def llm_users(user: UserConfig, test: bool) -> Iterator[tuple[float, SpokenUserConfig]]:
    """(share of the conversations, user) for users that are language models."""
    if isinstance(user, SpokenUserConfig):
        yield 1.0, user
    if isinstance(user, MixUserConfig):
        weights = (user.test_weights if test else {}) or user.weights
        for name, weight in weights.items():
            for share, one in llm_users(user.users[name], test):
                yield share * weight / sum(weights.values()), one


def judgements(config: Config) -> Iterator[tuple[str, EndpointConfig, int, int]]:
    """(role, endpoint, calls per conversation, maximal tokens of a reply)."""
    if not isinstance(judge := config.judge, LLMJudgeConfig):
        return
    classes = [load_target(metric.target, name) for name, metric in config.task.metrics.items()]
    judged = sum(issubclass(metric, JudgedMetric) for metric in classes)
    yield "judge", judge.endpoint, judged, judge.max_new_tokens
    if judge.extract or any(getattr(metric, "whole_chat", False) for metric in classes):
        extracted = int(any(hasattr(metric, "extractor") for metric in classes))  # all metrics share one extraction
        yield _COPIES, judge.extractor or judge.endpoint, extracted, judge.max_extracted_tokens


def _sum(calls: Iterable[Calls]) -> list[Calls]:
    """One entry for each role and model with at least one call."""
    sums: dict[tuple[str, str | None], Calls] = {}
    for call in calls:
        entry = sums.setdefault((call.role, call.model), Calls(call.role, call.model))
        entry.calls += call.calls
        entry.prompt_tokens += call.prompt_tokens
        entry.completion_tokens += call.completion_tokens
    return [entry for entry in sums.values() if entry.calls]
