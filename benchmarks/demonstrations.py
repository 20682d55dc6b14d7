"""Conversations that show the policy how to find out what a document should say, and then to write it.

    python benchmarks/demonstrations.py     # writes collab/datamodules/data/doc_edit/demonstrations.jsonl

`data/asked.jsonl` has for each training goal eight messages by which somebody who knows form and topic alone
would ask. The first two open a conversation. For each of them, of all orders with two of the others, the one that
brings most of the user's agenda to light is played. Then comes a text of what the user told: after the first opening it
is taken from `data/second_texts.jsonl`, which has a text from the goal's notes, and after the second from the
goal's reference. SFT learns from the file (`algorithm.data`). It has training goals only.
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
from benchmarks.goals import FOLDER, read_second
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


def best_order(goal: Goal, first: str, others: Sequence[str]) -> tuple[str, ...]:
    """`first` and the two others, in order, that bring most to light with the fewest surplus questions."""
    orders = ((first, *later) for later in itertools.permutations(others, 2))

    def value(order: Sequence[str]) -> float:
        state = read(goal, order)
        return len(state.given) - 0.5 * state.surplus

    return max(orders, key=value)


def script(asked: Sequence[str], text: str, heard: Heard) -> str:
    """Ask, then write what was told."""
    if heard.turn <= len(asked):
        return asked[heard.turn - 1]
    return " ".join(said for said in sentences(text) if heard.says_what_was_told(said))


async def demonstrate(
    players: Players, reward: ConversationReward, goal: Goal, messages: Sequence[str], opening: int
) -> tuple[Conversation, Score]:
    """The demonstration for one goal that begins with one of its openings, and its R*."""
    order = best_order(goal, messages[opening], messages[_FIRST:])
    text = goal.reference if opening else read_second()[goal.id]
    speaker = Scripted(lambda heard: script(order, text, heard))
    players = Players(speaker, players.user, players.sampling, players.max_turns)
    key = RngKey(1, split="demonstrations", goal=goal.id, sample=opening)
    played = await play(players, Conversation(goal, ""), key)
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
    with Progress(animate=False) as progress, build.endpoints(config, progress) as endpoints:
        simulation = build.simulation(config, endpoints, lambda: None)
        players, asked = simulation.players(None), read_asked()
        goals = [goal for goal in load_goals(FOLDER / "train.jsonl", "train") if goal.id in asked]
        openings = [(goal, opening) for opening in range(_FIRST) for goal in goals]
        found = [
            asyncio.run(demonstrate(players, simulation.reward, goal, asked[goal.id], opening))
            for goal, opening in openings
        ]
    rows = [
        json.dumps(row_of(f"{goal.id}/{opening + 1}", *each), ensure_ascii=False)
        for each, (goal, opening) in zip(found, openings, strict=True)
    ]
    WRITTEN.write_text("\n".join(rows) + "\n", encoding="utf-8")
    rewards = [score.reward for _, score in found if score.reward is not None]
    parts = {name: [s.parts[name] for _, s in found] for name in ("coverage", "interactivity", "pertinent")}
    means = ", ".join(f"{name} {fmean(v for v in values if v is not None):.3f}" for name, values in parts.items())
    print(f"{len(found)} conversations, R* {fmean(rewards):.2f}, {means}: {WRITTEN}")


if __name__ == "__main__":
    main()
