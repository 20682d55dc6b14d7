"""A simulated user that a language model plays: any `ChatModel` told what it wants, who it is and how people talk.

The paper's user (CollabLLM, section 3.1 and appendix): in role, brief and vague at first, with preferences and small
mistakes, in the style of its earlier turns, with a signal to end the chat, answering in JSON with its view of the
current answer, its thought and its message. The wording here is our own. Three things are not left to the model:

- whether a message has a slip, and which persona plays, is drawn from the request's key: candidates of one context face
  the same ones, whatever the model is and wherever it runs;
- each message passes the guards (`collab.simulation.guards`); one that does not is asked for again, a bounded number of
  times, and then the conversation is invalid: it ends, and counts nowhere;
- what the assistant wrote stands behind a mark that it cannot know, so it cannot speak for the user.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

from collab.chat.base import ChatModel, Sampling
from collab.chat.structured import FAILED, SHAPE, Unfit, as_text, ask, fence, find_object, mark
from collab.config.schema import LLMUserConfig
from collab.conversation import Conversation, Goal, Message
from collab.parsing.agenda_items import form_of, makes
from collab.randomness import RngKey
from collab.simulation.guards import (
    CONFUSION,
    EMPTY,
    LEAK,
    REPEAT,
    STOP,
    leaks,
    repeats,
    role_confusion,
    stops_too_early,
)
from collab.simulation.user import UserTurn, invalid

SATISFIED, GIVES_UP = "[[SATISFIED]]", "[[GIVE UP]]"
PROBLEMS = (CONFUSION, LEAK, STOP, EMPTY, REPEAT, SHAPE, FAILED)

_VAGUE_TURNS = 2  # first messages that must not give the goal away in its own words
_SIGNAL = re.compile(r"\[\[\s*(satisfied|give\s*up)\s*\]\]", re.IGNORECASE)
_UNFILLED = re.compile(r"<[^<>]*>")  # an entry of the form below, given back as it is

_TASKS = {
    "text": "It is to write {form} for you.",
    "answer": "It is to solve a problem for you. You do not know the solution, and you do not work it out.",
    "program": "It is to write a Python program for you. You do not write code.",
    "reply": "It is to answer you.",
}
_SYSTEM = """\
You play a person who chats with an AI assistant. You want something from it, and you are not the assistant. {task}

What you want. The assistant cannot see it:
{goal}

Who you are: {persona}

How you talk:
- You stay that person. You ask, answer, prefer, complain. You do not do the assistant's work, not even in part: you
  write no draft, no solution and no code, you offer no help, you teach nothing.
- You start brief and vague. Your first message only says what it is about. Later you tell a detail or two at a time,
  mostly when you are asked. What you are not asked about may never come up.
- You say things in your own words, as people type. You never copy out what stands above.
- You have preferences, and you say so when a reply goes against them.
- You are not perfect: you forget things, put them badly, mistype, and sometimes correct yourself later.
- You sound like your earlier messages: as long or short, as neat or sloppy, as polite.
- You end the chat with {satisfied} once the assistant has given you all that you want. You end it with {gives_up} when
  it plainly cannot help: after about {patience} replies in a row that brought you nothing. You end it for no other
  reason; not being asked anything, or agreeing with something, is none.

You answer with one JSON object and nothing else:
{{"current_answer": "<what the assistant has given you so far, in a few words, or none>", "thought": "<what you make \
of it and what you want to say next>", "message": "<what you type, or the words that end the chat>"}}"""
_FIRST = "The chat has not begun. You write the first message: brief and vague."
_NEXT = """\
The chat so far. Each message begins with the mark {mark} and who wrote it:
{chat}

