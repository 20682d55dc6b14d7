"""Metadata that the user does not tell is in no prompt: not of the policy, the user, a judge or an extractor."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from scripted import ScriptedModel, answering, says

from collab.chat.base import Sampling
from collab.config.schema import AgendaUserConfig, LLMUserConfig
from collab.conversation import Conversation, Goal
from collab.randomness import RngKey
from collab.rewards.judge import Helpfulness, Interactivity, Judge, JudgedAccuracy
from collab.rewards.official import ChatAccuracy
from collab.simulation.agenda import AgendaUser
from collab.simulation.conversation_loop import Players, play
from collab.simulation.llm import LLMUser

SECRET = "zq7"
AGENDAS: dict[str, dict[str, Any]] = {
    "text": {"title": "the walk", "form": "notice", "preferences": {"tone": "warm"}},
    **{
        makes: {
            "agenda": {"makes": makes, "opening": "I need help.", "items": [{"kind": "time", "text": "At noon."}]},
            "preferences": {"tone": "warm"},
        }
        for makes in ("answer", "program", "reply")
    },
}
UNSEEN = {
    name: f"{SECRET} {name}"
    for name in ("scoring_key", "tests", "entry_point", "tone", "audience", "length", "style", "format", "answer")
}
UNSEEN |= {"rubric": [f"{SECRET} rubric"], "own": {"deep": f"{SECRET} deep", f"{SECRET}": 1}}
LINE = (
    '{"current_answer": "none", "thought": "hm", "message": "Please mention the bridge, too.", '
    '"response": "Please mention the bridge, too."}'  # what a user with a prompt of its own answers in
)
USERS = {
    "llm": LLMUserConfig(),
    "prompt": LLMUserConfig(prompt="{task_desc} {single_turn_prompt} {chat_history} {terminal_signal}"),
}
REPLIES = ("When is it? Which style, format and tone? What is the key?", "We meet at noon.", "The answer is x.")


@pytest.mark.parametrize("makes", AGENDAS)
@pytest.mark.parametrize("who", ["agenda", *USERS])
def test_a_secret_in_the_metadata_reaches_no_prompt(makes: str, who: str) -> None:
    goal = Goal("walk", "A notice of our walk.", "We meet at noon by the mill.", {**UNSEEN, **AGENDAS[makes]})
    policy, speaker, rater = ScriptedModel(says(*REPLIES)), answering(LINE), answering("nothing to read")
    user = AgendaUser(AgendaUserConfig(), 3) if who == "agenda" else LLMUser(USERS[who], 3, speaker)
    players = Players(policy, user, Sampling(64), max_turns=3)
    done = asyncio.run(play(players, Conversation(goal), RngKey(1, goal=goal.id)))

    judge = Judge(rater, Sampling(64), 0, 1, Counter())

    async def score() -> None:
        for metric in (Interactivity(), Helpfulness(), JudgedAccuracy(), ChatAccuracy()):
            metric.judge = judge
            await metric(done)
        for artefact in ("document", "program"):
            for whole in (False, True):
                await judge.extract(done, artefact, whole=whole)

    asyncio.run(score())
    assert done.turns and policy.asked and len(rater.asked) >= 7 and bool(speaker.asked) == (who in USERS)
    prompts = [
        message.content for model in (policy, speaker, rater) for asked, _, _ in model.asked for message in asked
    ]
    assert not [prompt for prompt in prompts if SECRET in prompt]
    assert SECRET not in str([turn.user for turn in done.turns])
    if who == "llm":
        assert any("tone: warm" in prompt for prompt in prompts), "what the user may tell is in its prompt"
