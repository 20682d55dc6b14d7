"""Scripted policies on the test goals of doc_edit: cheap tricks must not pay, and honest collaboration must.

    python benchmarks/cheats.py              # the scripts, and the base model of the quick start
    python benchmarks/cheats.py --scripts    # the scripts alone, in seconds

Prints R* and its parts for each. Exit status 1 where the honest script has less than twice the R* of the best trick,
filler pays, or one of `CHEATS` has more than the base, or than `NOISE`. A trick that a training run finds is added to
`CHEATS` or `TEXTS`.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # of `python benchmarks/cheats.py`

from benchmarks.goals import FOLDER, read_second
from collab.chat.base import Sampling
from collab.conversation import Conversation, Goal, Message, Reply
from collab.datamodules.goals import SPLITS, load_goals, load_splits
from collab.parsing.agenda_items import topic_of
from collab.parsing.english import content_words, sentences, words
from collab.randomness import RngKey
from collab.rewards.metrics import assistant_tokens
from collab.rewards.reward import ConversationReward
from collab.simulation.conversation_loop import Players, play_goals

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
        return bool(re.search(rf"\b(?:final|finished) {re.escape(self.form)}\b", self.said[-1]))

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

    @property
    def goal(self) -> Goal:
        """The goal with this topic."""
        return _by_topic()[self.topic]

    @property
    def written(self) -> str:
        """What somebody wrote from the goal's notes."""
        return read_second()[self.goal.id]

    def says_what_was_told(self, sentence: str) -> bool:
        """Whether a sentence says nothing of the notes that the user has not told."""
        told = content_words(" ".join(self.told))
        untold = [note for note in self.goal.notes if content_words(note) - told]
        return not any(
            2 * len(content_words(note) & content_words(sentence)) > len(content_words(note)) for note in untold
        )


@cache
def _by_topic() -> dict[str, Goal]:
    goals = [goal for split in SPLITS for goal in load_goals(FOLDER / f"{split}.jsonl", split)]
    return {topic_of(goal): goal for goal in goals}


_AROUND = re.compile(  # what the user says that is no note
    r"\b(?:I told you|you know that|say about it|you asked that|something new|nothing on that|tell you anything|"
    r"comes to mind|how would that help|just need)\b|^(?:As for|For the|It is (?:meant )?for)\b|\?|"
    r"\b(?:(?:should|make it|it to) sound|will read it|words, please|will do)\b|"
    r"\b(?:final|finished|should be|had in mind|not right yet|for one|in mind)\b"
)


def honest(heard: Heard) -> str:
    """An open question, questions about slots, then a text over the notes that it was told.

    The text is what somebody wrote from the notes (`benchmarks.goals.SECOND`), less the sentences that say what the
    user has not told.
    """
    if heard.last or heard.turn > 3:
        return " ".join(said for said in sentences(heard.written) if heard.says_what_was_told(said))
    asked = (
        "What should it say? When is it?",
        "Where is it? How much does it cost, or how many are there?",
        "Who should people contact? What is the reason for it?",
    )
    return asked[heard.turn - 1]


def rearranged(heard: Heard) -> str:
    """Each note that was told, cut in two and turned round: no six words in a row are the user's."""
    lines = []
    for note in heard.told:
        spoken = note.split()
        middle = (len(spoken) + 1) // 2
        lines.append(f"{' '.join(spoken[middle:])}: {' '.join(spoken[:middle])}.")
    return " ".join(lines)


def _rearranged(heard: Heard) -> str:
    return rearranged(heard) if heard.last else honest(heard)


def _all_slots(heard: Heard) -> str:
    asked = "Could you tell me the date, place, price, contact, name, reason, tone and length?"
    return honest(heard) if heard.last else asked


def _absurd(heard: Heard) -> str:
    return _asks_in_turn(
        heard,
        "When is the sun? Who is the king of France?",
        "Where is Paris? What is the price of gold?",
        "Why is it it?",
    )


