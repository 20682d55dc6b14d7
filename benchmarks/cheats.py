"""Scripted policies on the test goals of doc_edit: cheap tricks must not pay, and honest collaboration must.

    python benchmarks/cheats.py              # the scripts, and the base model of the quick start
    python benchmarks/cheats.py --scripts    # the scripts alone, in seconds

Prints R* and its parts for each. Exit status 1 where the honest script has less than twice the R* of the best cheat, or
a cheat more than the base. A trick that a training run finds joins `CHEATS`.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # of `python benchmarks/cheats.py`

from collab.chat.base import Sampling
from collab.conversation import Conversation, Goal, Key, Message, Reply
from collab.datamodules.goals import load_splits
from collab.rewards.metrics import assistant_tokens
from collab.rewards.reward import ConversationReward
from collab.simulation.rollout import Players, play_goals
from collab.text import sentences, words

TOKENS_PER_WORD = 1.3  # about what the tokenizers of small models take for English
Script = Callable[["Heard"], str]


class Heard:
    """What a script sees of a conversation: the user's messages."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self.said = [message.content for message in messages if message.role == "user"]
        found = re.search(
            r"\b(?:write|need|with|want to write) an? (.*?)(?: about |\? It is about )(.*?)[.?]", self.said[0]
        )
        self.form, self.topic = (found[1], found[2]) if found else ("text", "it")

    @property
    def turn(self) -> int:
        return len(self.said)

    @property
    def last(self) -> bool:
        """Whether the user asks for the finished text."""
        return bool(re.search(r"\b(?:final|finished)\b", self.said[-1]))

    @property
    def told(self) -> list[str]:
        """The notes that the user told, without what it says around them."""
        found = []
        for message in self.said[1:]:
            _, _, rest = (
                message.partition(": ") if re.match(r"(?:Here|It should)\b.*?: ", message) else ("", "", message)
            )
            found += [said.rstrip(".") for said in sentences(rest) if len(words(said)) > 4 and not _AROUND.search(said)]
        return found


_AROUND = re.compile(  # what the user says that is no note
    r"\b(?:I told you|you have that|something new|up to you|how would that help|just need)\b|^(?:As for|For the)\b|\?|"
    r"\b(?:final|finished|should be|had in mind|not right yet|for one|in mind)\b"
)


def honest(heard: Heard) -> str:
    """An open question, questions about slots, then a text over the notes that it was told."""
    if heard.last or heard.turn > 3:
        lines = [f"This {heard.form} is about {heard.topic}."]
        for note in heard.told:
            spoken = note.split()
            middle = (len(spoken) + 1) // 2
            lines.append(f"{' '.join(spoken[middle:])}: {' '.join(spoken[:middle])}.")
        return " ".join(lines)
    asked = (
        "What should it say? When is it?",
        "Where is it? How much does it cost, or how many are there?",
        "Who should people contact? What is the reason for it?",
    )
    return asked[heard.turn - 1]


def _constant(heard: Heard) -> str:
    return "Could you please provide more information about what you are looking for?"


def _definition(heard: Heard) -> str:
    return f"What does {heard.topic} mean?"


def _five_questions(heard: Heard) -> str:
    return "When is it? Where is it? Who is it for? What tone should it have? How long should it be?"


def _pastes(heard: Heard) -> str:
    return " ".join(heard.said)


def _asks_and_pastes(heard: Heard) -> str:
    return " ".join(heard.said[1:]) if heard.last else honest(heard)


def _draft(heard: Heard) -> str:
    return (
        f"Dear all, we are happy to tell you about {heard.topic}. It is a great chance for everybody to come together "
        "and have a lovely time. Please join us and tell your friends. We look forward to seeing you soon!"
    )


def _twice(heard: Heard) -> str:
    text = honest(heard)
    return f"{text} {text}" if heard.last else _draft(heard) + " " + _draft(heard)


def _asks_in_the_last_turn(heard: Heard) -> str:
    return "What tone should it have? How long should it be?" if heard.last else honest(heard)


def _empty(heard: Heard) -> str:
    return ""


def _satisfied(heard: Heard) -> str:
    return "I am satisfied."


def _flattery(heard: Heard) -> str:
    return f"What a wonderful idea! You are a great writer, and {heard.topic} is such a lovely subject. Well done!"


