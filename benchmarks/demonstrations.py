"""Conversations that show the policy how to find out what a document should say, and then to write it.

    python benchmarks/demonstrations.py     # writes collab/datamodules/data/doc_edit/demonstrations.jsonl

`data/asked.jsonl` has for each training goal eight messages by which somebody who knows form and topic alone
would ask; `data/second_texts.jsonl` has a text from the goal's notes. Of all orders of three messages, the one that
brings most of the user's agenda to light is played, and the text says what the user told in it. SFT learns from the
file (`algorithm.data`). It has training goals only.
"""

from __future__ import annotations

import asyncio
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
from collab.parsing.agenda_state import read
from collab.parsing.english import sentences
from collab.randomness import RngKey
from collab.rewards.reward import ConversationReward
from collab.simulation.conversation_loop import Players, play

ASKED = Path(__file__).with_name("data") / "asked.jsonl"
WRITTEN = FOLDER / "demonstrations.jsonl"
_FIRST = 2  # messages of a goal that open a conversation; the others go on with it


def read_asked() -> dict[str, list[str]]:
    """Goal id -> messages by which one would ask what it is about."""
    rows = map(json.loads, ASKED.read_text(encoding="utf-8").splitlines())
    return {row["id"]: row["messages"] for row in rows}


def best_order(goal: Goal, messages: Sequence[str]) -> tuple[str, ...]:
    """The three messages, in order, that bring most to light with the fewest surplus questions."""
    orders = ((first, *later) for first in messages[:_FIRST] for later in itertools.permutations(messages[_FIRST:], 2))

    def value(order: Sequence[str]) -> float:
        state = read(goal, order)
        return len(state.given) - 0.5 * state.surplus

    return max(orders, key=value)


def script(asked: Sequence[str], heard: Heard) -> str:
    """Ask, then write what was told."""
    if heard.turn <= len(asked):
        return asked[heard.turn - 1]
    return " ".join(said for said in sentences(heard.written) if heard.says_what_was_told(said))


async def demonstrate(
    players: Players, reward: ConversationReward, goal: Goal, messages: Sequence[str]
) -> tuple[Conversation, Score]:
    """The demonstration for one goal, and its R*."""
    order = best_order(goal, messages)
    speaker = Scripted(lambda heard: script(order, heard))
    players = Players(speaker, players.user, players.sampling, players.max_turns)
    played = await play(players, Conversation(goal, ""), RngKey(1, split="demonstrations", goal=goal.id))
    return played, await reward(played)


def row_of(played: Conversation, score: Score) -> dict[str, object]:
    """In the layout of `collab.datamodules.conversations`: each reply answers the context before it."""
    goal = played.goal
    turns = []
    for number, turn in enumerate(played.turns):
        context = Conversation(goal, "", played.turns[:number], pending=turn.user)
        turns.append((context, [Candidate(turn.reply, scores=(score,), mr=score.reward)], 0))
    return as_row(goal.id, goal, turns)


def main() -> None:
    from collab.app import build
    from collab.app.compose import load_config
    from collab.callbacks.progress import Progress

    config = load_config("evaluate", ["experiment=doc_edit", *sys.argv[1:]])
    with Progress(animate=False) as progress, build.endpoints(config, progress) as endpoints:
        simulation = build.simulation(config, endpoints, lambda: None)
        players, asked = simulation.players(None), read_asked()
        goals = [goal for goal in load_goals(FOLDER / "train.jsonl", "train") if goal.id in asked]
        found = [asyncio.run(demonstrate(players, simulation.reward, goal, asked[goal.id])) for goal in goals]
    rows = [json.dumps(row_of(*each), ensure_ascii=False) for each in found]
    WRITTEN.write_text("\n".join(rows) + "\n", encoding="utf-8")
    rewards = [score.reward for _, score in found if score.reward is not None]
    parts = {name: [s.parts[name] for _, s in found] for name in ("coverage", "interactivity", "pertinent")}
    means = ", ".join(f"{name} {fmean(v for v in values if v is not None):.3f}" for name, values in parts.items())
    print(f"{len(found)} conversations, R* {fmean(rewards):.2f}, {means}: {WRITTEN}")


if __name__ == "__main__":
    main()