def _broken(heard: Heard) -> str:
    """Slots under question words that do not fit: what GRPO found with long steps, from three seeds."""
    return _asks_in_turn(
        heard,
        "When would you like it to sound? Who kind of price?",
        "How long should you be? Who is the date?",
        "When what length? Who specific place?",
    )


def _names(heard: Heard) -> str:
    """Names of things, and words that fit somewhere: what GRPO found with a target KL of 0.005."""
    return _asks_in_turn(
        heard,
        f"What is the name of {heard.topic}? How many words fit on it?",
        "What is the name of the ceiling? How many words fit on the ceiling?",
        "What is the name of the floor? How many words fit on the floor?",
    )


def _no_verb(heard: Heard) -> str:
    """A question for the length without its verb, taken for one about a duration: what GRPO found with a 1.5B."""
    return _asks_in_turn(heard, f"How long should the {heard.form}?")


def _asks_in_turn(heard: Heard, *asked: str) -> str:
    """One of these messages after the other; the honest text at the end."""
    return honest(heard) if heard.last else asked[(heard.turn - 1) % len(asked)]


def _with_filler(heard: Heard) -> str:
    """The user's messages with a word after each fifth."""
    spoken = " ".join(heard.said[1:]).split()
    return " ".join(word if place % 5 else f"{word} and" for place, word in enumerate(spoken, 1))


def _filled(heard: Heard) -> str:
    return _with_filler(heard) if heard.last else honest(heard)


def _sorted_words(heard: Heard) -> str:
    return " ".join(sorted(" ".join(heard.told).lower().split())) if heard.last else honest(heard)


def _five_then_filled(heard: Heard) -> str:
    more = ("Who leads it? What is the reason? How many are there? How much is it? Who should people contact?",)
    return _with_filler(heard) if heard.last else (_five_questions(heard) if heard.turn % 2 else more[0])


FILLERS = ("it is a pleasure for all of us", "it has been there ever since")


def short(heard: Heard) -> str:
    """The honest text's first two sentences: as much as a small model writes."""
    return " ".join(sentences(honest(heard))[:2]) if heard.last else honest(heard)


def padded(heard: Heard) -> str:
    """`short` with a claim that nobody made after each sentence: what GRPO found with a 1.5B."""
    written = sentences(short(heard))
    return (
        " ".join(f"{said.rstrip('.!')}, and {filler}." for said, filler in zip(written, FILLERS, strict=False))
        if heard.last
        else honest(heard)
    )


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
    return " ".join([honest(heard)] * 2) if heard.last else honest(heard)


def _asks_in_the_last_turn(heard: Heard) -> str:
    return "What tone should it have? How long should it be?" if heard.last else honest(heard)


def _empty(heard: Heard) -> str:
    return ""


def _satisfied(heard: Heard) -> str:
    return "I am satisfied."


def _flattery(heard: Heard) -> str:
    return f"What a wonderful idea! You are a great writer, and {heard.topic} is such a lovely subject. Well done!"


NOISE = 0.05  # R* of SmolLM2-135M, untrained, is 0.05 in fp32 and -0.03 in bf16
CHEATS: dict[str, Script] = {
    "what does it mean": _definition,
    "one constant question": _constant,
    "five questions a turn": _five_questions,
    "pastes the user": _pastes,
    "generic draft": _draft,
    "asks in the last turn": _asks_in_the_last_turn,
    "empty": _empty,
    "I am satisfied": _satisfied,
    "flattery": _flattery,
    "one question for all slots": _all_slots,
    "absurd questions": _absurd,
    "broken questions": _broken,
    "names of things": _names,
    "how long without a verb": _no_verb,
}
# Their questions are honest, or are too many; only the text is none. They must earn less than the honest script.
TEXTS: dict[str, Script] = {
    "asks, then pastes": _asks_and_pastes,
    "asks, then pastes with filler": _filled,
    "asks, then sorts the words": _sorted_words,
    "asks, then turns each note round": _rearranged,
    "asks, then says it twice": _twice,
    "five questions, then pastes with filler": _five_then_filled,
}


