"""A simulated user without a language model: an agenda of things to bring up, and rules for when to do so.

The idea is from Schatzmann et al., "Agenda-Based User Simulation for Bootstrapping a POMDP Dialogue System" (NAACL
2007). The user opens with the topic alone. On its agenda are

- the goal's notes, what the user knows in its own words (`metadata.notes`). A goal without notes has the sentences of
  its reference instead; then pasting what the user says is the best possible text;
- the preferences in the goal's metadata, such as tone and length;
- or, for a problem or a program, the items that the goal spells out (`collab.conversation.Agenda`).

A question earns what it asks for (`collab.parsing.questions`):

- a question about a slot (when, where, who for, what tone, ...) earns the hidden item that fills it;
- an open question ("What should it say?") earns the next item, once. The same request in other words earns nothing;
- a question that asks for nothing of the user's earns nothing: world knowledge, definitions, reversed roles, offers;
- a question is surplus if its answer is known, if it was asked before, or if it comes on top of `items_per_answer`
  others in one message. Interactivity counts it, and a question for nothing of the user's, against the policy.

A draft earns no content: the user names at most the *kind* of what it misses. A draft that covers enough of the notes
ends the chat. With an agenda that is spelt out the user cannot judge a result, but knows which items it has not given.

The user has no memory. It reads its state off the conversation each time (`read`), so a history can be forked into any
number of futures, and a finished conversation can be scored by the same rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from numpy.random import Generator

from collab.config.schema import AgendaUserConfig
from collab.conversation import Conversation, Goal
from collab.parsing.agenda_items import (
    Item,
    agenda_of,
    form_of,
    makes,
    manner_of,
    openings,
    topic_of,
    wanted_of,
)
from collab.parsing.agenda_state import State, read
from collab.parsing.english import words
from collab.randomness import RngKey
from collab.simulation.typos import mistyped
from collab.simulation.user import UserTurn


@dataclass(frozen=True)
class Plan:
    """A message of the user, or why there is none.

    Attributes:
        lead: Its beginning; without `facts`, all that it says about the assistant's message.
        facts: The items that it gives, as the user says them.
        final: The request for the result, in the last turn.
        end: As in `UserTurn`.
        wants: What the first message asks for, as `wanted_of`.
    """

    lead: str = ""
    facts: tuple[str, ...] = ()
    final: str = ""
    end: str = ""
    wants: str = ""

    @property
    def text(self) -> str:
        return _joined([part for part in (self.lead, *self.facts, self.final) if part]).rstrip("\n")


class AgendaUser:
    """The agenda-based `UserSimulator`.

    Args:
        config: Patience, items per answer, the coverage that satisfies the user, vagueness and noise.
        max_turns: The turn at which the user asks for the final text (`task.max_turns`).
    """

    def __init__(self, config: AgendaUserConfig, max_turns: int) -> None:
        self.config, self.max_turns = config, max_turns

    async def respond(self, conversation: Conversation, key: RngKey) -> UserTurn:
        plan = self.plan(conversation, key)
        return UserTurn("", plan.end) if plan.end else UserTurn(plan.text)

    def plan(self, conversation: Conversation, key: RngKey) -> Plan:
        """What the user says next."""
        goal, draws = conversation.goal, key.stream()
        if not conversation.turns:
            # A draw of its own: without vagueness and noise the user says what it says in a config without them.
            told = key.at(role=f"{key.role}/vague").stream().random() >= self.config.vagueness
            plan = Plan(_pick(draws, openings(goal, told)), wants=wanted_of(goal, told))
        else:
            state = read(goal, conversation.assistant_texts, self.config.items_per_answer)
            if state.drafted and state.covered >= self.config.satisfied_at:
                return Plan(end="satisfied")
            if state.idle >= self.config.patience:
                return Plan(end="patience")
            plan = self._answer(goal, state, draws)
            if len(conversation.turns) == 1 and self.config.vagueness:
                plan = _with_topic(plan, conversation)
        finals = manner_of(goal).finals if conversation.turn == self.max_turns else ()
        plan = replace(plan, final=_pick(draws, finals).format(form=form_of(goal))) if finals else plan
        return self._typed(plan, goal, key) if self.config.noise else plan

    def _typed(self, plan: Plan, goal: Goal, key: RngKey) -> Plan:
        """The plan with typing errors. The topic is typed right, and whatever is about code."""
        draws = key.at(role=f"{key.role}/typos").stream()
        spared = frozenset(words(topic_of(goal)))

        def typed(text: str) -> str:
            return mistyped(text, self.config.noise, draws, spared)

        if makes(goal) == "program":
            return replace(plan, final=typed(plan.final))
        lead, facts, final = typed(plan.lead), tuple(map(typed, plan.facts)), typed(plan.final)
        return replace(plan, lead=lead, facts=facts, final=final, wants=typed(plan.wants))

    def _answer(self, goal: Goal, state: State, draws: Generator) -> Plan:
        items, manner = agenda_of(goal), manner_of(goal)
        if state.answered:
            said = tuple(_say(items[i], draws) for i in state.answered)
            leads = manner.leads
            if items[state.answered[0]].preference:  # "It should say this:" announces a note
                leads = tuple(lead for lead in leads if not lead.endswith(":"))
            return Plan(_pick(draws, leads), said)
        if state.drafted:
            missing = sorted({_name(items[i]) for i in range(len(items)) if i not in state.given})
            return Plan(_pick(draws, manner.unhappy).format(kind=_pick(draws, missing) if missing else "wording"))
        return Plan(_pick(draws, _REACTIONS.get(state.refused, _LOST)).format(form=form_of(goal)))


def _with_topic(plan: Plan, conversation: Conversation) -> Plan:
    """The plan of the second message, with the topic if the first message left it out."""
    topic = topic_of(conversation.goal)
    if conversation.goal.agenda is not None or not topic or topic in conversation.turns[0].user:
        return plan
    return replace(plan, facts=(f"It is about {topic}.", *plan.facts))


def _say(item: Item, draws: Generator) -> str:
    text = item.text
    if item.preference:
        said = _pick(draws, _PREFERENCES.get(item.kind, _PREFERENCE)).format(kind=_name(item), value=text)
        return said[0].upper() + said[1:]
    if "\n" in text:  # with code in it
        return f"{text}\n"
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")


def _joined(parts: Sequence[str]) -> str:
    return "".join(part if part.endswith("\n") else f"{part} " for part in parts).removesuffix(" ")


def _name(item: Item) -> str:
    """The kind of an item, which does not give it away."""
    return item.kind.replace("_", " ")


def _pick(draws: Generator, options: Sequence[str]) -> str:
    return options[int(draws.integers(len(options)))]


_PREFERENCES = {
    "tone": ("It should sound {value}.", "Make it sound {value}.", "I want it to sound {value}."),
    "audience": ("It is for {value}.", "It is meant for {value}.", "{value} will read it."),
    "length": ("{value}, please.", "{value} will do.", "{value} should be enough."),
}
_PREFERENCE = ("For the {kind}: {value}.", "The {kind} should be {value}.", "As for {kind}, {value}.")
_LOST = (
    "I am not sure what you mean.",
    "That does not help me much.",
    "Hmm, that is not really the point.",
)
_NO_IDEA = (
    "I don't know, I just need the {form}.",
    "No idea. How would that help with the {form}?",
    "That is not what the {form} is for.",
)
_REACTIONS = {  # why a message earned nothing -> answers
    "too many": ("One thing at a time, please.", "That is a lot at once. What do you need to know first?"),
    "known": ("You know that already.", "That is all I can say about it.", "I told you what I know about that."),
    "again": ("You asked that before.", "We have been there. Ask me something new."),
    "no wish": ("I have nothing on that.", "I can't tell you anything about that.", "Nothing comes to mind, sorry."),
    "reversed": ("You tell me.", "I was hoping that you would ask me something.", "You are the one to ask."),
    "world": _NO_IDEA,
    "definition": _NO_IDEA,
    "finished": ("I have none, that is why I am asking you.", "No, you are to write it."),
}