It is your turn to write, and this is your message number {number} of at most {most}."""
_LAST = " It is your last one: ask for the finished result."
_SLIPS = (
    " This time you mistype a word or two.",
    " This time you leave out something that you meant to say.",
    " This time you get a small detail wrong; you may correct it later.",
    " This time you are a little unclear about what you mean.",
)

_REMINDERS = {
    SHAPE: 'That was not the JSON object. Answer with {"current_answer": ..., "thought": ..., "message": ...} only.',
    CONFUSION: "You spoke as the assistant. You are the person who wants something, and you leave the work to it. "
    "Answer again, as that person, in the same JSON form.",
    LEAK: "You copied out what you want. Say less of it, and in your own words. Answer again in the same JSON form.",
    STOP: "There is no reason yet to end the chat. Write a message instead, in the same JSON form.",
    EMPTY: "Your message was empty. Write what you want to say next, in the same JSON form.",
    REPEAT: "That has been said in this chat already. Say something else, in the same JSON form.",
}


class LLMUser:
    """The `UserSimulator` that a `ChatModel` plays.

    Args:
        config: Personas, patience, mistakes, guards and how the model is sampled.
        max_turns: Turns of a conversation at most (`task.max_turns`).
        model: Who plays.
        problems: Counts what was wrong with replies, as `user_<kind>`, and the conversations lost to it, as
            `user_invalid`.
    """

    paid = True

    def __init__(
        self, config: LLMUserConfig, max_turns: int, model: ChatModel, problems: Counter[str] | None = None
    ) -> None:
        self.config, self.max_turns, self.model = config, max_turns, model
        self.problems = Counter() if problems is None else problems
        for kind in (*PROBLEMS, "invalid"):
            self.problems[f"user_{kind}"] += 0  # so that every step logs every name
        self._sampling = Sampling(config.max_new_tokens, config.temperature, response_format="json", adapter=False)

    async def respond(self, conversation: Conversation, key: RngKey) -> UserTurn:
        persona = conversation.user or self._persona(key)
        answer = await ask(
            self.model,
            self.messages(conversation, key, persona),
            self._sampling,
            key,
            lambda text: self.read(conversation, text),
            self.config.retries,
        )
        self.problems.update(f"user_{kind}" for kind in answer.problems)
        if answer.value is None:
            self.problems["user_invalid"] += 1
            return UserTurn("", invalid(answer.problems[-1]), persona)
        return replace(answer.value, user=persona)

    def messages(self, conversation: Conversation, key: RngKey, persona: str) -> list[Message]:
        """What the model is asked; `key` decides about the slip and the mark."""
        goal, config = conversation.goal, self.config
        texts = [text for turn in conversation.turns for text in (turn.user, turn.reply.text)]
        sign = mark(key.at(role="mark", turn=0, candidate=None), *texts)
        system = _SYSTEM.format(
            task=_TASKS[makes(goal)].format(form=f"a text ({form_of(goal)})"),
            goal=fence("goal", goal_text(goal), sign),
            persona=config.personas.get(persona) or "an ordinary person",
            satisfied=SATISFIED,
            gives_up=GIVES_UP,
            patience=config.patience,
        )
        if conversation.turns:
            chat = "\n".join(
                f"{sign} YOU: {turn.user}\n{sign} ASSISTANT: {turn.reply.text}" for turn in conversation.turns
            )
            asked = _NEXT.format(mark=sign, chat=chat, number=conversation.turn, most=self.max_turns)
            if conversation.turn == self.max_turns:
                asked += _LAST
        else:
            asked = _FIRST
        draws = key.stream()
        if draws.random() < config.mistakes:
            asked += _SLIPS[int(draws.integers(len(_SLIPS)))]
        return [Message("system", system), Message("user", asked)]

    def read(self, conversation: Conversation, text: str) -> UserTurn:
        """The turn that a raw reply holds.

        Raises:
            Unfit: It has not the shape, or a guard is against it.
        """
        found = find_object(text, "message")
        if found is None or isinstance(found["message"], dict | list):
            raise Unfit(SHAPE, _REMINDERS[SHAPE])
        message = as_text(found["message"])
        if _UNFILLED.fullmatch(message):
            raise Unfit(SHAPE, _REMINDERS[SHAPE])
        if signal := _SIGNAL.search(message):
            satisfied = signal[1].lower() == "satisfied"
            if stops_too_early(conversation, satisfied, self.config.patience):
                raise Unfit(STOP, _REMINDERS[STOP])
            return UserTurn("", "satisfied" if satisfied else "patience")
        if problem := self._problem(conversation, message):
            raise Unfit(problem, _REMINDERS[problem])
        return UserTurn(message)

    def _problem(self, conversation: Conversation, message: str) -> str:
        goal, heard = conversation.goal, conversation.assistant_texts
        if not message.strip():
            return EMPTY
        if repeats(conversation, message):
            return REPEAT
        if role_confusion(goal, heard[-1] if heard else "", message):
            return CONFUSION
        if conversation.turn <= _VAGUE_TURNS and leaks(goal, message):
            return LEAK
        return ""

    def _persona(self, key: RngKey) -> str:
        """Drawn once for a conversation; candidates of a context have it in common even where nobody wrote it down."""
        names = sorted(self.config.personas)
        draws = key.at(role="persona", turn=0, candidate=None).stream()
        return names[int(draws.integers(len(names)))] if names else ""


def goal_text(goal: Goal) -> str:
    """What the player of the user gets to know of a goal: never the solution of a problem, nor the program."""
    parts = [goal.prompt]
    agenda = goal.agenda
    if agenda is not None:
        parts.append(f"At once you may say: {agenda.opening}")
        if agenda.items:
            parts.append("Only when asked: " + " ".join(item.text for item in agenda.items))
    elif goal.notes:
        if untold := [note for note in goal.notes if note not in goal.prompt]:
            parts.append("What you know: " + "; ".join(untold))
    elif makes(goal) == "text":
        parts.append(f"The text that you have in mind says: {goal.reference}")
    told = [
        f"{name.replace('_', ' ')}: {value}" for name, value in goal.metadata.items() if _is_preference(name, value)
    ]
    if told and makes(goal) == "text":
        parts.append("Your preferences: " + "; ".join(told))
    return "\n".join(parts)


def _is_preference(name: str, value: object) -> bool:
    return name != "agenda" and isinstance(value, str | int | float) and bool(str(value).strip())
