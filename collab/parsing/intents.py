"""What a model that plays the user is told about a goal, and how it says that a conversation has run its course."""

from __future__ import annotations

from collab.conversation import Goal
from collab.parsing.agenda_items import makes, preferences_of, topic_of

END = "<|endconversation|>"  # what a user model writes in place of a message, as UserLM-8b does


def intent_of(goal: Goal) -> str:
    """The intent of a user model, its system message; never the solution of a problem or a program."""
    return f"You are a user who wants this from an AI assistant.\n{goal_text(goal)}"


def goal_text(goal: Goal) -> str:
    """What the player of the user learns about a goal; never the solution of a problem or a program."""
    parts = [goal.prompt]
    agenda = goal.agenda
    if agenda is not None:
        parts.append(f"At once you may say: {agenda.opening}")
        if agenda.items:
            parts.append("Only when asked: " + " ".join(item.text for item in agenda.items))
    elif goal.notes:
        if untold := [note for note in goal.notes if note not in goal.prompt]:
            parts.append("What you know: " + "; ".join(untold))
    else:
        parts.append(f"The text that you have in mind says: {goal.reference}")
    if makes(goal) == "text" and (topic := topic_of(goal)) and topic not in goal.prompt:
        parts.append(f"It is about: {topic}")
    preferences = [f"{name.replace('_', ' ')}: {value}" for name, value in preferences_of(goal).items()]
    if preferences:
        parts.append("Your preferences: " + "; ".join(preferences))
    return "\n".join(parts)
