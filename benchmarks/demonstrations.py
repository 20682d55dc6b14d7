"""Conversations that show the policy how to find out what a document should say, and then to write it.

    python benchmarks/demonstrations.py     # writes collab/datamodules/data/doc_edit/demonstrations.jsonl

`data/demonstrated.jsonl` has the assistant's side of each conversation: three messages of two questions, then the text.
Language models wrote it. Those who asked knew form and topic, and what the user had said so far. The text says all that
the user told and nothing else, near the user's own words, so that a small model can learn to do it. Here the rule-based
user answers. SFT learns from the file (`algorithm.data`). It has training goals only.
"""

from __future__ import annotations

import asyncio
import dataclasses
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
from collab.randomness import RngKey
from collab.rewards.reward import ConversationReward
from collab.simulation.conversation_loop import Players, play

SIDES = Path(__file__).with_name("data") / "demonstrated.jsonl"
WRITTEN = FOLDER / "demonstrations.jsonl"


def read_sides() -> dict[str, list[str]]:
    """Id of a conversation (`goal id/number`) -> what the assistant says in it: questions, and the text at last."""
    rows = map(json.loads, SIDES.read_text(encoding="utf-8").splitlines())
    return {row["id"]: row["messages"] for row in rows}


async def demonstrate(
    players: Players, reward: ConversationReward, goal: Goal, messages: Sequence[str], number: int
) -> tuple[Conversation, Score]:
    """The conversation in which the assistant says `messages`, and its R*. `number` draws the user's randomness."""

    def script(heard: Heard) -> str:
        return messages[heard.turn - 1]

    key = RngKey(1, split="demonstrations", goal=goal.id, sample=number - 1)
    played = await play(dataclasses.replace(players, policy=Scripted(script)), Conversation(goal, ""), key)
    return played, await reward(played)


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
    goals = {goal.id: goal for goal in load_goals(FOLDER / "train.jsonl", "train")}
    rows, scores = list[str](), list[Score]()
    with Progress(animate=False) as progress, build.endpoints(config, progress) as endpoints:
        simulation = build.simulation(config, endpoints, lambda: None)
        players = simulation.players(None)
        for conv_id, messages in read_sides().items():
            goal_id, number = conv_id.split("/")
            found = asyncio.run(demonstrate(players, simulation.reward, goals[goal_id], messages, int(number)))
            rows.append(json.dumps(row_of(conv_id, *found), ensure_ascii=False))
            scores.append(found[1])
    WRITTEN.write_text("\n".join(rows) + "\n", encoding="utf-8")
    rewards = [score.reward for score in scores if score.reward is not None]
    parts = {name: [s.parts[name] for s in scores] for name in ("coverage", "interactivity", "pertinent")}
    means = ", ".join(f"{name} {fmean(v for v in values if v is not None):.3f}" for name, values in parts.items())
    print(f"{len(rows)} conversations, R* {fmean(rewards):.2f}, {means}: {WRITTEN}")


if __name__ == "__main__":
    main()
