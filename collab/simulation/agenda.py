"""A simulated user that needs no language model: an agenda of things to bring up, and rules for when to do so.

The idea is Schatzmann et al., "Agenda-Based User Simulation for Bootstrapping a POMDP Dialogue System" (NAACL 2007).
The user opens with the topic alone. What it knows and wants is on its agenda:

- the goal's notes, what the user knows in its own words (`metadata.notes`). A goal without notes has the sentences of
  its reference instead: then pasting what the user says is the best text there can be;
- the preferences in the goal's metadata, such as tone and length;
- or, for a problem or a program, the items that the goal spells out (`collab.conversation.Agenda`).

A question earns what it asks for (`collab.parsing.questions`):

- a question about a slot (when, where, who for, what tone, ...) earns the hidden item that has it;
- an open question ("What should it say?") earns the next item, once: the same request in other words earns nothing;
- a question that asks the user for nothing earns nothing: world knowledge, definitions, reversed roles, offers;
- a question whose answer is known, that was asked before, or that comes on top of `items_per_answer` others in one
  message is needless. Interactivity counts it against the policy.

A draft earns no content: at most the *kind* of what it misses is named. A draft that covers enough of the notes ends
the chat. The user of a goal that spells its agenda out cannot judge the result, but knows what has not been told yet.

The user has no memory of its own. Its state is read off the conversation each time, so a history can be forked into
any number of futures, and a finished conversation can be scored by the same reading (`read`).
"""

from __future__ import annotations

from collections.abc import Sequence

from numpy.random import Generator

from collab.config.schema import AgendaUserConfig
from collab.conversation import Conversation, Goal
from collab.parsing.agenda_items import CONTENT, Item, agenda_of, form_of, manner_of, openings
from collab.parsing.agenda_state import State, read
from collab.randomness import RngKey
from collab.simulation.user import UserTurn


class AgendaUser:
    """The agenda-based `UserSimulator`.

    Args:
        config: Patience, generosity and what counts as satisfied.
        max_turns: At this turn the user asks for the final text (`task.max_turns`).
    """

    def __init__(self, config: AgendaUserConfig, max_turns: int) -> None:
        self.config, self.max_turns = config, max_turns

    async def respond(self, conversation: Conversation, key: RngKey) -> UserTurn:
        goal, draws = conversation.goal, key.stream()
        if not conversation.turns:
            text = _pick(draws, openings(goal))
        else:
            state = read(goal, conversation.assistant_texts, self.config.items_per_answer)
            if state.drafted and state.covered >= self.config.satisfied_at:
                return UserTurn("", "satisfied")
            if state.idle >= self.config.patience:
                return UserTurn("", "patience")
            text = self._answer(goal, state, draws)
        if conversation.turn == self.max_turns:
            finals = manner_of(goal).finals
            text += " " + _pick(draws, finals).format(form=form_of(goal)) if finals else ""
        return UserTurn(text)

    def _answer(self, goal: Goal, state: State, draws: Generator) -> str:
        items, manner = agenda_of(goal), manner_of(goal)
        if state.answered:
            told = [
                _pick(draws, _PREFERENCES).format(kind=_name(item), value=item.text)
                if item.preference
                else _as_sentence(item.text)
                for item in (items[i] for i in state.answered)
            ]
            return _pick(draws, manner.leads) + " " + " ".join(told)
        if state.drafted:
            missing = sorted({_name(items[i]) for i in range(len(items)) if i not in state.given})
            return _pick(draws, manner.unhappy).format(kind=_pick(draws, missing) if missing else "wording")
        return _pick(draws, _REACTIONS.get(state.refused, _LOST)).format(form=form_of(goal))


def _name(item: Item) -> str:
    """How the user names a kind of item without giving it away."""
    return "content" if item.kind == CONTENT else item.kind.replace("_", " ")


def _as_sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")


def _pick(draws: Generator, options: Sequence[str]) -> str:
    return options[int(draws.integers(len(options)))]


_PREFERENCES = ("For the {kind}: {value}.", "The {kind} should be {value}.", "As for {kind}, {value}.")
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
_REACTIONS: dict[str, tuple[str, ...]] = {  # to a message that earned nothing: why -> answers
    "too many": ("One thing at a time, please.", "That is a lot at once. What do you need to know first?"),
    "known": (
        "You have that already.",
        "I told you what I can about that.",
        "We have been there. Ask me something new.",
    ),
    "no wish": ("I have no wish there.", "That is up to you.", "I don't mind, you choose."),
    "reversed": ("You tell me.", "I was hoping that you would ask me something.", "You are the one to ask."),
    "world": _NO_IDEA,
    "definition": _NO_IDEA,
    "finished": ("I have none, that is why I am asking you.", "No, you are to write it."),
}
