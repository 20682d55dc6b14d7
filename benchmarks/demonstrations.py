"""Conversations that show the policy how to find out what a document should say, and then to write it.

    python benchmarks/demonstrations.py     # writes collab/datamodules/data/doc_edit/demonstrations.jsonl

`data/asked.jsonl` has for each training goal eight messages by which somebody who knows form and topic alone
would ask. The first two open a conversation. It goes on with questions of the others, two in a message, those that
bring most of the user's agenda to light (`three_messages`). Then comes the text, from `data/told_texts.jsonl`: written
for this conversation, it says all that the user told and nothing else, near the user's own words, so that a small model
can learn to do it. SFT learns from the file (`algorithm.data`). It has training goals only.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # of `python benchmarks/demonstrations.py`

from benchmarks.cheats import Heard, Scripted
from benchmarks.goals import FOLDER
from collab.conversation import Candidate, Conversation, Goal, Score
from collab.datamodules.conversations import as_row
from collab.datamodules.goals import load_goals
from collab.parsing.agenda_items import agenda_of
from collab.parsing.agenda_state import read
from collab.parsing.english import questions
from collab.randomness import RngKey
from collab.rewards.reward import ConversationReward
from collab.simulation.conversation_loop import Players, play

ASKED = Path(__file__).with_name("data") / "asked.jsonl"
TOLD = ASKED.with_name("told_texts.jsonl")
WRITTEN = FOLDER / "demonstrations.jsonl"
_FIRST = 2  # messages of a goal that open a conversation; the others go on with it
_QUESTIONS = 2  # of a message


def read_asked() -> dict[str, list[str]]:
    """Goal id -> messages by which one would ask what it is about."""
    rows = map(json.loads, ASKED.read_text(encoding="utf-8").splitlines())
    return {row["id"]: row["messages"] for row in rows}


def read_told() -> dict[str, str]:
    """Id of a conversation -> the text that ends it."""
    rows = map(json.loads, TOLD.read_text(encoding="utf-8").splitlines())
    return {row["id"]: row["text"] for row in rows}


def three_messages(goal: Goal, opening: str, others: Sequence[str]) -> list[str]:
    """`opening` and two more messages, of two questions each, in the words of the others.

    Of all pairs, a message has the one that brings most to light with the fewest questions in vain. The second message
    asks for content where it can, the others for preferences: so the order is the same in all conversations, and
    nothing is asked twice.
    """
    items, said = agenda_of(goal), list[str]()
    left = [question for message in others for question in questions(message)]
    for begin, preferences in ((opening, 0.1), ("", -0.1), ("", 0.1)):

        def value(more: Sequence[str], begin: str = begin, preferences: float = preferences) -> float:
            state = read(goal, [*said, _joined(begin, more)])
            wished = sum(items[i].preference for i in state.answered)
            return len(state.given) + preferences * wished - 0.5 * (state.num_questions - state.pertinent)

        missing = max(0, _QUESTIONS - len(questions(begin)))
        best = max(itertools.permutations(left, missing), key=value)
        said.append(_joined(begin, best))
        left = [question for question in left if question not in best]
    return said


def _joined(begin: str, more: Sequence[str]) -> str:
    return " ".join((begin, *more)).strip()


async def demonstrate(
    players: Players, reward: ConversationReward, goal: Goal, messages: Sequence[str], opening: int, text: str
) -> tuple[Conversation, Score]:
    """The demonstration for one goal that begins with one of its openings and ends with `text`, and its R*."""
    asked = three_messages(goal, messages[opening], messages[_FIRST:])

    def script(heard: Heard) -> str:
        return asked[heard.turn - 1] if heard.turn <= len(asked) else text

    key = RngKey(1, split="demonstrations", goal=goal.id, sample=opening)
    played = await play(dataclasses.replace(players, policy=Scripted(script)), Conversation(goal, ""), key)
    return played, await reward(played)


def conv_id_of(goal: Goal, opening: int) -> str:
    return f"{goal.id}/{opening + 1}"


def row_of(conv_id: str, played: Conversation, score: Score) -> dict[str, object]:
    """In the layout of `collab.datamodules.conversations`: each reply answers the context before it."""
    goal = played.goal
    turns = []
    for number, turn in enumerate(played.turns):
        context = Conversation(goal, "", played.turns[:number], pending=turn.user)
        turns.append((context, [Candidate(turn.reply, scores=(score,), mr=score.reward)], 0))
    return as_row(conv_id, goal, turns)


def main() -> None:
    from collab.app import build
    from collab.app.compose import load_config
    from collab.callbacks.progress import Progress

    config = load_config("evaluate", ["experiment=doc_edit", *sys.argv[1:]])
    with Progress(animate=False) as progress, build.endpoints(config, progress) as endpoints:
        simulation = build.simulation(config, endpoints, lambda: None)
        players, asked, told = simulation.players(None), read_asked(), read_told()
        goals = [goal for goal in load_goals(FOLDER / "train.jsonl", "train") if goal.id in asked]
        openings = [(goal, opening) for opening in range(_FIRST) for goal in goals]
        found = [
            asyncio.run(
                demonstrate(players, simulation.reward, goal, asked[goal.id], opening, told[conv_id_of(goal, opening)])
            )
            for goal, opening in openings
        ]
    rows = [
        json.dumps(row_of(conv_id_of(goal, opening), *each), ensure_ascii=False)
        for each, (goal, opening) in zip(found, openings, strict=True)
    ]
    WRITTEN.write_text("\n".join(rows) + "\n", encoding="utf-8")
    rewards = [score.reward for _, score in found if score.reward is not None]
    parts = {name: [s.parts[name] for _, s in found] for name in ("coverage", "interactivity", "pertinent")}
    means = ", ".join(f"{name} {fmean(v for v in values if v is not None):.3f}" for name, values in parts.items())
    print(f"{len(found)} conversations, R* {fmean(rewards):.2f}, {means}: {WRITTEN}")


if __name__ == "__main__":
    main()
