"""What a simulated user must not do: play the assistant, give the goal away, leave without a reason, repeat itself,
change to another language.

Language models that play a user drift into the assistant's part. Each guard reads one message. If it refuses it, the
model is told why and tries again (`collab.simulation.llm`). The rules are for English. `python -m benchmarks.guards`
measures the guard against role confusion on held-out messages (docs/users.md).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from difflib import SequenceMatcher

from collab.conversation import Conversation, Goal
from collab.parsing.agenda_items import agenda_of, form_of, makes, notes_of, topic_of
from collab.parsing.agenda_state import has_result, read_questions
from collab.parsing.english import content_words, questions, sentences, words
from collab.parsing.extraction import defines, last_program

LEAKED = 9  # words in a row from the goal that give it away
_COPIED = 8  # words in a row from the reference that make a long message a copy of it
_ANSWERED = 2  # items of the agenda that the second message may tell
_ECHOED = 6  # words in a row from its instructions
_WHOLE = 25  # words of a long message, which may be the text itself

# Offers help, or reports what it has done.
_SERVES = re.compile(
    r"""
    \b(?: how \s (?:can|may|could) \s i \s (?:help|assist)
      | what \s can \s i \s (?:do|help)
      | (?:happy|glad|pleased|love|here|able|like|can|will|'ll)
          \s (?:\w+ \s)? (?:to \s)? (?:help|assist) \s (?:you|with)
      | (?:happy|glad|pleased) \s to \s (?:help|assist|hear|know|provide|answer|share|chat|discuss)
      | i(?:'m|\sam) \s here \s to
      | let \s me \s know \s (?:if|what|whether|how|should|when|the)
      | (?:feel \s free|(?:do \s not|don't) \s hesitate) \s to
      | you(?:'re|\sare) \s (?:very \s | most \s)? welcome
      | (?:as|i(?:'m|\sam)) \s an? \s (?:ai|artificial|language \s model|assistant)
      | (?:shall|should) \s i \s (?:write|draft|make|start|add|create|prepare|go \s on|continue|rewrite)
      | (?:would \s you \s like|do \s you \s want) \s (?:me \s to|to \s|any|some|another|a \s)
      | is \s there \s (?:any|some)(?:thing) \s (?:else|specific|particular) (?! \s (?:we|i)\b)
      | if \s you \s (?:have|need) \s (?:any|more|further|additional) \s (?:\w+ \s)?
          (?:questions?|help|information|details|assistance|changes)
      | do \s you \s have \s any \s (?:\w+ \s)? (?:questions|preferences|requirements|details|ideas \s in)
      | i(?:'d|\swould|'ll|\swill) \s be \s (?:happy|glad|delighted) \s to
      | i(?:'ll|\swill|\scan) \s (?:try \s to \s)?
          (?:write|draft|create|prepare|compose|help|assist|guide|provide \s you|give \s you \s a)
      | (?:my|our) \s best \s to \s (?:help|assist) | (?:i|we) \s can \s do \s to \s help
      | sorry \s for \s (?:the|your) \s loss
      | sorry, \s (?:it|there) \s (?:seems|appears|looks)
      | let(?:'s|\sus) \s (?:begin|start|get|talk|discuss|brainstorm|explore|create|write|draft|focus)
      | i(?:'ll|\swill) \s (?:\w+ \s){0,8} (?:craft|draft|compose)
      | (?:can't|cannot|can \s not|not \s able \s to|unable \s to) \s (?:help|assist|provide|handle|answer)
      | (?:don't|do \s not) \s have \s (?:access|enough \s information)
      | (?:how|what) \s i \s can \s (?:help|assist|handle|do \s for \s you)
      | thank \s you \s for \s (?:reaching \s out|your \s (?:question|request|interest|inquiry|message|patience))
      | (?:sorry|apologies|apologi[sz]e)
          \s (?:to \s hear|for \s (?:the|my|any) \s (?:mistake|error|confusion|oversight))
      | (?:i|we) (?:'ve|\shave) \s (?:now \s | also \s)? (?:revised|updated|rewritten|corrected|tested|added|drafted
          |made \s (?:it|the|some|these)|included|fixed|adjusted|prepared)
      | i \s (?:updated|revised|rewrote|corrected|tested|drafted|fixed) \s (?:the|your|it)
    )\b""",
    re.VERBOSE,
)
# Calls itself the assistant, or speaks of the two sides as a narrator does.
_IS_ASSISTANT = re.compile(
    r"\b(?:i am|i'm) (?:\w+, )?(?:an?|the|your|only an?) (?:\w+ ){0,2}(?:ai|chatbot|assistant|bot)\b"
    r"|\b(?:your|the) (?:\w+ )?(?:assistant|helper)\b|\bthe user(?:'s)?\b"
    r"|^\W*(?:the )?(?:ai )?assistant(?: said)?\s*:|^\W*[0-9a-f]{8} assistant\b"
    r"|^\W*the person (?!who\b|that\b|in\b|at\b|to\b|with\b|from\b|we\b|i\b)\w+",
    re.MULTILINE,
)
# Begins as an answer to a request.
_COMPLIES = re.compile(
    r"^\W*(?:sure|certainly|of course|absolutely|no problem|definitely|gladly|okay|ok|great|understood|got it)\b\W+"
    r"(?:here(?:'s| is| are)\b|let(?: me|'s)\b|i (?:can|will|would|'ll)\b|i'(?:ll|d)\b|the (?:\w+ ){1,3}now\b|below\b)"
)
_HANDS_OVER = re.compile(
    r"\bhere(?:'s| is| are) (?:a|an|the|your|one|my|some|how you|what you)\b"
    r"(?! (?:thing|problem|error|message|rest|question|part|point|data|list of what|facts?|details?|info\w*))"
)
# Asks what the other side would like, has, or means.
_INTERVIEWS = re.compile(
    r"\b(?:what|which|how) (?:\w+ ){0,3}(?:would|do|did) you (?:like|want|prefer|need|have in mind|wish)\b"
    r"|\b(?:could|can|would) you (?:please )?(?:tell me|share|provide|clarify|specify|describe|give me)"
    r" (?:\w+ ){0,3}(?:more|details|about your|information|how you|what you|which|the (?:details|context|problem))"
    r"|\bplease (?:share|provide|tell me|specify|clarify) (?:\w+ ){0,2}(?:details|more|your|information|context)"
    r"|\byour (?:\w+ )?(?:request|needs|preferences|requirements|inquiry|interests|career)\b"
    r"|\bwhat have you (?:tried|done|got)\b|\bwhat would you (?:prefer|like)\b|\byou(?:'re| are) looking for\b"
    r"|\bplease (?:describe|explain|list)\b|\bneed (?:some|any) help\b[^.?!]*\?"
    r"|\btell me (?:\w+ )?(?:about|how(?! (?:many|much|long))|what you know|more)\b"
    r"|\b(?:need|provide|share|put|give\w*|have) (?:\w+ ){0,3}(?:more|enough|further|additional|all the|that)"
    r" (?:\w+ )?(?:details?|information|info|context)\b"
    r"|\bplease provide\b(?! (?:\w+ )?an? )(?!.*\b(?:text|draft|version|finished|final)\b)"
)
# Asks as one of those would whom the text is for.
_ASKS_AS_READER = re.compile(
    r"\bi(?:'d| would)? (?:really )?(?:want|like|love|need) to (?:know|learn|hear|understand|find out|see)\b"
    r"(?! (?:a|the|your|some) (?:\w+ )?(?:text|draft|version))"
    r"|\bi(?:'m| am) (?:\w+ )?(?:curious|interested in|wondering|looking for (?:\w+ )?(?:details|information|advice))"
)
# Speaks to the readers of a text.
_TO_READERS = re.compile(
    r"\bwe(?:'re| are) (?:so |very )?(?:excited|happy|thrilled|pleased|delighted|proud|looking forward|joining)\b"
    r"|\b(?:come|please) join us\b|^\W*join us\b|\binvite you\b|\bsee you (?:there|soon|then)\b"
    r"|\byou(?:'ll| will) love\b|\bdon't miss\b|\bhave (?:a (?:nice|great|good|wonderful|lovely) |fun\b)"
    r"|\bget ready\b"
)
# Teaches, praises, advises.
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
_TAKES_NOTE = re.compile(
    r"(?:okay|ok|got it|understood|sure|sure, go ahead|all right|alright|of course|certainly|great question)\W*"
)
_REMARKS = re.compile(r"^good question\.")  # of somebody who was asked
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
_GREETS_ALL = re.compile(
    r"^\W*(?:hi|hello|hey|good (?:morning|evening|afternoon))\W+"
    r"(?:all|everyone|everybody|team|neighbou?rs|friends|colleagues)\b"
)
# Occurs in letters and templates only.
_TEMPLATE = re.compile(
    r"\[(?:your |the |meeting |(?:[\w']+ ){1,2})?(?:name|date|title|address|signature|company|place|time)\]"
    r"|^\W*(?:best|kind|warm|kindest|warmest) regards\b|^\W*(?:sincerely|yours (?:truly|faithfully|sincerely))\b",
    re.MULTILINE,
)
_CODE_FENCE = re.compile(r"```[^`]*\b(?:def|class|import|return)\b", re.DOTALL)
_OWN_QUESTION = re.compile(r"\b(?:i|me|my|mine|we|us|our|ours)\b|^\W*(?:could|can|would) (?:the|it|this|that|there)\b")
_ORDERS = re.compile(r"\b(?:write|provide|give|make|draft|create|prepare|do)\b")
# Speaks of the play: how to be a user, and the form of the answer.
_PLAY = re.compile(
    r"\b(?:brief|short) (?:and|but) vague\b|\bvague (?:and|but) brief\b|\bcurrent[ _]answer\b|\bjson\b"
    r"|\b(?:first|second|third|next|last|earlier|previous) messages?\b|\bnot perfect\b|\bmistyped?\b"
    r"|\b(?:chat|conversation) has(?: not|n't) (?:yet )?(?:begun|started)\b"
    r"|\b(?:in|of) (?:my|your) own words\b|\bdetail or two\b|\bslips? (?:in|this time)\b|\bas people type\b"
    r"|\b(?:stay|remain|keep) (?:in|that) (?:role|character|person)\b|</?(?:message|goal|thought)\b"
    r"|^<[^<>]*>$|\b[0-9a-f]{8} (?:you|assistant)\b"
)
# Reports its own attempt, or wonders; that is no solution.
_OWN_ATTEMPT = re.compile(
    r"\b(?:i (?:think|guess|got|get|tried|ran|have|wrote|had|mean|would|wanted)|i'd|my|maybe|me)\b"
)


def role_confusion(goal: Goal, heard: str, message: str) -> bool:
    """Whether a user's message is what an assistant would say: it serves, interviews, teaches, or does the work.

    Args:
        goal: What the user wants.
        heard: The assistant's latest message, "" before the first.
        message: The user's answer to it.
    """
    text = message.lower().replace("’", "'").strip()
    if "?" in heard:
        text = _REMARKS.sub("", text)
    if not heard and _TAKES_NOTE.fullmatch(text):
        return True
    if any(rule.search(text) for rule in (_IS_ASSISTANT, _SERVES, _COMPLIES, _HANDS_OVER, _INTERVIEWS, _TEACHES)):
        return True
    artefact = makes(goal)
    if artefact == "text":
        # Of a draft one may ask where the date is.
        if not has_result(goal, heard) and (_ASKS_AS_READER.search(text) or _interviews(goal, message)):
            return True
        return bool(_TO_READERS.search(text)) or _is_document(goal, message, text) or _gives_away_its_own(goal, text)
    if artefact == "program":
        return _writes_program(heard, message) or bool(_EXPLAINS_CODE.search(text))
    if _SOLVES.search(text):
        return True
    return bool(_CALCULATES.search(text)) and "?" not in text and not _OWN_ATTEMPT.search(text)


def _interviews(goal: Goal, message: str) -> bool:
    """Whether it asks the other side for what is on its own agenda: "When is it?"

    A question of its own has an "I", or asks for a change ("Could the end be shorter?"). And one may ask for the text
    itself ("Can you write a notice about it?").
    """
    form = content_words(form_of(goal))
    asked = [
        question
        for question in questions(message)
        if not _OWN_QUESTION.search(question.lower())
        and not (_ORDERS.search(question.lower()) and form <= content_words(question))
    ]
    return any(reading.asks for reading in read_questions(goal, " ".join(asked)))


def _is_document(goal: Goal, message: str, text: str) -> bool:
    long = len(words(message)) >= _WHOLE
    if _TEMPLATE.search(text) or (_DOCUMENT.search(message) and (long or "\n" in message.strip())):
        return True
    return long and (bool(_GREETS_ALL.search(text)) or longest_run(message, goal.reference) >= _COPIED)


def _gives_away_its_own(goal: Goal, text: str) -> bool:
    """Whether it calls what the text is about the other side's: "your kiln". A note may speak to readers that way."""
    about = f"{topic_of(goal)} {' '.join(notes_of(goal))}".lower()
    own = content_words(about) - content_words(form_of(goal))
    named = re.findall(r"\byour (\w+)", text)
    return any(content_words(word) & own and f"your {word}" not in about for word in named)


def _writes_program(heard: str, message: str) -> bool:
    """Whether it has a function or class that the assistant has not just shown. Users may quote the assistant."""
    if (fenced := _CODE_FENCE.search(message)) and fenced[0].split("\n", 1)[-1] not in heard:
        return True  # even if it cannot be parsed
    program = last_program([message])
    return defines(program) and " ".join(program.split()) not in " ".join(heard.split())


def leaks(goal: Goal, message: str) -> bool:
    """Whether a message has a long run of words from the request, the reference or the agenda's items.

    The opening of the agenda is no secret, nor are form and topic ("a notice about the kiln").
    """
    secrets = [*goal.prompt.split(f"{form_of(goal)} about {topic_of(goal)}"), goal.reference]
    if goal.agenda is not None:
        secrets += [item.text for item in goal.agenda.items]
        for allowed in sentences(goal.agenda.opening):
            message = message.replace(allowed, " | ")
    return any(longest_run(part, secret) >= LEAKED for secret in secrets for part in message.split(" | "))


def tells_too_much(goal: Goal, message: str, turn: int) -> bool:
    """Whether one of the user's first two messages tells much of the agenda at once, in whatever words.

    The first may tell none of the notes and one preference; the second, an answer, `_ANSWERED` items. An item is told
    if the message has half of its content words, at least two, besides those of topic and form. Goals whose agenda is
    spelt out are left to `leaks`: of a problem much may have to be said to ask it at all.

    Args:
        goal: What the user wants.
        message: What it says.
        turn: Number of the message, from 1.
    """
    if goal.agenda is not None or turn > 2:
        return False
    said = content_words(message)
    about = content_words(f"{topic_of(goal)} {form_of(goal)}")
    told = [item for item in agenda_of(goal) if _told(content_words(item.text) - about, said)]
    if turn > 1:
        return len(told) > _ANSWERED
    return len(told) > 1 or any(not item.preference for item in told)


def _told(item: frozenset[str], said: frozenset[str]) -> bool:
    shared = len(item & said)
    return 2 * shared >= len(item) and shared >= 2


def echoes(message: str, instructions: Sequence[str]) -> bool:
    """Whether a message gives its instructions back: `_ECHOED` words in a row of one of them, or words about the play.

    Args:
        message: What the user says.
        instructions: What the model was told, apart from the goal.
    """
    text = message.lower().replace("’", "'")
    return bool(_PLAY.search(text)) or any(longest_run(message, one) >= _ECHOED for one in instructions)


def longest_run(one: str, other: str) -> int:
    """Number of words in the longest run that two texts share."""
    a, b = words(one), words(other)
    return SequenceMatcher(None, a, b, autojunk=False).find_longest_match().size


def stops_too_early(conversation: Conversation, satisfied: bool, patience: int) -> bool:
    """Whether a user leaves satisfied before there is any result, or gives up after fewer than `patience` replies."""
    if satisfied:
        return not any(has_result(conversation.goal, reply) for reply in conversation.assistant_texts)
    return len(conversation.turns) < patience


def repeats(conversation: Conversation, message: str) -> bool:
    """Whether either side has said the same words in this conversation before."""
    said = [text for turn in conversation.turns for text in (turn.user, turn.reply.text)]
    return words(message) in map(words, said)


def foreign(message: str, *known: str) -> bool:
    """Whether a message, or a part of it, is in another language than the `known` texts.

    So is a letter of a script without spaces, a word of two alphabets, and two words of another alphabet than that of
    these texts; a single one may be a name. In one alphabet languages are told apart by their commonest words: two or
    more, and more of another language's than of any that the known texts are in. Short messages ("Hola!") pass.
    """
    own = set(_alphabets(" ".join(known)))
    strange = 0
    for word in re.findall(r"[^\W\d_]+", message):
        others = [name for name in _alphabets(word) if name not in own]
        if _UNSPACED & set(others) or 1 < len(others) < len(word):
            return True
        strange += 1 < len(others)
    if strange >= 2:
        return True
    said, heard = _languages(message), _languages(" ".join(known))
    spoken = max(heard.values(), default=0)
    usual = max((said[name] for name, count in heard.items() if 2 * count >= spoken), default=0)
    return spoken >= 2 and max(said.values(), default=0) > max(1, usual)


_UNSPACED = {"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR"}  # scripts without spaces
_COMMON = {  # words that are among the commonest of a language
    name: frozenset(found.split())
    for name, found in {
        "English": "the a and of to is it for with that you i my this please about be are not in on at no we me have",
        "German": "der und ist nicht ich das ein eine mit für auf den dem zu sie wir über bitte kann es einen auch",
        "French": "le les des et est une je pour dans vous avec sur du pas que qui nous au merci cette",
        "Spanish": "el los las una es que por para con no se lo del al su yo como pero necesito sobre gracias",
        "Italian": "il che di una per con non sono un ho del della mi come grazie questo anche nella gli ma",
        "Portuguese": "os uma é que para com não se do da em por eu mais como mas você sobre obrigado ao",
        "Dutch": "het een en van ik niet dat voor met zijn op te naar ook maar wij heb graag aan de",
        "Indonesian": "yang dan di untuk dengan ini itu saya tidak ada dari ke akan bisa apa",
    }.items()
}


def _languages(text: str) -> dict[str, int]:
    """How many words of a text are among the commonest of each language."""
    said = words(text)
    return {name: sum(word in common for word in said) for name, common in _COMMON.items()}


def _alphabets(text: str) -> list[str]:
    """The alphabet of each letter, as the first word of its name in Unicode: LATIN, CYRILLIC, CJK, ..."""
    return [unicodedata.name(letter, "?").split()[0] for letter in text if letter.isalpha()]
