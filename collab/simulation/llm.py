"""A simulated user that a language model plays: any `ChatModel`, told the goal, a persona and how people talk.

As in the paper (CollabLLM, section 3.1 and appendix) the user stays in its role, is brief and vague at first, has
preferences, makes small mistakes, keeps its style and can end the chat. It answers in JSON with its view of the current
answer, its thought and its message. Small models fall out of such a role; `user.form=transcript` has them write the
next line of a transcript instead (`collab.simulation.transcript`). The wording of the prompts is our own. Three things
are not left to the model:

- The request's key decides whether a message has a slip, and which persona plays. So candidates of one context face the
  same ones, whatever the model is and wherever it runs.
- Each message has to pass the guards (`collab.simulation.guards`). The model is asked again for one that does not, a
  bounded number of times; then the conversation ends as invalid and counts nowhere.
- The assistant's messages stand behind a mark that it cannot know, or on one line each: it cannot speak for the user.

With a prompt of one's own (`user.prompt`), such as that of the official code, only the guards are left of these.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any

from collab.chat.base import CONTEXT_FULL, ChatModel, Sampling
from collab.chat.structured import FAILED, SHAPE, Answer, Unfit, as_text, ask, fence, find_object, mark, schema_of
from collab.config.schema import LLMUserConfig
from collab.conversation import Conversation, Message, official_history
from collab.parsing.agenda_items import form_of, makes, wanted_of
from collab.parsing.intents import goal_text
from collab.randomness import RngKey
from collab.simulation import transcript
from collab.simulation.guards import echoes, foreign, leaks, repeats, role_confusion, stops_too_early, tells_too_much
from collab.simulation.user import UserTurn, draw_persona, invalid

SATISFIED, GIVES_UP = "[[SATISFIED]]", "[[GIVE UP]]"
OFFICIAL_SIGNAL = "[[TERMINATE CHAT]]"  # in the official code: the user has what it wants, or it gives up
CONFUSION, LEAK, STOP, EMPTY, REPEAT = "role_confusion", "leak", "stop", "empty", "repeat"
LANGUAGE, ECHO = "language", "echo"

VAGUE_TURNS = 2  # first messages that must not give the goal away in its own words
# Models leave brackets out, or take others: one bracket, a bare signal in capitals, a message of nothing else.
_SIGNAL = re.compile(
    r"""
    [\[({<] \s* (?:user \s)? ((?i:satisfied | give (?:s|n)? [\s_-]* up | giving [\s_-]* up)) \s* [\])}>]
    | \b (SATISFIED | GIVES? [\s_-]* UP) \b
    | ^ \W* ((?i:satisfied | give [\s_-]* up)) \W* $
    | \[ \s* ((?i:done)) \s* \] \W* $
    """,
    re.VERBOSE,
)
_UNFILLED = re.compile(r"<[^<>]*>")  # a placeholder of the JSON below, given back

_TASKS = {
    "text": "It is to write {form} for you.",
    "answer": "It is to solve a problem for you. You do not know the solution, and you do not work it out.",
    "program": "It is to write a Python program for you. You do not write code.",
    "reply": "It is to answer you.",
    "action": "It is to do something for you.",
}
_OFFICIAL_TASKS = {  # how the official code names what is made
    "text": "document editing",
    "answer": "question answering",
    "program": "code generation",
    "reply": "question answering",
    "action": "question answering",
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
# Small models follow the last words of a prompt best, so these say what the message is to do.
_FIRST = """\
The chat has not begun, and the assistant knows nothing yet. You write the first message, one short sentence in which \
you ask the assistant for this, with no further detail: {wanted}"""
_NEXT = """\
The chat so far. Each message begins with the mark {mark} and who wrote it:
{chat}

