"""A simulated user in two parts: rules decide what it says, a language model how it says it.

The agenda (`collab.simulation.agenda`) plans each message: which facts, which complaint, whether the chat ends. The
voice, a language model, types it as a persona. It never sees a fact: it writes around numbered brackets, "so [1], oh
and [2]", which are filled in afterwards with the agenda's words. A schema (`Sampling.schema`) holds local weights to
it, so they leave no bracket out, and write no figure and no foreign letter beside them.

A message is asked for again if the words around the brackets bring in a fact, or are an assistant's. After the last try
the agenda's own words are said, and counted (`user_fallback`). So a conversation is never invalid.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from collab.chat.base import CONTEXT_FULL, ChatModel, Sampling
from collab.chat.structured import FAILED, SHAPE, Unfit, as_text, ask, fence, find_object, mark, schema_of
from collab.config.schema import HybridUserConfig
from collab.conversation import Conversation, Goal, Message
from collab.parsing.agenda_items import agenda_of, wanted_of
from collab.parsing.english import content_words
from collab.randomness import RngKey
from collab.simulation.agenda import AgendaUser, Plan
from collab.simulation.guards import role_confusion
from collab.simulation.user import UserTurn, draw_persona

ADDED, CONFUSION = "added", "role_confusion"
_NEW_WORDS = 2  # content words around the brackets that are neither planned nor the assistant's
_ECHOED = 1  # content words of the assistant's message, which the person need not say again
_WORD = r"[A-Za-z][A-Za-z'-]{0,13}"  # no figures, no brackets, no other alphabet
_FEW = 4  # words before, between and after brackets
_REMARK = 12  # words of a message without brackets

_SYSTEM = """\
You type one chat message as this person: {persona}.
The person has asked an AI assistant to write or solve something. The assistant does the work; the person does not.

The message has one or more numbered brackets, such as [1] and [2]. Each stands for something that the person says. You
write only a few words around them, as this person would type: at most four before, between and after, often none. You
keep every bracket. You add no fact, no wish, no question and no offer.

Examples of such messages, by four different people:
[1]. [2]
oh right, so [1] and then also [2], I think
Thank you for asking. [1], and to be exact, [2].
um, I think [1]... [2] maybe

You answer with one JSON object and nothing else: {{"message": "..."}}"""
_GIVES = """\
The assistant wrote:
{heard}

The person answers with {brackets}. Type the message.{slip}"""
_OPENS = """\
The chat has not begun. The person asks the assistant for [1], to be written or solved. Type the message.{slip}"""
_REMARKS = """\
The assistant wrote:
{heard}

