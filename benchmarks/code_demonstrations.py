"""Conversations that find out what a function has to do and then write it, about the training problems of HumanEval.

    python benchmarks/code_demonstrations.py outputs/code/demonstrations.jsonl     # further arguments are overrides

Two messages with two questions each, in words drawn for each problem; then the reference program. SFT learns from the
file (`algorithm.data`). A conversation whose program does not pass the tests is left out and counted.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # of `python benchmarks/code_demonstrations.py`

from benchmarks.demonstrations import row_of
from collab.app.compose import load_config
from collab.app.too_long import goals_that_fit
from collab.chat.base import Sampling
from collab.conversation import Conversation, Goal, Message, Reply
from collab.datamodules.goals import load_splits
from collab.randomness import RngKey
from collab.simulation.conversation_loop import Players, play

_DOES = (
    "What exactly should the function do?",
    "What should the function do?",
    "Can you describe what the function should do?",
    "What is the purpose of the function?",
)
_TAKES = (
    "What are its name and its arguments?",
    "What should it be called, and which arguments does it take?",
    "Which name and which parameters should it have?",
    "How should its signature look?",
)
_SPECIAL = (
    "Are there any special cases?",
    "Which edge cases should it handle?",
    "What should happen in special cases?",
    "Are there edge cases to consider?",
)
_SHOWS = (
    "Can you give me an example?",
    "Do you have an example of a call and its result?",
    "Could you provide some examples?",
    "What would be an example?",
)


class Demonstrator:
    """A `ChatModel` that asks two questions in each of two messages, and then writes the reference program."""

    def __init__(self, goal: Goal) -> None:
        draws = RngKey(1, role="demonstrations", goal=goal.id).stream()

        def pick(texts: Sequence[str]) -> str:
            return texts[int(draws.integers(len(texts)))]

        program = goal.reference.strip()
        self.messages = (
            f"{pick(_DOES)} {pick(_TAKES)}",
            f"{pick(_SPECIAL)} {pick(_SHOWS)}",
            f"```python\n{program}\n```",
        )

    async def complete(self, messages: Sequence[Message], sampling: Sampling, key: RngKey) -> Reply:
        text = self.messages[min(sum(message.role == "assistant" for message in messages), 2)]
        return Reply(text, tuple(range(len(text) // 4)))  # about as many tokens


def main() -> None:
    from collab.app import build
    from collab.callbacks.progress import Progress

    if len(sys.argv) < 2 or "=" in sys.argv[1]:
        sys.exit("error: name the file to write first: python benchmarks/code_demonstrations.py FILE [OVERRIDE ...]")
    written = Path(sys.argv[1])
    config = load_config("train", ["experiment=code", *sys.argv[2:]])
    goals = goals_that_fit(config, load_splits(config.task), "train")[0].train
    rows, scores = [], []
    with Progress(animate=False) as progress, build.endpoints(config, progress) as endpoints:
        simulation = build.simulation(config, endpoints, lambda: None)
        for goal in goals:
            players = simulation.players(None)
            speaking = Players(Demonstrator(goal), players.user, players.sampling, players.max_turns)
            played = asyncio.run(
                play(speaking, Conversation(goal, ""), RngKey(1, split="demonstrations", goal=goal.id))
            )
            score = asyncio.run(simulation.reward(played))
            if score.parts["pass_rate"] == 1:
                scores.append(score)
                rows.append(
                    json.dumps(row_of(f"{goal.id}/0", played, score, range(len(played.turns))), ensure_ascii=False)
                )
    written.parent.mkdir(parents=True, exist_ok=True)
    written.write_text("\n".join(rows) + "\n", encoding="utf-8")
    means = ", ".join(f"{name} {fmean(s.parts[name] or 0.0 for s in scores):.3f}" for name in scores[0].parts)
    print(f"{len(rows)} conversations of {len(goals)} problems, {means}: {written}")


if __name__ == "__main__":
    main()