It is your turn to write, and this is your message number {number} of at most {most}. If the assistant asks for \
something, you tell it a detail or two, or that you do not know. If it has written {result}, you say what is missing \
or wrong."""
_LAST = " It is your last one: ask for the finished result."
_SLIPS = (
    " This time you mistype a word or two.",
    " This time you leave out something that you meant to say.",
    " This time you get a small detail wrong; you may correct it later.",
    " This time you are a little unclear about what you mean.",
)

_REMINDERS = {
    SHAPE: 'That was not the JSON object. Answer with {"current_answer": ..., "thought": ..., FIELD: ...} only.',
    CONFUSION: "You spoke as the assistant. You are the person who wants something, and you leave the work to it. "
    "Answer again, as that person, in the same JSON form.",
    LEAK: "You told too much of what you want. Say less, and in your own words. Answer again in the same JSON form.",
    STOP: "There is no reason yet to end the chat. Write a message instead, in the same JSON form.",
    EMPTY: "Your message was empty. Write what you want to say next, in the same JSON form.",
    LANGUAGE: "You changed the language. Write in the language of what you want, in the same JSON form.",
    ECHO: "You gave your instructions back. Say what that person would type, in the same JSON form.",
    REPEAT: "That has been said in this chat already. Say something else, in the same JSON form.",
}
# What the model is told, apart from the goal and the chat.
INSTRUCTIONS = tuple(
    re.sub(r"\{\w+\}", "|", text) for text in (_SYSTEM, _FIRST, _NEXT, _LAST, *_SLIPS, *_REMINDERS.values())
)


def turn_of(answer: Answer[UserTurn], problems: Counter[str], user: str = "") -> UserTurn:
    """The turn in an answer; one that ends the chat as invalid if no reply could be used. Counts what was refused."""
    problems.update(f"user_{kind}" for kind in answer.problems)
    if answer.value is None:
        problems["user_invalid"] += 1
        return UserTurn("", invalid(answer.problems[-1]), user, answer.refused)
    return replace(answer.value, user=user, refused=answer.refused)


def end_signal(message: str) -> str:
    """Why a message ends the chat, by the signal in it: "satisfied", "patience", or "" without one."""
    signal = _SIGNAL.search(message)
    if signal is None:
        return ""
    return "satisfied" if signal[signal.lastindex or 0].lower() in ("satisfied", "done") else "patience"


class LLMUser:
    """The `UserSimulator` that a `ChatModel` plays.

    Args:
        config: Personas, patience, mistakes, retries and how the model is sampled.
        max_turns: Maximum turns of a conversation (`task.max_turns`).
        model: Plays the user.
        problems: Counts replies that were not usable, as `user_<kind>`, and lost conversations, as `user_invalid`.
    """

    def __init__(
        self, config: LLMUserConfig, max_turns: int, model: ChatModel, problems: Counter[str] | None = None
    ) -> None:
        self.config, self.max_turns, self.model = config, max_turns, model
        self.problems = Counter() if problems is None else problems
        for kind in (*_REMINDERS, FAILED, CONTEXT_FULL, "invalid"):
            self.problems[f"user_{kind}"] += 0  # so that each step logs all names
        self._field = "response" if config.prompt else "message"  # of the JSON
        self._plain = config.form == "transcript" and not config.prompt
        told = [config.prompt] if config.prompt else transcript.INSTRUCTIONS if self._plain else INSTRUCTIONS
        self._instructions = [*told, *(() if config.prompt else config.personas.values())]
        if self._plain:  # a line
            most = min(config.max_new_tokens, transcript.MOST)
            self._sampling = Sampling(most, config.temperature, stop=("\n",), adapter=False)
        else:
            self._sampling = Sampling(config.max_new_tokens, config.temperature, adapter=False)

    async def respond(self, conversation: Conversation, key: RngKey) -> UserTurn:
        persona = conversation.user or draw_persona(() if self.config.prompt else self.config.personas, key)
        answer = await ask(
            self.model,
            self.messages(conversation, key, persona),
            replace(self._sampling, schema=self.schema(conversation)),
            key,
            lambda text: self.read(conversation, text),
            self.config.retries,
        )
        return turn_of(answer, self.problems, persona)

    def schema(self, conversation: Conversation) -> str:
        """The schema of the JSON, "" for a transcript.

        A message is a text, or words that end the chat where the user has a reason to.

        A text does not begin with a bracket. The lengths leave room for the end of the object, at three characters a
        token.
        """
        if self._plain:
            return ""
        most = self.config.max_new_tokens
        short = {"type": "string", "maxLength": most // 3}
        thought = {"type": "string", "maxLength": most // 2}
        message: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": most}
        if not self.config.prompt:
            ends = [SATISFIED if satisfied else GIVES_UP for satisfied in self._ends(conversation)]
            message["pattern"] = r"^[^\[\s][\s\S]*$"  # anchored: some servers match a part, some the whole
            if ends:
                message = {"anyOf": [message, {"type": "string", "enum": ends}]}
        return schema_of(current_answer=short, thought=thought, **{self._field: message})

    def _ends(self, conversation: Conversation) -> list[bool]:
        """Which ends of the chat the user has a reason for: satisfied (True), giving up (False)."""
        return [end for end in (True, False) if not stops_too_early(conversation, end, self.config.patience)]

    def messages(self, conversation: Conversation, key: RngKey, persona: str) -> list[Message]:
        """The prompt of the model. `key` decides about the slip and the mark."""
        goal, config = conversation.goal, self.config
        if config.prompt:
            filled = config.prompt.format(
                task_desc=_OFFICIAL_TASKS[makes(goal)],
                single_turn_prompt=goal.prompt,
                chat_history=official_history(conversation),
                terminal_signal=OFFICIAL_SIGNAL,
            )
            return [Message("user", filled)]
        draws = key.stream()
        slips = transcript.SLIPS if self._plain else _SLIPS
        slip = slips[int(draws.integers(len(slips)))] if draws.random() < config.mistakes else ""
        if self._plain:
            last, ends = conversation.turn == self.max_turns, self._ends(conversation)
            return transcript.messages(conversation, config.personas.get(persona, ""), last, ends, slip)
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
            asked = _NEXT.format(
                mark=sign,
                chat=chat,
                number=conversation.turn,
                most=self.max_turns,
                result=transcript.RESULTS[makes(goal)],
            )
            if conversation.turn == self.max_turns:
                asked += _LAST
        else:
            asked = _FIRST.format(wanted=wanted_of(goal))
        return [Message("system", system), Message("user", asked + slip)]

    def read(self, conversation: Conversation, text: str) -> UserTurn:
        """The user's turn in a raw reply.

        Raises:
            Unfit: The reply has the wrong shape, or a guard refuses it.
        """
        if self._plain:
            message = transcript.line_of(text)
        else:
            answer = find_object(text, self._field)
            if answer is None or isinstance(answer[self._field], dict | list):
                raise self._unfit(SHAPE)
            message = as_text(answer[self._field])
        end = self._end(conversation, message)
        if problem := self._problem(conversation, message, end):
            raise self._unfit(problem)
        return UserTurn("" if end else message, end)

    def _unfit(self, problem: str) -> Unfit:
        return Unfit(problem, "" if self._plain else _REMINDERS[problem].replace("FIELD", f'"{self._field}"'))

    def _end(self, conversation: Conversation, message: str) -> str:
        """Why a message ends the chat; "" if it does not."""
        if self.config.prompt:
            if OFFICIAL_SIGNAL not in message:
                return ""
            return "patience" if stops_too_early(conversation, True, self.config.patience) else "satisfied"
        return end_signal(message)

    def _problem(self, conversation: Conversation, message: str, end: str) -> str:
        goal, heard = conversation.goal, conversation.assistant_texts
        if _UNFILLED.fullmatch(message):
            return SHAPE
        if end:
            return STOP if stops_too_early(conversation, end == "satisfied", self.config.patience) else ""
        if not message.strip():
            return EMPTY
        if repeats(conversation, message):
            return REPEAT
        if foreign(message, goal.prompt, *heard):
            return LANGUAGE
        if echoes(message, self._instructions):
            return ECHO
        if role_confusion(goal, heard[-1] if heard else "", message):
            return CONFUSION
        spoken = len(conversation.turns) + 1  # without turns of tools
        if spoken <= VAGUE_TURNS and leaks(goal, message):
            return LEAK
        # A prompt of one's own may not ask for a vague beginning.
        if not self.config.prompt and tells_too_much(goal, message, spoken):
            return LEAK
        return ""