There are no brackets this time. The person only says, in their own way: "{gist}" Type the message, a short
sentence.{slip}"""
_SLIP = " This time a word is mistyped."
_REMINDERS = {
    SHAPE: "Write each bracket once, in order, and only letters and commas around them. Answer in the same JSON form.",
    ADDED: "Say less of your own, and contradict nothing. Answer in the same JSON form.",
    CONFUSION: "You are not the assistant. Answer as the person, in the same JSON form.",
}
_PLAIN = str.maketrans({"’": "'", "‘": "'", "“": "", "”": "", "—": "-", "–": "-", "…": "..."})
_DENIES = re.compile(r"\b(?:not|no|never|false|wrong|forget|ignore|stop)\b|n't\b", re.IGNORECASE)  # beside a fact
_PRAISES = re.compile(r"\b(?:perfect|great|thanks?|done)\b", re.IGNORECASE)  # where nothing was given


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
        for kind in (SHAPE, ADDED, CONFUSION, FAILED, CONTEXT_FULL, "fallback"):
            self.problems[f"user_{kind}"] += 0  # so that each step logs all names

    async def respond(self, conversation: Conversation, key: RngKey) -> UserTurn:
        persona = conversation.user or draw_persona(self.config.personas, key)
        plan = self._agenda.plan(conversation, key)
        if plan.end:
            return UserTurn("", plan.end, persona)
        # The opening of a problem is a sentence or more, and code keeps its lines: nobody can write around them.
        if "\n" in plan.text or (conversation.goal.agenda is not None and not conversation.turns):
            return UserTurn(plan.text, user=persona)
        said = brackets_of(conversation, plan)
        pattern = pattern_of(len(said), asks=not conversation.turns)
        answer = await ask(
            self.model,
            self.messages(conversation, key, persona, plan, len(said)),
            replace(self._sampling, schema=schema_of(message={"type": "string", "pattern": pattern})),
            key.at(role=f"{key.role}/voice"),
            lambda text: self._read(conversation, plan, said, pattern, text),
            self.config.retries,
        )
        self.problems.update(f"user_{kind}" for kind in answer.problems)
        self.problems["user_fallback"] += answer.value is None
        return UserTurn(plan.text if answer.value is None else answer.value, user=persona, refused=answer.refused)

    def messages(
        self, conversation: Conversation, key: RngKey, persona: str, plan: Plan, brackets: int
    ) -> list[Message]:
        """The prompt of the voice."""
        draws = key.at(role="slip").stream()
        slip = _SLIP if draws.random() < self.config.mistakes else ""
        system = _SYSTEM.format(persona=self.config.personas.get(persona) or "an ordinary person")
        texts = conversation.assistant_texts[-1:]
        sign = mark(key.at(role="mark", turn=0, candidate=None), *texts)
        heard = fence("assistant", "".join(texts), sign)
        names = " and ".join(f"[{number}]" for number in range(1, brackets + 1))
        if not conversation.turns:
            asked = _OPENS.format(slip=slip)
        elif brackets:
            asked = _GIVES.format(heard=heard, brackets=names, slip=slip)
        else:
            asked = _REMARKS.format(heard=heard, gist=plan.lead, slip=slip)
        return [Message("system", system), Message("user", asked)]

    def _read(self, conversation: Conversation, plan: Plan, said: Sequence[str], pattern: str, text: str) -> str:
        answer = find_object(text, "message")
        message = as_text(answer["message"]).translate(_PLAIN) if answer else ""
        if not re.fullmatch(pattern, message):
            raise _unfit(SHAPE)
        parts = re.split(r"\[\d+\]", message)
        around = " ".join(parts)
        if self._adds(conversation, plan, around):
            raise _unfit(ADDED)
        if role_confusion(conversation.goal, conversation.assistant_texts[-1] if conversation.turns else "", around):
            raise _unfit(CONFUSION)
        whole = filled(conversation.goal, parts, said).rstrip(",;:- ")
        return f"{whole if whole[-1] in '.!?' else whole + '.'} {plan.final}" if plan.final else whole

    def _adds(self, conversation: Conversation, plan: Plan, around: str) -> bool:
        """Whether these words say something of the agenda, repeat the assistant's, bring in much else, or deny it."""
        if (_DENIES if plan.facts else _PRAISES).search(around):
            return True
        goal, used = conversation.goal, content_words(around)
        used = used - content_words(f"{plan.lead} {wanted_of(goal)}")
        heard = content_words(conversation.assistant_texts[-1]) if conversation.turns else frozenset()
        if len(used & heard) > _ECHOED or len(used - heard) > _NEW_WORDS:
            return True
        return any((used - heard) & content_words(item.text) for item in agenda_of(goal))


def brackets_of(conversation: Conversation, plan: Plan) -> tuple[str, ...]:
    """What the brackets of a planned message stand for; none for a remark about the assistant's message."""
    return plan.facts if conversation.turns else (plan.wants,)


def pattern_of(brackets: int, asks: bool) -> str:
    """What a message looks like: so many brackets in their order, and a few whole words around them.

    Only with `asks` it may end as a question.
    """
    if not brackets:
        return f"^{_WORD}(?:[,;:.!]{{0,3}} {_WORD}){{0,{_REMARK - 1}}}[.!?]{{0,3}}$"
    before = f"(?:{_WORD}[,;:.!]{{0,3}} ){{0,{_FEW}}}"
    between = f"[,;:.!]{{0,3}} {before}"
    after = f"(?:[,;:.!]{{0,3}} {_WORD}){{0,{_FEW}}}[.!{'?' if asks else ''}]{{0,3}}"
    marks = [rf"\[{number}\]" for number in range(1, brackets + 1)]
    return f"^{before}{between.join(marks)}{after}$"


def filled(goal: Goal, parts: Sequence[str], said: Sequence[str]) -> str:
    """The words around the brackets, with what the brackets stand for between them.

    Within a sentence a fact has no capital that only began it, and no full stop.
    """
    names = tuple(item.text for item in agenda_of(goal) if not item.preference and item.text[0].isupper())
    parts = [re.sub(r"\s+", " ", part) for part in parts]
    text = parts[0].lstrip()
    for fact, after in zip(said, parts[1:], strict=True):
        if text and text.rstrip()[-1] not in ".!?" and not fact.startswith(names):
            fact = fact[0].lower() + fact[1:]
        text += fact if not text or text[-1] == " " else f" {fact}"
        if re.match(r"\s*(?:[,;:.!?]|[a-z]|I\b)", after):  # the sentence goes on, or has its own end
            text = text.removesuffix(".")
        text += f" {after}" if after[:1].isalnum() else after
    return text.strip()


def _unfit(problem: str) -> Unfit:
    return Unfit(problem, _REMINDERS[problem])
