"""Leaves out goals and stored contexts that are too long for a model, before a run begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from collab.config.endpoints import has_teacher, users
from collab.config.policies import named_policies, policy_model
from collab.config.schema import AgendaUserConfig, Config, LLMUserConfig, ModelConfig, UserLMConfig, VerifiersUserConfig
from collab.conversation import Conversation, Goal, Message, Reply, guessed_tokens
from collab.datamodules.goals import SPLITS, GoalSplits
from collab.lm import loading
from collab.lm.chat_format import ChatFormat
from collab.parsing.agenda_items import makes, openings
from collab.parsing.intents import intent_of
from collab.randomness import RngKey
from collab.simulation.llm import LLMUser
from collab.simulation.userlm import messages
from collab.util.errors import BadInput

_SHOWN = 5  # names in a message
_FRAME = 256  # tokens that a template may write around the messages of a prompt


class Room:
    """Whether a prompt leaves room for a reply in a model's positions.

    Args:
        model: Whose tokenizer and positions count.
        max_new_tokens: Of a reply.
    """

    def __init__(self, model: ModelConfig, max_new_tokens: int) -> None:
        self.max_new_tokens, self.positions = max_new_tokens, loading.num_positions(model)
        self._model = model

    def holds(self, messages: Sequence[Message]) -> bool:
        if self.positions is None:
            return True
        # A token has a byte or more, so short texts need not be tokenised.
        size = sum(len(message.content.encode()) for message in messages)
        if size + _FRAME + self.max_new_tokens <= self.positions:
            return True
        return len(self._format.encode(messages)[0]) + self.max_new_tokens <= self.positions

    def says(self, text: str) -> bool:
        """Whether a reply can hold a text."""
        return len(text.encode()) <= self.max_new_tokens or len(self._format.encode_text(text)) <= self.max_new_tokens

    @cached_property
    def _format(self) -> ChatFormat:
        return ChatFormat(loading.load_tokenizer(self._model))


def goals_that_fit(config: Config, goals: GoalSplits, entry: str) -> tuple[GoalSplits, list[str]]:
    """The goals without those about which no conversation can begin, and without programs too long for a reply.

    Every first message that a user may write about such a goal is too long for a local policy, or the goal makes the
    prompt too long for a local model that plays the user. A program that is longer than `task.max_new_tokens` could
    only be cut off, and half a program passes no test.

    Args:
        config: The checked config.
        goals: Of the task.
        entry: "train", "evaluate" or "synthesize". Only an evaluation plays `config.policies`.

    Returns:
        The goals, and a line for each reason to leave some out of a split.

    Raises:
        BadInput: No goal of a split is left.
    """
    longest = config.task.max_new_tokens
    reasons = {
        "their first prompt and a reply are longer than the positions of the model that reads them.": (
            _beginnings(config, entry),
            "Shorten the goals, lower task.max_new_tokens, or take a model with more positions.",
        ),
        f"their programs are longer than task.max_new_tokens ({longest}), so that no reply can hold them.": (
            _programs_fit(config),
            "Raise task.max_new_tokens.",
        ),
    }
    splits: dict[str, list[Goal]] = {}
    notes = list(goals.notes)
    for split in SPLITS:
        kept: list[Goal] = getattr(goals, split)
        for reason, (fits, way_out) in reasons.items():
            given, kept, left_out = kept, [], list[str]()
            for goal in given:
                if fits(goal):
                    kept.append(goal)
                else:
                    left_out.append(goal.id)
            if not left_out:
                continue
            names = ", ".join(left_out[:_SHOWN]) + (", ..." if len(left_out) > _SHOWN else "")
            notes.append(f"{len(left_out)} of {len(given)} {split} goals are left out ({names}): {reason}")
            if not kept:
                raise BadInput(f"{notes[-1]} {way_out}")
        splits[split] = kept
    return GoalSplits(splits["train"], splits["val"], splits["test"]), notes


def contexts_that_fit(config: Config, contexts: dict[Any, Conversation]) -> dict[Any, Conversation]:
    """The stored contexts to which the policy can reply. A warning says how many are left out."""
    room = Room(config.model, config.task.max_new_tokens)
    kept = {place: context for place, context in contexts.items() if room.holds(context.messages())}
    if left_out := len(contexts) - len(kept):
        rank_zero_warn(
            f"sampler.contexts: {left_out} of the {len(contexts)} contexts are left out: with a reply they are longer "
            f"than the {room.positions} positions of the model. The policy plays its own in their place."
        )
    return kept


def _programs_fit(config: Config) -> Callable[[Goal], bool]:
    """Goal -> whether it is no program, or a reply can hold it. The tokens of a teacher are guessed."""
    longest = config.task.max_new_tokens
    if has_teacher(config):
        return lambda goal: makes(goal) != "program" or guessed_tokens(goal.reference) <= longest
    room = Room(config.model, longest)
    return lambda goal: makes(goal) != "program" or room.says(goal.reference)


def _beginnings(config: Config, entry: str) -> Callable[[Goal], bool]:
    """Goal -> whether one of the users can begin a conversation about it, with every local policy."""
    task = config.task
    rows = named_policies(config.policies).values() if entry == "evaluate" else [] if has_teacher(config) else [None]
    rooms = [
        Room(policy_model(config, row), task.max_new_tokens) for row in rows if row is None or isinstance(row, Path)
    ]
    instruction = [Message("system", task.system_prompt)] if task.system_prompt else []

    def heard(goal: Goal) -> bool:
        prompts = [[*instruction, Message("user", text)] for text in openings(goal)]
        return all(any(room.holds(prompt) for prompt in prompts) for room in rooms)

    def speaker(user: Any) -> Callable[[Goal], bool] | None:
        if isinstance(user, AgendaUserConfig):
            return heard
        if isinstance(user, VerifiersUserConfig):
            return lambda goal: all(room.holds([*instruction, Message("user", goal.prompt)]) for room in rooms)
        if isinstance(user, LLMUserConfig | UserLMConfig) and user.endpoint.kind == "local":
            room = Room(loading.local_model(config.model, user.endpoint), user.max_new_tokens)
            if isinstance(user, UserLMConfig):
                return lambda goal: room.holds(messages(intent_of(goal), Conversation(goal)))
            nobody: Any = None
            player = LLMUser(user, task.max_turns, nobody)

            def plays(goal: Goal) -> bool:
                """Whether it can write two messages: in a transcript only the second prompt has what it knows."""
                key, first = RngKey(config.seed, goal=goal.id), Conversation(goal)
                talks = (first, first.with_user("").with_reply(Reply("")))
                return all(room.holds(player.messages(talk, key, "")) for talk in talks)

            return plays
        return None

    mine = (user for key, user in users(config).items() if key.startswith("user") and not hasattr(user, "users"))
    known = [speaker(user) for user in mine]
    return lambda goal: any(one is None or one(goal) for one in known)