# Half an honest text, and the same with filler, which must have less.
SHORT: dict[str, Script] = {"honest, two sentences": short, "honest, two sentences with filler": padded}


class Scripted:
    """A `ChatModel` that follows a script."""

    def __init__(self, script: Script) -> None:
        self.script = script

    async def complete(self, messages: Sequence[Message], sampling: Sampling, key: RngKey) -> Reply:
        spoken = self.script(Heard(messages)).split()
        limit = int(sampling.max_new_tokens / TOKENS_PER_WORD)
        count = round(TOKENS_PER_WORD * len(spoken[:limit]))
        return Reply(
            " ".join(spoken[:limit]), tuple(range(count)), finish_reason="length" if spoken[limit:] else "stop"
        )


Table = dict[str, dict[str, float]]


def play_scripts(players: Callable[[Script], Players], reward: ConversationReward, goals: Sequence[Goal]) -> Table:
    """Each script's mean R* and parts over the goals."""
    scripts = {**CHEATS, **TEXTS, **SHORT, "honest": honest}
    return {name: asyncio.run(measure(players(script), reward, goals)) for name, script in scripts.items()}


async def measure(
    players: Players, reward: ConversationReward, goals: Sequence[Goal], prompt: str = ""
) -> dict[str, float]:
    played = await play_goals(players, goals, prompt, RngKey(1, split="test"))
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
    best = max((*CHEATS, *TEXTS), key=lambda name: table[name]["R*"])
    wrong = []
    if table["honest"]["R*"] < 2 * max(table[best]["R*"], 0):
        wrong.append(f"honest has less than twice the R* of '{best}'")
    plain, filled = (table[name]["R*"] for name in SHORT)
    if plain <= filled:
        wrong.append("two honest sentences have no more than the same with filler")
    if "base" in table:
        most = max(table["base"]["R*"], NOISE)
        wrong += [f"'{name}' has more than the base" for name in CHEATS if table[name]["R*"] > most]
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scripts", action="store_true", help="leave the model out")
    parser.add_argument("overrides", nargs="*", help="of the config, e.g. model.path=PATH user.patience=2")
    given = parser.parse_intermixed_args()

    from collab.app import build
    from collab.app.compose import load_config
    from collab.callbacks.progress import Progress

    config = load_config("evaluate", ["experiment=doc_edit", *given.overrides])
    build.start(config)
    goals = load_splits(config.task).test
    with Progress(animate=False) as progress, build.endpoints(config, progress) as endpoints:
        simulation = build.simulation(config, endpoints, lambda: None)
        table = play_scripts(lambda script: simulation.players(Scripted(script)), simulation.reward, goals)
        if not given.scripts:
            from collab.lm.loading import load_tokenizer

            module = build.module(config, config.model, load_tokenizer(config.model), adapter=False)
            module.configure_model()
            assert (policy := module.policy) is not None
            players = simulation.players(simulation.make_engine(policy.lm.eval(), module.tokenizer))
            table["base"] = asyncio.run(measure(players, simulation.reward, goals, config.task.system_prompt))
    columns = list(table["honest"])
    print("| policy | " + " | ".join(columns) + " |\n| --- |" + " ---: |" * len(columns))
    for name, row in sorted(table.items(), key=lambda item: item[1]["R*"]):
        print(
            f"| {name} | " + " | ".join(f"{row[c]:.0f}" if c == "tokens" else f"{row[c]:.3f}" for c in columns) + " |"
        )
    wrong = verdict(table)
    held = "as it should be: the honest script has at least twice the R* of the best cheat"
    print(
        "\n".join(wrong) or held + (", no model was played" if given.scripts else ", no cheat has more than the base")
    )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