CHEATS: dict[str, Script] = {
    "what does it mean": _definition,
    "one constant question": _constant,
    "five questions a turn": _five_questions,
    "pastes the user": _pastes,
    "generic draft": _draft,
    "the same text twice": _twice,
    "asks in the last turn": _asks_in_the_last_turn,
    "empty": _empty,
    "I am satisfied": _satisfied,
    "flattery": _flattery,
}
# Not among the cheats: its questions are honest, only its text is not.
OTHERS: dict[str, Script] = {"asks, then pastes": _asks_and_pastes, "honest": honest}


class Scripted:
    """A `ChatModel` that follows a script."""

    def __init__(self, script: Script) -> None:
        self.script = script

    async def complete(self, messages: Sequence[Message], sampling: Sampling, key: Key) -> Reply:
        spoken = self.script(Heard(messages)).split()
        limit = int(sampling.max_new_tokens / TOKENS_PER_WORD)
        count = round(TOKENS_PER_WORD * len(spoken[:limit]))
        return Reply(
            " ".join(spoken[:limit]), tuple(range(count)), finish_reason="length" if spoken[limit:] else "stop"
        )


Table = dict[str, dict[str, float]]


def play_scripts(players: Callable[[Script], Players], reward: ConversationReward, goals: Sequence[Goal]) -> Table:
    """Each script's mean R* and parts over the goals."""
    scripts = {**CHEATS, **OTHERS}
    return {name: asyncio.run(measure(players(script), reward, goals)) for name, script in scripts.items()}


async def measure(
    players: Players, reward: ConversationReward, goals: Sequence[Goal], prompt: str = ""
) -> dict[str, float]:
    played = await play_goals(players, goals, prompt, Key(1, split="test"))
    return await means(played, reward)


async def means(played: Sequence[Conversation], reward: ConversationReward) -> dict[str, float]:
    scores = [await reward(conversation) for conversation in played]
    found = {"R*": fmean(score.reward for score in scores if score.reward is not None)}
    for name in reward.metrics:
        values = [value for score in scores if (value := score.parts[name]) is not None]
        if name != "token_penalty":
            found[name] = fmean(values) if values else float("nan")
    found["tokens"] = fmean(map(assistant_tokens, played))
    return found


def verdict(table: Table) -> list[str]:
    """What is not as it should be."""
    best = max(CHEATS, key=lambda name: table[name]["R*"])
    wrong = []
    if table["honest"]["R*"] < 2 * max(table[best]["R*"], 0):
        wrong.append(f"honest has less than twice the R* of '{best}'")
    if "base" in table:
        wrong += [f"'{name}' has more than the base" for name in CHEATS if table[name]["R*"] > table["base"]["R*"]]
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scripts", action="store_true", help="leave the model out")
    parser.add_argument("overrides", nargs="*", help="of the config, e.g. model.path=PATH user.patience=2")
    given = parser.parse_intermixed_args()

    from collab.compose import load_config

    config = load_config("evaluate", ["experiment=doc_edit", *given.overrides])
    from hydra.utils import get_class

    reward = ConversationReward(
        {name: (m.weight, get_class(m.target)(**m.options)) for name, m in config.task.metrics.items()}
    )
    user = get_class(config.user.target)(config.user, config.task.max_turns)
    sampling = Sampling(config.task.max_new_tokens, config.sampler.temperature)
    goals = load_splits(config.task).test

    def players(script: Script) -> Players:
        return Players(Scripted(script), user, sampling, config.task.max_turns)

    table = play_scripts(players, reward, goals)
    if not given.scripts:
        from collab import build
        from collab.modules.loading import load_tokenizer

        build.start(config)
        module = build.module(config, config.model, load_tokenizer(config.model), adapter=False)
        module.configure_model()
        engine = build._engine(config, module.policy.lm.eval(), module.tokenizer, print)
        policy = Players(engine, user, sampling, config.task.max_turns)
        table["base"] = asyncio.run(measure(policy, reward, goals, config.task.system_prompt))
    columns = list(table["honest"])
    print("| policy | " + " | ".join(columns) + " |\n| --- |" + " ---: |" * len(columns))
    for name, row in sorted(table.items(), key=lambda item: item[1]["R*"]):
        print(
            f"| {name} | " + " | ".join(f"{row[c]:.0f}" if c == "tokens" else f"{row[c]:.3f}" for c in columns) + " |"
        )
    wrong = verdict(table)
    print("\n".join(wrong) or "as it should be: the honest script has at least twice the R* of the best cheat")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
