"""Conversations that show the policy how to find out what a document should say, and then to write it.

    python benchmarks/demonstrations.py     # writes collab/datamodules/data/doc_edit/demonstrations.jsonl

Language models wrote the assistant's side, and the rule-based user answers here. SFT learns from the file
(`algorithm.data`). There are three kinds, all of three messages of two questions and then a text. The text says all
that the user told and nothing else, in the tone that was asked for and in plain sentences, which a small model can
learn to write. A message is learned if the user takes both its questions.

1. `data/demonstrated.jsonl`: conversations about training goals. Who asked knew form and topic, and what the user had
   said so far.
2. `data/topics.jsonl`: further topics, with a question and a sentence for each fact. Questions are drawn, and the text
   is put together from the sentences for what the user told.
3. The same topics with questions in vain. A policy's questions are not all good ones, and what the user says to the
   others ("We have been there.") does not belong in the text. Here the text is learned, and a good question after one
   in vain.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # of `python benchmarks/demonstrations.py`

from benchmarks.cheats import Heard, Scripted
from benchmarks.goals import FOLDER
from collab.conversation import Candidate, Conversation, Goal, Score
from collab.datamodules.conversations import as_row
from collab.datamodules.goals import load_goals
from collab.parsing.agenda_state import covers, read
from collab.parsing.english import questions
from collab.randomness import RngKey
from collab.rewards.reward import ConversationReward
from collab.simulation.conversation_loop import Players, play

# Some goals have an answer, most have not. None names the topic, which may be a person.
IN_VAIN = (
    "How much does it cost?",
    "What equipment is needed for it?",
    "How many people are there?",
    "Where will it take place?",
    "How long does it take?",
    "What is it made of?",
    "Who else is involved?",
    "What is the history of it?",
    "Why is that important to you?",
    "What should readers bring along?",
    "What is the best thing about it?",
    "What happens if it rains?",
    "Which documents are needed?",
    "How many words do readers get?",
    "What do people usually say about it?",
)
SIDES = Path(__file__).with_name("data") / "demonstrated.jsonl"
TOPICS = Path(__file__).with_name("data") / "topics.jsonl"
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


def read_topics() -> dict[str, dict[str, Any]]:
    """Id -> a topic: what its user knows and wants, and what an assistant asks and writes about it."""
    rows = map(json.loads, TOPICS.read_text(encoding="utf-8").splitlines())
    return {row["id"]: row for row in rows}


def goal_of(topic: Mapping[str, Any]) -> Goal:
    """The goal of a topic. Its reference says all facts."""
    form, title, tone, audience, length = (topic[key] for key in ("form", "title", "tone", "audience", "length"))
    notes, sentences = ([fact[key] for fact in topic["facts"]] for key in ("note", "sentence"))
    cues = [f"{fact['cues']} {fact['question']}" for fact in topic["facts"]]
    return Goal(
        topic["id"],
        f"Please write: {form} about {title}, {tone}, for {audience}, {length}. What I know: {'; '.join(notes)}.",
        " ".join([topic["lead_to"], *sentences]),
        {
            "title": title,
            "form": form,
            "preferences": {"tone": tone, "audience": audience, "length": length},
            "notes": notes,
            "cues": cues,
        },
    )


def asked_about(topic: Mapping[str, Any], draws: np.random.Generator) -> list[str]:
    """Three messages of two questions: what to say and for whom, two facts, tone and length."""
    later = [fact["question"] for fact in topic["facts"][1:]]  # the user gives the first fact to the open question
    first, second = (later[i] for i in draws.permutation(len(later))[:2])
    return [topic["opening"], f"{first} {second}", topic["closing"]]


def in_vain(asked: Sequence[str], draws: np.random.Generator) -> list[str]:
    """`asked`, with questions that bring little or nothing in place of the second message, of the third or of both."""
    asked = list(asked)
    for number in ((1,), (2,), (1, 2))[draws.integers(3)]:
        first, second = (IN_VAIN[i] for i in draws.permutation(len(IN_VAIN))[:2])
        begin = (first, questions(asked[0])[0], questions(asked[number])[0])[draws.integers(3)]
        asked[number] = f"{begin} {second}"
    return asked


def text_of(topic: Mapping[str, Any], heard: str) -> str | None:
    """The document about what was `heard`: the lead, then the sentences for the facts in the order of telling.

    None if no fact was told.
    """
    heard = heard.lower()
    told = sorted((heard.find(fact["note"].lower()), fact["sentence"]) for fact in topic["facts"])
    sentences = [sentence for place, sentence in told if place >= 0]
    lead = topic["lead_to" if topic["audience"].lower() in heard else "lead"]
    return " ".join([lead, *sentences]) if sentences else None


async def write_about(
    players: Players, reward: ConversationReward, topic: Mapping[str, Any], asked: Sequence[str]
) -> tuple[Conversation, Score] | None:
    """The conversation that asks `asked` and then writes what it was told. None if it ends early or tells no fact."""
    goal = goal_of(topic)
    played, _ = await demonstrate(players, reward, goal, [*asked, "-"], 1)
    text = text_of(topic, " ".join(turn.user for turn in played.turns))
    return await demonstrate(players, reward, goal, [*asked, text], 1) if text and len(played.turns) == 4 else None


def says_what_was_told(played: Conversation) -> bool:
    """Whether the text covers all notes that the user told, and no other."""
    said = played.assistant_texts
    given = read(played.goal, said).given
    return all((i in given) == covered for i, covered in enumerate(covers(played.goal, said[-1])))


def earns(goal: Goal, messages: Sequence[str], number: int) -> bool:
    """Whether the user takes both questions of `messages[number]`, as questions that ask for something new."""
    before, after = (read(goal, messages[:end]).pertinent for end in (number, number + 1))
    return after - before == 2


def row_of(conv_id: str, played: Conversation, score: Score, learned: Collection[int]) -> dict[str, object]:
    """In the layout of `collab.datamodules.conversations`: the replies that are `learned`, each with its context."""
    goal = played.goal
    turns = []
    for number in learned:
        turn = played.turns[number]
        context = Conversation(goal, "", played.turns[:number], pending=turn.user)
        turns.append((context, [Candidate(turn.reply, scores=(score,), mr=score.reward)], 0))
    return as_row(conv_id, goal, turns)


def main() -> None:
    from collab.app import build
    from collab.app.compose import load_config
    from collab.callbacks.progress import Progress

    config = load_config("evaluate", ["experiment=doc_edit", *sys.argv[1:]])
    goals = {goal.id: goal for goal in load_goals(FOLDER / "train.jsonl", "train")}
    kinds = dict[str, list[tuple[Conversation, Score]]](goals=[], topics=[], in_vain=[])
    rows = list[str]()

    def keep(
        kind: str, conv_id: str, found: tuple[Conversation, Score] | None, asked: Sequence[str] = ("", "", "")
    ) -> None:
        if not found or not says_what_was_told(found[0]):
            return
        kinds[kind].append(found)
        said = [turn.reply.text for turn in found[0].turns]
        taken = [turn for turn in range(3) if earns(found[0].goal, said, turn)]
        after_vain = [turn for turn in taken if turn == 2 and said[1] != asked[1] and said[2] == asked[2]]
        learned = {"goals": [*taken, 3], "topics": [*taken, 3], "in_vain": [*after_vain, 3]}
        rows.append(json.dumps(row_of(conv_id, *found, learned[kind]), ensure_ascii=False))

    with Progress(animate=False) as progress, build.endpoints(config, progress) as endpoints:
        simulation = build.simulation(config, endpoints, lambda: None)
        players, reward = simulation.players(None), simulation.reward
        for conv_id, messages in read_sides().items():
            goal, number = conv_id.split("/")
            keep("goals", conv_id, asyncio.run(demonstrate(players, reward, goals[goal], messages, int(number))))
        for name, topic in read_topics().items():
            asked = asked_about(topic, RngKey(1, role="questions", goal=name).stream())
            vain = in_vain(asked, RngKey(1, role="in vain", goal=name).stream())
            keep("topics", name, asyncio.run(write_about(players, reward, topic, asked)))
            keep("in_vain", f"{name}-in-vain", asyncio.run(write_about(players, reward, topic, vain)), asked)
    WRITTEN.write_text("\n".join(rows) + "\n", encoding="utf-8")
    for kind, found in kinds.items():
        means = []
        for part in ("coverage", "interactivity", "pertinent", "copied"):
            values = [value for _, score in found if (value := score.parts[part]) is not None]
            means.append(f"{part} {fmean(values):.3f}")
        print(f"{kind}: {len(found)}, R* {fmean(score.reward or 0.0 for _, score in found):.2f}, {', '.join(means)}")
    print(f"{len(rows)} rows: {WRITTEN}")


if __name__ == "__main__":
    main()
