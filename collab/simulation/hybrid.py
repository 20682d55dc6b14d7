"""A simulated user in two parts: rules decide what it says, a language model how it says it.

The agenda (`collab.simulation.agenda`) plans each message: which facts, which complaint, whether the chat ends. The
voice, a language model, types it as a persona. It never sees a fact: it writes around numbered brackets, "so [1], oh
and [2]", which are filled in afterwards with the agenda's words. It writes nothing but small words of chat
(`collab.simulation.voice`), so it can neither add to a fact nor take it back. The schema of its reply
(`Sampling.schema`) holds local weights to that. A server's reply that breaks it is asked for again.

After the last try the agenda's own words are said, and counted (`user_fallback`). So a conversation is never invalid.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from collab.chat.base import CONTEXT_FULL, ChatModel, Sampling
from collab.chat.structured import FAILED, SHAPE, Unfit, as_text, ask, find_object, schema_of
from collab.config.schema import HybridUserConfig
from collab.conversation import Conversation, Goal, Message
from collab.parsing.agenda_items import agenda_of
from collab.parsing.english import words
from collab.randomness import RngKey
from collab.simulation.agenda import AgendaUser, Plan
from collab.simulation.guards import role_confusion
from collab.simulation.typos import mistyped
from collab.simulation.user import UserTurn, draw_persona
from collab.simulation.voice import KINDS, loose_pattern_of, pattern_of

ADDED, CONFUSION, REPEATED = "added", "role_confusion", "repeated"
_NOTABLE = 4  # letters of a word that is not said twice in a message
_EXAMPLES = 8  # of a persona without examples of its own
_SLIP = 0.4  # share of the longer words that are mistyped in a message with a slip

_SYSTEM = """\
You type chat messages as a person who {persona}. {task} The brackets stay, in their order. Around them you type a few \
small words as this person would, no facts.

Messages of this person, each another day:
{examples}

