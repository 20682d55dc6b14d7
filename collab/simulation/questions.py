"""Does a question ask the user what it wants or knows, and for what? Rules over English questions, no model.

A rewarded policy asks whatever earns. So a question has to ask for something that only this user can tell:

- an open request for what the text should say ("What should it say?", "Can you give me more details?");
- a slot, asked by its name or question word: when, where, who, how much, the tone, the length, how to sign up, why;
- a wish or a fact of the user's case ("What do you like about it?", "What type of product is it?").

It must not ask for what anybody knows ("How do kilns work?", "What does X mean?"), turn the roles round ("What would
you like to know?"), offer or check ("Shall I write it?"), ask for the finished text, or be nonsense.
`benchmarks/questions.py` measures these rules on labelled questions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from collab.text import content_words, stem, words

# Slot -> words by which a question names it. A question word stands for its slot, too.
SLOTS: dict[str, str] = {
    "when": "when date dates day days time deadline schedule hours month week weekend start begin end timing due",
    "where": "where place location venue address located room site spot area route directions",
    "who": "who whom whose organiser organizer host speaker guest name names called person people leads responsible",
    "audience": "audience reader readers recipient recipients addressee read aimed target targeted addressed whom",
    "how much": "price prices cost costs fee fees pay charge charged budget money euros expensive free",
    "how many": "many number amount quantity count capacity",
    "how long": "duration",
    "contact": "contact register registration sign signup rsvp reach phone telephone email call book booking apply",
    "tone": "tone style mood voice formal informal casual friendly humorous serious feel sound manner",
    "length": "length words sentences paragraphs short long brief detailed",
    "reason": "why reason reasons purpose goal goals aim occasion motivation cause achieve behind",
    "what": "what",
}
_SLOT_OF = {stem(word): slot for slot, named in SLOTS.items() for word in named.split()}

# Words for everything that there is to know about the text.
_DETAILS = (
    r"details?|information|info|specifics|requirements?|preferences?|instructions?|guidelines?|context|background|"
    r"points?|facts?|content|things?|ideas?|topics?|theme|message|subject|aspects?|elements?|features?|key"
)
_ATTRIBUTES = (  # what a thing, an event or a text has: "What is the ... ?" asks for it
    r"dates?|days?|times?|hours|schedule|deadline|duration|place|location|venue|address|price|cost|fee|budget|"
    r"purpose|goal|aim|objective|reason|occasion|tone|style|mood|voice|format|structure|length|size|title|name|names|"
    r"audience|readers?|recipients?|target|theme|topic|subject|message|focus|main|key|most important|specific|"
    r"ingredients?|materials?|colou?rs?|contents?|details?|requirements?|rules?|conditions?|contact|phone|email|"
    r"problem|issue|trouble|matter|plan|plans|situation|relationship|number|amount|quantity|age|weight|"
    r"temperature|frequency|expected|desired|intended|preferred|exact|current|next|first|last|overall|highlights?|"
    r"features?|qualit(?:y|ies)|specialt(?:y|ies)|strengths?|weaknesses|input|output|return|arguments?|parameters?|"
    r"missing|other|rate|speed|distance|width|height|depth|total number|range|library|libraries|behaviou?r|event"
)
_TELL = (
    r"provide|give|tell|share|specify|describe|clarify|elaborate|explain|list|mention|name|state|send|supply|expand|"
    r"detail|confirm|let me know|fill me in|say|indicate|outline"
)
_WRITE = (  # what a text does with a fact: wishes about these are wishes about the text
    r"include|included|mention|mentioned|say|said|cover|covered|contain|add|added|convey|emphasi[sz]e|emphasi[sz]ed|"
    r"highlight|highlighted|focus|feature|featured|communicate|express|state|stress|address|addressed|know about|"
    r"share|shared|send|specify|present|presented|describe|described|invite|thank|achieve|write about|talk about|"
    r"announce|advertise|sell|bring across|keep|leave out|avoid|have in|put in|see in|show|shown|written|be about"
)

_OFFER = re.compile(
    r"\b(?:would you (?:like|want|prefer)|do you (?:want|need)|shall|can|may|could|should) (?:for )?(?:me to|i|we) "
    r"(?:\w+ )?(?:help|assist|write|draft|create|make|start|begin|proceed|continue|send|show|give|offer|provide|do|try|"
    r"suggest|explain|revise|edit|improve|rewrite|go|look|check|add anything|use)\b"
    r"|\bhow (?:else )?(?:can|may|could|should|do|would) (?:i|we)\b|\bcan i (?:be|get you)\b"
    r"|\bwhat (?:else )?(?:can|could|may|should|do|shall) (?:i|we) (?:do|help|assist|offer|write for|say)\b"
    r"|\bwhat would you like (?:me|help|assistance)\b|\bneed (?:any |some )?(?:help|assistance)\b"
    r"|\bwould you like (?:any |some |more )?(?:help|assistance|suggestions|tips|ideas|advice|examples|information)\b"
    r"|\b(?:is there|are there) (?:anything|any (?:other )?way|something) (?:else )?(?:that )?i (?:can|could|may)\b"
    r"|\bdo you (?:want|need|require) (?:any |some |my )?(?:help|assistance|suggestions|advice|tips)\b"
)
_REVERSED = re.compile(
    r"\b(?:would|do|did) you (?:also )?(?:like|want|need|wish|care) to (?:know|learn|hear|see|discuss|ask|find out|"
    r"understand|read|explore|try|buy|talk|start|begin|continue|proceed|join|attend|visit|watch|go|get started|use)\b"
    r"|\b(?:what|which|any|more|other) questions?\b|\bcurious about\b|\binterested in (?:learning|knowing|hearing)\b"
    r"|\bdo you have (?:any )?(?:other |further |more |specific )*questions\b|\bknow more about\b(?!.*\bcan you)"
    r"|\bwant to (?:know|learn|hear)\b|\blike to (?:know|learn|hear)\b"
)
_DEFINITION = re.compile(
    r"\bwhat (?:does|do|did) (?:\S+ ){0,9}?(?:mean|stand for|refer to|entail)\b|\bmeant by\b|\bwhat (?:exactly )?do you mean\b|\bdefin"
    r"|\bmeaning of\b|^\W*(?:what|who)(?:'s| is| are) (?:a|an) (?!good|suitable|better|typical|possible|specific|ideal)"
    r"|\bwhat (?:is|are) \S+\?$|^who are you\b|^how are you\b"
    r"|\bwhat(?:'s| is| are) the (?:\w+ )?(?:history|origin|origins|meaning|definition|importance|significance|"
    r"difference|role|benefits?|advantages?|best way|secret|point of|concept|function|impact|effects?|spark|story|"
    r"deal with|process of|tenets|principles?|types of|kinds of)\b"
)
_WORLD = re.compile(
    r"^\W*(?:and |so |but |well |okay |now )*(?:how (?:do|does|did|can|could|should|would|is|are|will)\b"
    r"(?! you (?:want|wish|prefer|plan|like|envision|feel|intend|see|imagine|expect|think|need|hope)| you like)"
    r"(?!.*\b(?:people|readers?|guests?|participants?|visitors|they|one|someone|members|customers|anyone) "
    r"(?:sign|register|apply|contact|reach|book|join|pay|get in touch|take part))"
    r"|why\b(?! (?:do|did|are|were|have|would) you\b)"
    r"|(?:what|who) (?:makes?|causes?|invented|discovered|happens|happened to|kinds? of \w+ (?:are|is) there)\b"
    r"|did you know|have you (?:ever|heard|seen|tried)|are you (?:ready|aware|sure|tired|familiar|an? )|who (?:does|would)"
    r"n't|isn't|don't you|wouldn't|aren't|doesn't|who are you|where (?:can|do|could) (?:i|we)\b"
    r"|(?:want|ready|looking|tired|need|feeling|wondering) (?:to|for|of|an?)\b)"
)
_CHECK = re.compile(
    r"\b(?:does|did|do|is|was|are|will|would) (?:that|this|it|these|those|everything) (?:help|answer|make sense|work|"
    r"sound|look|okay|ok|fine|good|right|correct|enough|clear|meet|fit|suit|seem|satisfactory|all)\b"
    r"|\bhow (?:does|do|is) (?:that|this|it|these) (?:sound|look|seem|work)?\b(?=\W*$|.*\b(?:sound|look)\b)"
    r"|\bwhat do you think(?: (?:of|about) (?:this|that|it|the|my)\b.*)?\W*$|^\W*(?:so |and )?do you (?:like|agree|understand|see|think)\b"
    r"|\bis (?:this|that|the) (?:\w+ )?(?:draft|text|version|note|message)?\s*(?:okay|ok|fine|good|right|correct)\b"
    r"|\bany (?:changes|corrections|feedback)\b"
)
_FINISHED = re.compile(  # asks the user for the text itself, or to do the work
    r"\b(?:provide|give|send|show|share|write|see|paste|have|draft)\b(?: me| us)?(?: with)?"
    r" (?:the|a|an|your|some|me an?|us an?)?\s*(?:\w+[- ])?(?:final|finished|complete|full|whole|written|actual|sample|"
    r"example|template|draft|copy|version)\b(?! (?:date|time|address|name|list|details|information))"
    r"|\b(?:can|could|would|will) you (?:please |also |just |kindly |try to |help me (?:to )?)*"
    r"(?:write|create|make|help|do|try|draft|suggest|recommend|think|use|show|find|read|design|prepare|come|add|"
    r"summari[sz]e|rewrite|revise|check|assist|be|see|believe|imagine|start|put)\b(?! (?:sure|time) )"
    r"|\b(?:recommendations?|suggestions?|advice|tips|opinions?|experiences?)\b"
    r"|\b(?:explain|tell me|describe)\b(?: to me)? (?:how|why|what)\b(?!.*\b(?:you|your|it should|should it)\b)"
)
_NONSENSE = re.compile(
    r"\b(?:type|kind|sort|form)s? of (?:a )?(?:type|kind|sort|form)\b|\b(\w{3,}) \1\b|\bwhat of the\b"
)
_YOUR_OWN = re.compile(r"\b(?:you|your|yours|you're|you've|you'd)\b")

_OPEN = re.compile(
    rf"\b(?:{_TELL})\b.*\b(?:{_DETAILS}|more|about|a (?:bit|little))\b|\btell me (?:more|about|a)\b|\belaborate\b"
    rf"|\b(?:what|which)\b.*\b(?:{_WRITE})\b"
    rf"|\b(?:what|which|any|are there|is there)\b.*\b(?:{_DETAILS})\b"
    rf"|\b(?:what|which) (?:kind|type|sort|specific|particular)\b"
    r"|\banything (?:else|specific|special|particular|in particular|you)\b|\bwhat (?:should|must|will|would|is) (?:it|the|this)"
    r"|\bin mind\b|\bmore (?:details?|information|specific|about)\b|\bwhat (?:can|could) you tell\b"
    r"|\bwhat(?:'s| is| are) (?:it|the \S+|your \S+|this|they) (?:\S+ )?(?:about|like|for)\b"
    r"|\bwhat (?:do|are|would|did) you (?:want|need|like|looking|look|hope|wish|planning|plan)\b"
)
_REQUEST = re.compile(
    rf"\b(?:can|could|would|will|please|mind|how about|may i|can i|could i|might) ?(?:you |i |we )?"
    rf"(?:please |kindly |also |perhaps |maybe |just |be more |mind )*(?:{_TELL}|ask|know|have|get|specific|sharing|telling|giving)\b"
    rf"|^\W*(?:please |kindly )?(?:{_TELL})\b|\b(?:i|we) (?:would|'d) (?:like|love|need) to know\b|\bcould i know\b"
)
_WISH = re.compile(
    r"\b(?:what|which|who|whom|where|when|how|why)\b.*\b(?:do|did|would|are|were|have|had|will|can|could|should|does) you\b"
    r"(?! (?:do|know|learn|hear|see|discuss|ask)\b)"
    r"|\b(?:do|would|did) you (?:want|like|prefer|need)\b.*\b"
    rf"(?:or|it to|this to|the \w+ to|your \w+ to|{_WRITE}|formal|informal|casual|specific|particular|certain|long|short)\b"
    r"|\b(?:do|did|would) you (?:prefer|mean|refer|have a preference)\b"
    r"|\b(?:do|did) you (?:already |also )?have (?:any|a|an|some|other|anything|something)?\b.*\b"
    rf"(?:specific|particular|certain|special|preferred|preferences?|requirements?|{_DETAILS}|or)\b"
    r"|\b(?:are|were) you (?:looking|hoping|planning|going|thinking|aiming|trying|using|writing|inviting|offering|"
    r"interested|referring|celebrating|having|seeking|expecting|selling)\b"
    r"|\b(?:should|must|does|will|would|could|is|are) (?:it|the|this|that|they|there|these|your|our|i|we)\b.*\b"
    rf"(?:or|{_WRITE}|specific|particular|certain|deadline|allowed|required|free|need|formal|informal|casual|long|short|"
    r"funny|serious|you(?:'d)? (?:want|like|need)|special|restrictions?|limit|minimum|maximum|negative|empty)\b"
    r"|\bwhat (?:kind|type|sort|style|tone)s? of\b|\bwhat(?:'s| is| are) the (?:kind|type|sort)s? of\b"
    r"|\bwhich (?:kind|type|sort|one|of)\b|\bany (?:specific|particular|special|other (?:details?|facts?|points?|wishes))\b"
    r"|\banything (?:else|specific|special|particular|in particular)\b|\bwhat (?:else )?should\b|\bwhat about\b"
    r"|\bwhat (?:does|do|did|is|are) (?:\S+ ){1,5}(?:consist of|made of|include|contain|look like|called|offer|cost|need)\b"
)
_SLOT_QUESTION = re.compile(
    r"\b(?:when|where|who|whom|whose|how (?:much|many|long|often|old|far|big|large|soon|late|early|tall|wide|deep|heavy))\b"
    r"|\b(?:what|which) (?:time|day|date|year|month|place|tone|style|length|size|colou?r|price|person|people|"
    r"kind|type|sort|audience|readers?|format|name|age|number|hours?|address|venue|location|ingredients?|materials?|"
    r"library|libraries|module|arguments?|parameters?|values?|units?)\b"
    rf"|\bwhat(?:'s| is| are|re| was| were| will be) (?:(?:the|your|its|their|some(?: of the)?|our) )(?:\w+ )?(?:{_ATTRIBUTES})\b"
    r"|\b(?:is|are) there (?:an?|any)\b"
)


@dataclass(frozen=True)
class Reading:
    """What a question asks for.

    Attributes:
        asks: Whether it asks the user for something that the user wants or knows.
        why: The rule that decided, e.g. "slot" or "definition".
        open: Whether it asks for anything that the text should say, and nothing in particular.
        slots: Names of the `SLOTS` that it names.
        meaning: Stems of its content words.
    """

    asks: bool
    why: str
    open: bool = False
    slots: frozenset[str] = frozenset()
    meaning: frozenset[str] = frozenset()


def read_question(question: str, known: frozenset[str] = frozenset(), cues: frozenset[str] = frozenset()) -> Reading:
    """Decide what one question asks for.

    Args:
        question: A sentence with a question mark.
        known: Stems of what the user has given away at once: the topic and the form.
        cues: Stems by which hidden items can be asked for; a question with one of them may be about the user's case
            where no other rule says so.
    """
    text = " ".join(question.lower().replace("’", "'").split())
    meaning = content_words(question)
    asked = [word for word in words(question) if word != "please"]

    def reading(asks: bool, why: str, open_: bool = False) -> Reading:
        return Reading(asks, why, open_ and asks, _slots(asked, text, known) if asks else frozenset(), meaning)

    if len(asked) < 2 or (len(asked) == 2 and not _slots(asked, text, known)):
        return reading(False, "short")
    for rule, pattern in (
        ("nonsense", _NONSENSE),
        ("offer", _OFFER),
        ("reversed", _REVERSED),
        ("definition", _DEFINITION),
        ("check", _CHECK),
        ("finished", _FINISHED),
    ):
        if (found := pattern.search(text)) and not (rule == "offer" and _WANTS_ME.search(text)):
            return reading(False, rule)
    slots = _slots(asked, text, known)
    specific = slots - {"what", "who"} | ({"who"} & slots if re.search(r"\bwho", text) else set())
    if _REQUEST.search(text):
        return reading(True, "request", not specific)
    if _WORLD.search(text):
        return reading(False, "world")
    if _WISH.search(text):
        return reading(True, "wish", bool(_OPEN.search(text)) and not specific)
    if _SLOT_QUESTION.search(text) or (specific and _ABOUT_THE_CASE.search(text)):
        return reading(True, "slot", bool(_OPEN.search(text)) and not specific)
    if meaning & cues and re.search(r"\b(?:what|which|how|who|where|when)\b", text):
        return reading(True, "case")
    return reading(False, "nothing")


_ABOUT_THE_CASE = re.compile(
    r"^\W*(?:and |so )?(?:do|did|would|have) you\b|^\W*(?:and |so )?(?:is|are|will|does|should) (?:it|the|this|there|your)\b"
)
_WANTS_ME = re.compile(r"\b(?:what|which|how|who|where|when)\b.*\b(?:want|like|need) me to\b(?! (?:help|do|assist)\b)")


def slots_of(text: str) -> frozenset[str]:
    """The slots that some words name: those of an item's cues."""
    lowered = text.lower()
    found = {_SLOT_OF[stem(word)] for word in words(lowered) if stem(word) in _SLOT_OF}
    return frozenset(found | {slot for slot in ("how much", "how long") if slot in lowered})


def _slots(asked: list[str], text: str, known: frozenset[str]) -> frozenset[str]:
    found = {_SLOT_OF[stem(word)] for word in asked if stem(word) in _SLOT_OF and stem(word) not in known}
    if "how much" in text:
        found.add("how much")
    if re.search(r"\bhow (?:long|many words)\b.*\b(?:be|text|it|words)\b", text):
        found.add("length")
    elif "how long" in text:
        found = found - {"length"} | {"how long", "when"}
    if re.search(r"\bwho (?:is|will|are|would|should)\b.*\b(?:for|read|to|reading|receive|addressed|invited)\b", text):
        found.add("audience")
    if re.search(r"\bfor whom\b|\bwho is (?:it|this|the \w+) (?:for|to)\b", text):
        found = found - {"who"} | {"audience"}
    return frozenset(found)
