"""What a simulated user must not do: take the assistant's part, give the goal away, stop for nothing, say nothing new.

Language models that play a user drift into what they were trained for. Each guard reads one message in the light of the
goal and of the conversation; what it finds is told to the model, which tries again (`collab.simulation.llm`). The rules
are for English. How well the guard against role confusion does is measured on messages that it was not made from:
`python -m benchmarks.guards`, docs/users.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from collab.conversation import Conversation, Goal
from collab.parsing.agenda_items import makes
from collab.parsing.english import sentences, without_questions, words
from collab.parsing.extraction import defines, last_program, states_answer

CONFUSION, LEAK, STOP, EMPTY, REPEAT = "role_confusion", "leak", "stop", "empty", "repeat"

_LEAKED = 9  # words in a row, as the goal has them, from which on it counts as given away
_COPIED = 8  # words in a row that make a message the text which is to be written
_WHOLE = 25  # words from which on a message may be the text itself
_DRAFT_WORDS = 8  # fewer are no draft

# Offers, and what follows a service.
_SERVES = re.compile(
    r"""
    \b(?: how \s (?:can|may|could) \s i \s (?:help|assist)
      | what \s can \s i \s (?:do|help)
      | (?:happy|glad|pleased|love|here|able|like|can|will|'ll)
          \s (?:\w+ \s)? (?:to \s)? (?:help|assist) \s (?:you|with)
      | (?:happy|glad|pleased) \s to \s (?:help|assist|hear|know)
      | i(?:'m|\sam) \s here \s to
      | let \s me \s know \s (?:if|what|whether|how|should|when)
      | (?:feel \s free|(?:do \s not|don't) \s hesitate) \s to
      | you(?:'re|\sare) \s (?:very \s | most \s)? welcome
      | (?:as|i(?:'m|\sam)) \s an? \s (?:ai|artificial|language \s model|assistant)
      | (?:shall|should) \s i \s (?:write|draft|make|start|add|create|prepare|go \s on|continue|rewrite)
      | (?:would \s you \s like|do \s you \s want) \s (?:me \s to|to \s|any|some|another|a \s)
      | is \s there \s any(?:thing) \s (?:else|specific|particular)
      | (?:sorry|apologies|apologi[sz]e)
          \s (?:to \s hear|for \s (?:the|my|any) \s (?:mistake|error|confusion|oversight))
      | (?:i|we) (?:'ve|\shave) \s (?:now \s | also \s)? (?:revised|updated|rewritten|corrected|tested|added|drafted
          |made \s (?:it|the|some|these)|included|fixed|adjusted|prepared)
      | i \s (?:updated|revised|rewrote|corrected|tested|drafted|fixed) \s (?:the|your|it)
    )\b""",
    re.VERBOSE,
)
# Says that it is the assistant, or speaks for it.
_IS_ASSISTANT = re.compile(
    r"\b(?:i am|i'm) (?:\w+, )?(?:an?|the|your|only an?) (?:\w+ ){0,2}(?:ai|chatbot|assistant|bot)\b"
    r"|\byour (?:\w+ )?assistant\b|^\W*(?:the )?(?:ai )?assistant(?: said)?\s*:",
    re.MULTILINE,
)
# A message that begins as an answer to a request.
_COMPLIES = re.compile(
    r"^\W*(?:sure|certainly|of course|absolutely|no problem|definitely|gladly|okay|ok|great|understood|got it)\b\W+"
    r"(?:here(?:'s| is| are)\b|let(?: me|'s)\b|i (?:can|will|would|'ll)\b|i'(?:ll|d)\b|the (?:\w+ ){1,3}now\b|below\b)"
)
_HANDS_OVER = re.compile(
    r"\bhere(?:'s| is| are) (?:a|an|the|your|one|my|some|how you|what you)\b"
    r"(?! (?:thing|problem|error|message|rest|question|part|point|data|list of what|facts?|details?|info\w*))"
)
# Interviewing: what the other side would like, has, or means.
_INTERVIEWS = re.compile(
    r"\b(?:what|which|how) (?:\w+ ){0,3}(?:would|do|did) you (?:like|want|prefer|need|have in mind|wish)\b"
    r"|\b(?:could|can|would) you (?:please )?(?:tell me|share|provide|clarify|specify|describe|give me)"
    r" (?:\w+ ){0,3}(?:more|details|about your|information|how you|what you|which|the (?:details|context|problem))"
    r"|\bplease (?:share|provide|tell me|specify|clarify) (?:\w+ ){0,2}(?:details|more|your|information|context)"
    r"|\bwhat have you (?:tried|done|got)\b|\bwhat would you (?:prefer|like)\b|\byou(?:'re| are) looking for\b"
)
# Teaching, praising, advising.
_TEACHES = re.compile(
    r"^\W*(?:good|great|excellent|nice) (?:question|try|job|work|attempt|draft|point)\b"
    r"(?!.*\b(?:but|only|please|could)\b)"
    r"|^\W*(?:exactly|correct|not quite|that is almost right|almost)\b[!.,]"
    r"|\bwell done\b|\bgive it (?:another|a) try\b|\btry to (?:compute|solve|find|work|think)\b"
    r"|\b(?:i(?:'d)? (?:suggest|recommend)|consider (?:adding|using|mentioning|including|writing)"
    r"|it is a good idea to)\b"
    r"|\byou (?:should|could|can|may|might|need to|have to|must) (?:also )?"
    r"(?:include|mention|consider|use|add|call|multiply|divide|subtract|improve|convert|try|apply|start|either"
    r"|adjust|change|modify|replace|choose|define|create)\b"
    r"|\bremember (?:that|to)\b|\bit depends on (?:your|the|what|how)\b|\byour (?:readers|audience)\b"
    r"|\blet me (?:explain|walk you|show you|break)|\bi'll walk you\b|\bhere's how\b"
)
_SOLVES = re.compile(
    r"\\boxed|\bstep by step\b|\blet's (?:solve|calculate|compute|find|work|start|break)\b|\bstep 1\b"
    r"|\blet [a-z] be the\b|\bto (?:find|solve|compute|calculate|determine) (?:the|this|it|for)\b[^.?!]*, (?:we|you)\b"
    r"|^\W*first(?:ly)?, (?:add|subtract|multiply|divide|find|compute|calculate|we|you|let)\b"
    r"|^\W*the (?:final |correct )?answer is\b|\bthe correct answer is\b|\bnow that we have\b"
)
_CALCULATES = re.compile(r"\d\s*(?:[-+*/×÷]|divided by|times|plus|minus)\s*[\d(].{0,30}?=|=\s*[-+(\d][^=]{0,40}=")
_EXPLAINS_CODE = re.compile(
    r"\b(?:this|the) (?:code|function|program|method) (?:\w+ )?"
    r"(?:splits|returns|removes|handles|takes|checks|compares|should return|would return|works by"
    r"|uses|converts|counts|sorts|iterates|preserves)"
    r"|\bis an? (?:python|built-in) \w+ that\b|\bexplanation of the\b|^\W*\*\*[^*\n]+\*\*\W*$",
    re.MULTILINE,
)
_DOCUMENT = re.compile(r"^\W*(?:dear\b|subject:|title:|to whom it may|\*\*[^*\n]{4,80}\*\*\s*\n|#+ )", re.IGNORECASE)
_GREETS_ALL = re.compile(r"^\W*(?:hi|hello|hey) (?:all|everyone|everybody|team|neighbou?rs|friends|colleagues)\b")
# What only stands in letters and templates.
_TEMPLATE = re.compile(
    r"\[(?:your |the |meeting |recipient(?:'s)? )?(?:name|date|title|address|signature|company|place|time)\]"
    r"|^\W*(?:best|kind|warm|kindest|warmest) regards\b|^\W*(?:sincerely|yours (?:truly|faithfully|sincerely))\b",
    re.MULTILINE,
)
_CODE_FENCE = re.compile(r"```[^`]*\b(?:def|class|import|return)\b", re.DOTALL)
# A user who says what he got, or wonders, does not solve.
_OWN_ATTEMPT = re.compile(
    r"\b(?:i (?:think|guess|got|get|tried|ran|have|wrote|had|mean|would|wanted)|i'd|my|maybe|me)\b"
)


def role_confusion(goal: Goal, heard: str, message: str) -> bool:
    """Whether a user's message is what the assistant would say: it serves, interviews, teaches, or does the work.

    Args:
        goal: What the user wants.
        heard: The assistant's latest message, "" before the first.
        message: The user's answer to it.
    """
    text = message.lower().replace("’", "'").strip()
    if any(rule.search(text) for rule in (_IS_ASSISTANT, _SERVES, _COMPLIES, _HANDS_OVER, _INTERVIEWS, _TEACHES)):
        return True
    artefact = makes(goal)
    if artefact == "text":
        return _is_document(goal, message, text)
    if artefact == "program":
        return _writes_program(heard, message) or bool(_EXPLAINS_CODE.search(text))
    if _SOLVES.search(text):
        return True
    return bool(_CALCULATES.search(text)) and "?" not in text and not _OWN_ATTEMPT.search(text)


def _is_document(goal: Goal, message: str, text: str) -> bool:
    long = len(words(message)) >= _WHOLE
    if _TEMPLATE.search(text):
        return True
    if _DOCUMENT.search(message.lstrip()) and (long or "\n" in message.strip()):
        return True
    if _GREETS_ALL.search(text) and long:
        return True
    return long and longest_run(message, goal.reference) >= _COPIED


def _writes_program(heard: str, message: str) -> bool:
    """A function or class that the assistant has not just shown: users do quote what they complain about."""
    if (fenced := _CODE_FENCE.search(message)) and fenced[0].split("\n", 1)[-1] not in heard:
        return True  # whether or not it can be parsed
    program = last_program([message])
    return defines(program) and " ".join(program.split()) not in " ".join(heard.split())


def leaks(goal: Goal, message: str) -> bool:
    """Whether a message gives the goal away in its own words: a long run of the request or of what is wanted.

    What the goal's agenda lets the user say at once is no secret.
    """
    secrets = [goal.prompt, goal.reference]
    if goal.agenda is not None:
        secrets += [item.text for item in goal.agenda.items]
    for allowed in sentences(goal.agenda.opening) if goal.agenda is not None else ():
        message = message.replace(allowed, " | ")
    return any(longest_run(part, secret) >= _LEAKED for secret in secrets for part in message.split(" | "))


def longest_run(one: str, other: str) -> int:
    """Words in a row that two texts have in common, at most."""
    a, b = words(one), words(other)
    return SequenceMatcher(None, a, b, autojunk=False).find_longest_match().size


def stops_too_early(conversation: Conversation, satisfied: bool, patience: int) -> bool:
    """Whether a user has no reason to leave.

    Satisfied before there is anything to be satisfied with; or tired of an assistant that has not had `patience` tries.
    """
    if satisfied:
        return not has_result(conversation.goal, conversation.assistant_texts)
    return len(conversation.turns) < patience


def has_result(goal: Goal, replies: Sequence[str]) -> bool:
    """Whether the assistant has produced anything of the kind that the user wants."""
    artefact = makes(goal)
    if artefact == "text":
        return any(len(words(without_questions(reply))) >= _DRAFT_WORDS for reply in replies)
    if artefact == "answer":
        return any(map(states_answer, replies))
    return bool(last_program(replies)) if artefact == "program" else bool(replies)


def repeats(conversation: Conversation, message: str) -> bool:
    """Whether the message is, but for its punctuation, one that was said in the conversation before, by either side."""
    said = [text for turn in conversation.turns for text in (turn.user, turn.reply.text)]
    return words(message) in map(words, said)