You answer with one JSON object and nothing else: {{"message": "..."}}"""
_TASKS = {
    "opens": "[1] is a thing that the person needs; somebody is to write it.",
    "gives": "[1] and [2] are sentences with which the person answers a question.",
    "remarks": "[1] is a sentence with which the person complains.",
}
_REMINDERS = {
    SHAPE: "Write each bracket once, in order, and only letters and commas around them. Answer in the same JSON form.",
    ADDED: "Use small words of chat alone, as in the examples, and fewer of them. Answer in the same JSON form.",
    REPEATED: "Say no word twice. Answer in the same JSON form.",
    CONFUSION: "You are not the assistant. Answer as the person, in the same JSON form.",
}
_STRAIGHT = str.maketrans({"’": "'", "‘": "'", "“": "", "”": "", "—": "-", "–": "-", "…": "..."})
_CONDITION = re.compile(r"\bif\b[^,.:!?]*$", re.IGNORECASE)  # right before a fact


class HybridUser:
    """The `UserSimulator` with an agenda and a voice.

    Args:
        config: Of both.
        max_turns: Maximum turns of a conversation (`task.max_turns`).
        model: The voice.
        problems: Counts replies that were not usable, as `user_<kind>`, and messages in the agenda's words, as
            `user_fallback`.
    """

    def __init__(
        self, config: HybridUserConfig, max_turns: int, model: ChatModel, problems: Counter[str] | None = None
    ) -> None:
        self.config, self.model = config, model
        self.problems = Counter() if problems is None else problems
        self._agenda = AgendaUser(config, max_turns)
        self._sampling = Sampling(config.max_new_tokens, config.temperature, adapter=False)
        for kind in (SHAPE, ADDED, CONFUSION, REPEATED, FAILED, CONTEXT_FULL, "fallback"):
            self.problems[f"user_{kind}"] += 0  # so that each step logs all names

    async def respond(self, conversation: Conversation, key: RngKey) -> UserTurn:
        persona = conversation.user or draw_persona(self.config.personas, key)
        plan = self._agenda.plan(conversation, key)
        if plan.end:
            return UserTurn("", plan.end, persona)
        # The opening of a problem is a sentence or more, and code keeps its lines: nobody can write around them.
        if "\n" in plan.text or (conversation.goal.agenda is not None and not conversation.turns):
            return UserTurn(plan.text, user=persona)
        kind, said = brackets_of(conversation, plan)
        # Servers are sent a short one: they may refuse a long one, and charge for it.
        local = self.config.endpoint.kind == "local"
        pattern = pattern_of(kind, len(said)) if local else loose_pattern_of(len(said))
        answer = await ask(
            self.model,
            self.messages(kind, len(said), persona),
            replace(self._sampling, schema=schema_of(message={"type": "string", "pattern": pattern})),
            key.at(role=f"{key.role}/voice"),
            lambda text: self._read(conversation, plan, kind, said, text, key),
            self.config.retries,
        )
        self.problems.update(f"user_{kind}" for kind in answer.problems)
        self.problems["user_fallback"] += answer.value is None
        return UserTurn(plan.text if answer.value is None else answer.value, user=persona, refused=answer.refused)

    def messages(self, kind: str, brackets: int, persona: str) -> list[Message]:
        """The prompt of the voice, with worked examples of the persona."""
        bank = KINDS[kind].examples
        # Of a persona of one's own, some of each. They are the same in all prompts: the engine reads them once.
        texts = bank.get(persona) or [text for some in zip(*bank.values(), strict=False) for text in some][:_EXAMPLES]
        told = self.config.personas.get(persona) or "is an ordinary person"
        system = _SYSTEM.format(persona=told, task=_TASKS[kind], examples="\n".join(texts))
        names = " and ".join(f"[{number}]" for number in range(1, brackets + 1))
        return [Message("system", system), Message("user", f"A new message with {names}, with other words around.")]

    def _read(
        self, conversation: Conversation, plan: Plan, kind: str, said: Sequence[str], text: str, key: RngKey
    ) -> str:
        answer = find_object(text, "message")
        message = as_text(answer["message"]).translate(_STRAIGHT) if answer else ""
        if not re.fullmatch(loose_pattern_of(len(said)), message):
            raise _unfit(SHAPE)
        parts = re.split(r"\[\d+\]", message)
        if not re.fullmatch(pattern_of(kind, len(said)), message) or (
            kind != "opens" and any(map(_CONDITION.search, parts[:-1]))
        ):
            raise _unfit(ADDED)
        notable = [word for word in words(" ".join(parts)) if len(word) >= _NOTABLE]
        if len(set(notable)) < len(notable):
            raise _unfit(REPEATED)
        heard = conversation.assistant_texts[-1] if conversation.turns else ""
        if role_confusion(conversation.goal, heard, " ".join(parts)):
            raise _unfit(CONFUSION)
        draws = key.at(role="slip").stream()
        if draws.random() < self.config.mistakes:
            parts = [mistyped(part, _SLIP, draws) for part in parts]
        return filled(conversation.goal, parts, said, plan.final)


def brackets_of(conversation: Conversation, plan: Plan) -> tuple[str, tuple[str, ...]]:
    """The kind of a planned message (`voice.KINDS`), and what its brackets stand for."""
    if not conversation.turns:
        return "opens", (plan.wants,)
    return ("gives", plan.facts) if plan.facts else ("remarks", (plan.lead,))


def filled(goal: Goal, parts: Sequence[str], said: Sequence[str], final: str = "") -> str:
    """The words around the brackets, with what the brackets stand for between them, then the request for the result.

    Within a sentence a fact has no capital that only began it, and no full stop. If the voice begins its sentences in
    lower case, all sentences begin so.
    """
    names = tuple(item.text for item in agenda_of(goal) if item.text[0].isupper())
    parts = [re.sub(r"\s+", " ", part) for part in parts]
    begun = re.findall(r"(?:^|[.!?] )([A-Za-z])", parts[0]) + re.findall(r"[.!?] ([A-Za-z])", " ".join(parts[1:]))
    low = bool(begun) and all(letter.islower() for letter in begun)

    def uncapped(text: str) -> str:
        kept = text.startswith(names) or re.match(r"I\b", text)
        return text if kept else text[0].lower() + text[1:]

    text = parts[0].lstrip()
    for fact, after in zip(said, parts[1:], strict=True):
        if low or (text and text.rstrip()[-1] not in ".!?"):
            fact = uncapped(fact)
        text += fact if not text or text[-1] == " " else f" {fact}"
        if re.match(r"\s*(?:[,;:.!?]|[a-z]|I\b)", after):  # the sentence goes on, or has its own end
            text = text.removesuffix(".")
        text += f" {after}" if after[:1].isalnum() else after
    text = text.strip()
    if final:
        text = text.rstrip(",;:- ")
        text = f"{text if text[-1] in '.!?' else text + '.'} {uncapped(final) if low else final}"
    return text


def _unfit(problem: str) -> Unfit:
    return Unfit(problem, _REMINDERS[problem])
