"""Conversations that show the policy how to find out what a document should say, and then to write it.

    python benchmarks/demonstrations.py     # writes collab/datamodules/data/doc_edit/demonstrations.jsonl

`data/demonstrated.jsonl` has the assistant's side of each conversation: three messages of two questions, then the text.
Language models wrote it. Those who asked knew form and topic, and what the user had said so far. The text says all that
the user told and nothing else, near the user's own words, so that a small model can learn to do it. Here the rule-based
user answers. SFT learns from the file (`algorithm.data`). It has training goals only.

All these questions are good ones, and a policy's are not. From such conversations alone it would never learn that what
the user says to other questions ("We have been there.") does not belong in the text. So each is played again with
questions in vain, and the text is cut to what the user told. Of those only the text is learned.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # of `python benchmarks/demonstrations.py`

from benchmarks.cheats import Heard, Scripted
from benchmarks.goals import FOLDER
from collab.conversation import Candidate, Conversation, Goal, Score
from collab.datamodules.conversations import as_row
from collab.datamodules.goals import load_goals
from collab.parsing.agenda_items import topic_of
from collab.parsing.agenda_state import covers
from collab.parsing.english import questions, sentences
from collab.randomness import RngKey
from collab.rewards.reward import ConversationReward
from collab.simulation.conversation_loop import Players, play

# With the topic; some goals have an answer, most have not.
IN_VAIN = (
    "How much does {topic} cost?",
    "What equipment is needed for {topic}?",
    "How many people are there?",
    "Where will {topic} take place?",
    "How long does it take?",
    "What is {topic} made of?",
    "Who else is involved?",
    "What is the history of {topic}?",
    "Why is that important to you?",
    "What should readers bring along?",
    "What is the best thing about {topic}?",
    "What happens if it rains?",
    "Which documents are needed?",
    "How many words do readers get?",
    "What do people usually say about {topic}?",
)
_GO_ON = frozenset("It Its They Their She He There This These Then But And Also".split())  # a text cannot begin so
_FEWEST_WORDS = 12  # of a text that was cut
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


def in_vain(goal: Goal, messages: Sequence[str], draws: np.random.Generator) -> list[str]:
    """`messages`, with questions that bring little or nothing in place of the second, of the third or of both."""
    asked = list(messages)
    for number in ((1,), (2,), (1, 2))[draws.integers(3)]:
        first, second = (IN_VAIN[i].format(topic=topic_of(goal)) for i in draws.permutation(len(IN_VAIN))[:2])
        begin = (first, questions(messages[0])[0], questions(messages[number])[0])[draws.integers(3)]
        asked[number] = f"{begin} {second}"
    return asked


def cut(goal: Goal, text: str, told: set[int]) -> str | None:
    """What `text` says of the notes `told`, in its own sentences; None if they cannot be told apart."""
    kept = []
    for place, sentence in enumerate(parts := sentences(text)):
        said = _said(goal, sentence)
        if said <= told:
            if not said and 0 < place < len(parts) - 1:  # the other half of a note?
                return None
            kept.append((place, sentence.strip()))
        elif said & told:
            return None
    if not kept or (kept[0][0] and kept[0][1].split()[0] in _GO_ON):
        return None
    whole = " ".join(sentence for _, sentence in kept)
    return whole if _said(goal, whole) == told and len(whole.split()) >= _FEWEST_WORDS else None


async def cut_short(
    players: Players, reward: ConversationReward, goal: Goal, messages: Sequence[str], number: int
) -> tuple[Conversation, Score] | None:
    """The conversation with `messages`, its text cut to what the user told; None if it ends early or cannot be cut."""
    played, _ = await demonstrate(players, reward, goal, messages, number)
    heard = " ".join(turn.user for turn in played.turns).lower()
    told = {place for place, note in enumerate(goal.notes) if note.lower() in heard}
    text = cut(goal, messages[-1], told) if len(played.turns) == len(messages) else None
    return await demonstrate(players, reward, goal, [*messages[:-1], text], number) if text else None


def _said(goal: Goal, text: str) -> set[int]:
    return {number for number, said in enumerate(covers(goal, text)) if said}


def row_of(conv_id: str, played: Conversation, score: Score, begin: int = 0) -> dict[str, object]:
    """In the layout of `collab.datamodules.conversations`: each reply, from turn `begin` on, with its context."""
    goal = played.goal
    turns = []
    for number, turn in enumerate(played.turns[begin:], begin):
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
        for conv_id, messages in read_sides().items():
            goal_id, number = conv_id.split("/")
            asked = in_vain(goals[goal_id], messages, RngKey(1, role="in vain", goal=conv_id).stream())
            played = asyncio.run(cut_short(players, simulation.reward, goals[goal_id], asked, int(number)))
            if played:
                row = row_of(f"{conv_id}-in-vain", *played, begin=len(asked) - 1)
                rows.append(json.dumps(row, ensure_ascii=False))
    WRITTEN.write_text("\n".join(rows) + "\n", encoding="utf-8")
    rewards = [score.reward for score in scores if score.reward is not None]
    parts = {name: [s.parts[name] for s in scores] for name in ("coverage", "interactivity", "pertinent")}
    means = ", ".join(f"{name} {fmean(v for v in values if v is not None):.3f}" for name, values in parts.items())
    print(f"{len(scores)} conversations, R* {fmean(rewards):.2f}, {means}; {len(rows) - len(scores)} texts: {WRITTEN}")


if __name__ == "__main__":
    main()
