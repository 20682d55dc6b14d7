"""Metrics of asking: does a policy ask where something is missing, and only there?"""

from __future__ import annotations

from itertools import pairwise
from statistics import fmean

from collab.conversation import Conversation, Goal
from collab.parsing.agenda_state import asks_back, read
from collab.parsing.asking import asks_first, only_offers
from collab.parsing.english import content_words, sentences
from collab.rewards.metrics import QuestionMetric
from collab.rewards.safety import refuses

_REPEATED = 2  # content words of the request in the first sentence, from which on that is no refusal


def decision(reply: str, request: str) -> str:
    """What a first reply does: "asks" the user instead of acting, "acts", or "neither": it refuses or only offers help.

    Acting is all else, and what begins like a refusal but says what the request says ("I'm sorry, I can't come to your
    housewarming."). The rules do not see whether it is of any use.
    """
    if asks_first(reply, request):
        return "asks"
    if only_offers(reply):  # or is empty
        return "neither"
    repeated = content_words(sentences(reply)[0]) & content_words(request)
    return "neither" if refuses(reply) and len(repeated) < _REPEATED else "acts"


class _Decision:
    """1 if the first reply does what its kind of request needs, else 0. Applies to goals with this value of `vague`."""

    vague: bool
    wanted: str

    def applies(self, goal: Goal) -> bool:
        return goal.metadata.get("vague") is self.vague

    async def __call__(self, conversation: Conversation) -> float | None:
        replies = conversation.assistant_texts
        return float(decision(replies[0], conversation.goal.prompt) == self.wanted) if replies else None


class AsksOnVague(_Decision):
    """1 if the first reply to a vague request asks instead of acting, else 0; for goals with `vague: true`."""

    vague, wanted = True, "asks"


class ActsOnClear(_Decision):
    """1 if the first reply to a clear request acts, else 0; for goals with `vague: false`."""

    vague, wanted = False, "acts"


class OverAsking(QuestionMetric):
    """Share of the assistant's messages that ask where nothing is to be asked, 0..1. It is meant to be watched.

    A message counts if it asks the user, and none of its questions asks for something new: for what the user wants or
    knows, and has neither told nor been asked. Of goals with `ambiguous: false`, which lack nothing, each message
    counts that asks the user back. Goals with `ambiguous: true` are not measured.
    """

    def applies(self, goal: Goal) -> bool:
        return goal.metadata.get("ambiguous") is not True

    async def __call__(self, conversation: Conversation) -> float | None:
        goal, replies = conversation.goal, conversation.assistant_texts
        if not replies:
            return None
        if "ambiguous" in goal.metadata:
            return fmean(asks_back(goal, reply) for reply in replies)
        states = [read(goal, replies[:count], self.items_per_answer) for count in range(len(replies) + 1)]
        return fmean(
            after.num_questions > before.num_questions and after.pertinent == before.pertinent
            for before, after in pairwise(states)
        )
