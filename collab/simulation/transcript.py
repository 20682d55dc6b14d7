"""The prompt of a simulated user as a transcript that a language model goes on with.

A chat model that is told to answer as the user, in JSON, is twice the assistant: of its own chat, and of the one that
it reads. A small one falls into that part. Here it writes the next line of somebody's chat instead, as plain text:
`Person: ` stands at the end of the prompt. Each message is one line, so nothing that the assistant writes can begin a
line of the person's.
"""

from __future__ import annotations

import re

from collab.conversation import Conversation, Message
from collab.parsing.agenda_items import Item, agenda_of, makes, wanted_of

DONE, LEAVES = "[done]", "[gives up]"
PERSON, HELPER = "Person:", "Helper:"
MOST = 64  # tokens of a line
_LONG = 36  # words of a line that may have run into that limit

SYSTEM = """\
You write the next line of a person in a chat with a helper. {task} The person answers what the helper asked last from \
what the person knows: one or two things, in a short, casual sentence. The person says so when the person does not \
know. When the helper has written {result}, the person says what is missing or wrong. The person never asks the helper \
about these things, never offers help and never writes {result}."""
_TASKS = {
    "text": "The helper is to write a text for the person.",
    "answer": "The helper is to solve a problem for the person, who does not know the solution.",
    "program": "The helper is to write a Python program for the person, who writes no code.",
    "reply": "The helper is to answer the person.",
    "action": "The helper is to do something for the person.",
}
RESULTS = {
    "text": "the text",
    "answer": "an answer",
    "program": "the program",
    "reply": "an answer",
    "action": "what it has done",
}
FIRST = "The chat has not begun. The person asks for that in one short sentence, and tells nothing else yet."
# Of no goal that ships: the first message, an answer, and what is said about a text. They are the same in all prompts,
# so an engine that keeps prefixes reads them once.
EXAMPLES = (
    (
        f"""\
What the person wants: a recipe card about plum cake
{FIRST}

Chat:
Person:""",
        "hi, could you write me a recipe card about plum cake?",
    ),
    (
        """\
What the person wants: a poster about the garage sale
What the person knows:
- it starts at nine on Sunday
- mostly tools and old records
- tone: cheerful

Chat:
Person: hey, can you make a poster for our garage sale?
Helper: Sure! When does it start, and where is it?
Person:""",
        "sunday at nine. not sure yet which of our two yards it will be",
    ),
    (
        """\
What the person wants: a letter about the broken gate
What the person knows:
- the hinge came off in the storm
- the dog got out twice since
- readers: the landlord

Chat:
Person: I need a letter about the broken gate, please.
Helper: Dear Sir or Madam, the gate is broken and has to be repaired soon. Yours faithfully, a tenant
Person:""",
        "Nearly, but it goes to our landlord, and it does not say yet that the dog got out twice.",
    ),
)
LAST = "Now the person also asks for the finished result, because there is no more time."
ENDS = {
    True: f"If nothing is missing in it, the person types {DONE} and nothing else.",
    False: f"If the helper is of no use, the person types {LEAVES} and nothing else.",
}
SLIPS = (
    "This time the person mistypes a word or two.",
    "This time the person leaves something out.",
    "This time the person gets a small detail wrong.",
    "This time the person is a little unclear.",
)
# What the model is told, apart from the goal and the chat. Of the examples' answers only the second: people do type the
# first, and the words of the third.
INSTRUCTIONS = (
    SYSTEM,
    *_TASKS.values(),
    EXAMPLES[0][0],
    EXAMPLES[1][1],
    LAST,
    *ENDS.values(),
    *SLIPS,
)


def messages(conversation: Conversation, persona: str, last: bool, ends: list[bool], slip: str) -> list[Message]:
    """The prompt.

    Args:
        conversation: So far; the person writes its next message.
        persona: Who the person is, as a sentence without its subject; "" for nobody in particular.
        last: Whether it is the last message of the person.
        ends: Which ends of the chat there is a reason for: satisfied is True, giving up False.
        slip: One of `SLIPS`, or "".
    """
    goal = conversation.goal
    found = [Message("system", SYSTEM.format(task=_TASKS[makes(goal)], result=RESULTS[makes(goal)]))]
    for asked, answer in EXAMPLES:
        found += [Message("user", asked), Message("assistant", answer)]
    lines = [f"What the person wants: {one_line(wanted_of(goal))}"]
    lines += ["What the person knows:", *map(_fact, agenda_of(goal))] if conversation.turns else [FIRST]
    if persona:
        lines.append(f"The person {persona}.")
    lines += [LAST] * last + [ENDS[end] for end in ends] + [slip] * bool(slip)
    lines += ["", "Chat:"]
    for turn in conversation.turns:
        lines += [f"{PERSON} {one_line(turn.user)}", f"{HELPER} {one_line(turn.reply.text)}"]
    found.append(Message("user", "\n".join([*lines, PERSON])))
    return found


def one_line(text: str) -> str:
    return " ".join(text.split())


def _fact(item: Item) -> str:
    return f"- {item.kind.replace('_', ' ')}: {item.text}" if item.preference else f"- {one_line(item.text)}"


def line_of(text: str) -> str:
    """What the person says in a raw reply: its first line, without a label before it or what follows one behind it.

    Of a line that ran into the length limit the last, unfinished sentence is dropped if there is one before it.
    """
    line = text.strip().split("\n")[0].removeprefix(PERSON)
    line = re.split(rf"\s(?:{HELPER}|{PERSON})", line)[0].strip()
    if len(line) > 2 and line[0] == line[-1] == '"' and line.count('"') == 2:
        line = line[1:-1]
    if len(line.split()) >= _LONG and line[-1] not in ".!?" and (whole := re.search(r"^.*[.!?](?=\s)", line)):
        return whole[0]
    return line
