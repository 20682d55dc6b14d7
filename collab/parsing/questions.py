"""Does a question ask the user for what it wants or knows, and for what? Rules over English questions, no model.

A rewarded policy asks whatever earns something. So a question has to ask for what only this user can tell:

- what the text should say, in general ("What should it say?", "Can you give me more details?");
- a slot, by its name or its question word: when, where, who, how much, the tone, the length, how to sign up, why;
- a wish, or a fact of the user's case ("What do you like about it?", "What type of product is it?").

It must not ask for what anybody knows ("How do kilns work?", "What does X mean?"), reverse the roles ("What would you
like to know?"), offer or check ("Shall I write it?"), ask for the finished text, or be nonsense.

A family of `_REFUSED` that matches refuses a question. Otherwise one of the patterns behind it has to accept it.
`python benchmarks/questions.py` measures the rules on labelled questions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from collab.parsing.english import content_words, stem, words

SLOTS = {  # slot -> words by which a question names it
    "when": "when date dates day days time times deadline schedule hours month week weekend timing due",
    "where": "where place places location locations venue address located spot directions",
    "who": "who whose organiser organisers organizer host speaker guest name names called leads responsible",
    "audience": "audience reader readers recipient recipients addressee read aimed target targeted addressed whom",
    "how much": "price prices cost costs fee fees pay charge charged budget money euros expensive free",
    "how many": "many number amount quantity count capacity",
    "how long": "duration",
    "contact": "contact contacts register registration signup rsvp reach phone telephone email booking apply",
    "tone": "tone style mood voice formal informal casual friendly humorous funny serious feel sound manner tones",
    "length": "length words sentences paragraphs short long brief detailed",
    "reason": "why reason reasons purpose goal goals aim occasion motivation cause achieve behind",
}
_SLOT_OF = {word: slot for slot, named in SLOTS.items() for word in named.split()}

# --- words that the rules share -----------------------------------------------------------------------------------

_DETAILS = (  # what there is to know about a text
    "details?|information|info|specifics|requirements?|preferences?|instructions?|guidelines?|context|background|"
    "points?|facts?|content|things?|ideas?|topics?|theme|message|subject|aspects?|elements?|features?|key"
)
_ATTRIBUTES = (  # what a text, a thing or an event has
    "dates?|days?|times?|hours|schedule|deadline|duration|place|location|venue|address|price|cost|fee|budget|purpose|"
    "goal|aim|objective|reason|occasion|tone|style|mood|voice|format|structure|length|size|title|names?|audience|"
    "readers?|recipients?|target|theme|topic|subject|message|focus|main|key|most important|specific|ingredients?|"
    "materials?|colou?rs?|contents?|details?|requirements?|rules?|conditions?|contact|phone|email|problem|issue|"
    "trouble|matter|plans?|situation|relationship|number|amount|quantity|age|weight|temperature|frequency|expected|"
    "desired|intended|preferred|exact|current|first|last|overall|highlights?|features?|qualit(?:y|ies)|"
    "specialt(?:y|ies)|strengths?|weaknesses|input|output|return|arguments?|parameters?|missing|other|rate|speed|"
    "distance|width|height|depth|total number|range|library|libraries|behaviou?r|event|ideas?|original|background|"
    "vibe|atmosphere|percentage|share|discount"
)
_TELL = (
    "provide|give|tell|share|specify|describe|clarify|elaborate|explain|list|mention|name|state|send|supply|expand|"
    "detail|add|let me know|fill me in|say|indicate|outline"
)
_WRITE = (  # what a text does with a fact; a wish about these is a wish about the text
    "include|included|mention|mentioned|say|said|cover|covered|contain|add|added|convey|emphasi[sz]ed?|highlight|"
    "highlighted|focus|feature|featured|communicate|express|state|stress|address|addressed|share|shared|send|specify|"
    "present|presented|describe|described|invite|thank|achieve|write about|talk about|announce|advertise|sell|"
    "bring across|keep|leave out|avoid|have in|put in|see in|show|shown|written|be about|structure|organi[sz]e|phrase|"
    "word|open|close|end|quote|give|offer|have|be|make it|call|title"
)
_VERB = (  # what follows a question word that is no subject
    "is|are|was|were|will|would|do|does|did|shall|should|can|could|may|might|must|has|have|had|isn't|aren't|won't|"
    "don't|doesn't|didn't"
)
_THING = (  # what is no person, time or place
    "kinds?|types?|sorts?|specific|particular|what|which|dates?|times?|space|price|cost|length|size|number|tone|style|"
    "format|title|location|venue|place|subject|duration|depth|texture|length"
)
_START = r"^\W*(?:(?:and|so|but|also|then|okay|ok|well|great|thanks|sure|dear \w+),? )*"
_CHOICE = "specific|particular|certain|special|preferred|formal|informal|casual|long|short"

# --- what is refused ----------------------------------------------------------------------------------------------


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns))


_REFUSED: dict[str, re.Pattern[str]] = {  # in this order
    "nonsense": _any(
        r"\b(?P<pair>\w+ \w+) (?P=pair)\b",
        r"\b(?P<word>\w+) (?P=word)\b",
        r"\b(?P<often>\w+)\b(?:.*\b(?P=often)\b){3}",
        r"\b(?P<asks>when|where|who|why|what|how)\b(?:.*\b(?P=asks)\b){2}",
        r"\b(?:type|kind|sort|form)s? of (?:a )?(?:type|kind|sort|form)\b",
    ),
    "broken": _any(  # a question word with what it can't ask for: "Who kind of price?", "When would it sound?"
        rf"{_START}(?:when|where|why)(?! (?:{_VERB}|exactly|else|precisely|roughly|about|approximately|in|on|to|from|"
        r"not|and|or|the|an?)\b)(?! ?'|\W*$)",
        rf"\b(?:who|whom|when|where|why) (?:else |exactly )?(?:{_THING}|long)\b",
        rf"\bhow (?:{_THING}|what|which|who|when)\b",
        rf"\bwho(?:'s| is| are| was| will be| should be) (?:the|its|your|this) (?:{_THING})\b",
        r"\bwho (?:is|was|will|would|should) (?:it|they|this|that)(?: be| cost| end| take)?\W*$",
        r"\bwhen (?:do|does|did|will|would|should) .*\b(?:cost|sound|sound like|feel|look)\W*$",
        r"\bwhen (?:is|are|was) (?:it|you|your) (?:most |very |likely )?(?:important|necessary|appropriate|sure|ready|"
        r"repeated|used|tone|length)\b|\bwhen (?:is|are) the (?:situation|time|tone|length)\b",
        r"\bhow (?:long|often|many(?! people)(?: \w+)?|much(?: \w+)?) (?:are|is|should|will|would|must|do) you"
        r"(?: be\b(?! \w+ing)|\W*$)",
        r"\bhow many words (?:will |can |would |do |does )?fit\b",
        r"\bhow many (?:times|questions) (?:should|would|do|did|can|will) (?:you|i|we)\b",
        r"\bwhich (?:\w+ ){1,3}(?:are|is) you\W*$",
        r"\b(?P<named>tone|length|style|size)\b.*\b(?P=named)\b|\bhow (?:long|short|much|many|often)\b[^,]*\btone\b",
        r"\b(?:what|which) (?:length|tone|size|style)\b.*\bbe (?:short|shorter|brief|long|precise|at least)\b",
    ),
    "offer": _any(
        r"\b(?:would you (?:like|want|prefer)|do you (?:want|need)|shall|can|may|could|should) (?:for )?(?:me to|i|we) "
        r"(?:\w+ )?(?:help|assist|write|draft|create|make|start|begin|proceed|continue|send|show|give|offer|provide|do|"
        r"try|suggest|explain|revise|edit|improve|rewrite|go|look|check|add anything|use)\b",
        r"\bhow (?:else )?(?:can|may|could|should|do|would) (?:i|we)\b|\bcan i (?:be|get you)\b",
        r"\bwhat (?:else )?(?:can|could|may|should|do|shall) (?:i|we) (?:do|help|assist|offer|write for|say)\b",
        r"\bwhat would you like (?:me|help|assistance)\b",
        r"\bneed (?:any |some )?(?:further |more )?(?:help|assistance)\b",
        r"\bwould you like (?:any |some |more )?(?:help|assistance|suggestions|tips|ideas|advice|examples|"
        r"information)\b",
        r"\b(?:is|are) there (?:anything|any (?:other )?way|something) (?:else )?(?:that )?i (?:can|could|may)\b",
        r"\bdo you (?:want|need|require) (?:any |some |my |more )?(?:help|assistance|suggestions|advice|tips|"
        r"information)\b",
        r"\b(?:like|want|need) (?:me|us) to (?:help|assist|teach|discuss|explain|tell|talk)\b",
        r"\b(?:all right|okay|ok|fine|mind) if i\b",
    ),
    "reversed": _any(
        # "Would you like to try some?"; wishes about the text are none of these
        r"^(?!.*\b(?:what|which|who|whom|where|when|how|why|do you want to .* or)\b).*\b(?:would|do|did) you (?:also )?"
        rf"(?:like|want|wish|care|need) to (?!(?:also )?(?:{_WRITE})\b)",
        r"\b(?:would|do|did) you (?:also )?(?:like|want|wish|care|need) to (?:know|learn|hear|see|ask|find out|"
        r"understand|read|explore|try|buy|talk|practi[sc]e|join|attend|visit|watch|play)\b",
        r"\b(?:think|believe|suggest|recommend) (?:that )?(?:i|we|i'm)\b|\binterests? you\b",
        r"\b(?:what|which|any|more|other|further|specific|next) questions?\b|\bcurious about\b|\bshall we\b",
        r"\byou(?:'d| would)? (?:like|want) to find out\b|\bto discuss\b|\blike explained\b",
        r"\blooking to (?:get|learn|know|find)\b|\byour next\b|\byou(?:'re| are) familiar\b",
        r"\bwhat (?:\w+ )?(?:information|info|details) (?:do|would) you (?:need|require) (?:about|on|for)\b",
        r"\bi'm (?:referring|facing|looking|going|working|talking)\b",
        r"^\W*or (?:do|are|would|have|did) you\b|^\W*what if\b",
        r"\b(?:want|like|wish) to (?:know|learn|hear)\b|\binterested in (?:learning|knowing|hearing)\b",
    ),
    "definition": _any(
        r"\bwhat (?:does|do|did) (?:\S+ ){0,9}?(?:mean|stand for|refer to|entail)\b",
        r"\bmeant by\b|\bdefin|\bmeaning of\b",
        r"\bwhat (?:exactly )?do you mean\b|^who are you\W*$|^how are you\b",
        r"^\W*(?:what|who)(?:'s| is| are) (?:a|an) (?!good|suitable|better|typical|possible|specific|ideal)",
        r"\bwhat (?:is|are) (?!(?:it|they|these|those|this|that)\b)\S+\?$",
        r"\bwhat(?:'s| is| are) the (?:\w+ )?(?:history|origins?|meaning|definition|importance|significance|difference|"
        r"role|benefits?|advantages?|best way|secret|point of|concept|function(?! (?:signature|name|header))|impact|"
        r"effects?|spark|story|deal with|"
        r"process of|tenets|principles?|types of|kinds of|next|opposite|rest)\b",
    ),
    "check": _any(
        r"^\W*(?:\w+, )?(?:does|did|do|is|was|are|will|would) (?:that|this|it|these|those|everything) (?:help|answer|"
        r"make sense|work|sound|look|okay|ok|fine|good|right|correct|enough|clear|meet|fit|suit|seem|satisfactory|"
        r"all)\b",
        r"\bhow (?:does|do|is) (?:that|this|it|these) (?:sound|look|seem)\b",
        r"\bwhat do you think(?: (?:of|about) (?:this|that|it|my|the (?:draft|text|version|idea))\b.*)?\W*$",
        r"^\W*(?:so |and )?do you (?:like|agree|understand|see|think)\b|\bany (?:changes|corrections|feedback)\b",
        r"\bis (?:this|that|the) (?:\w+ )?(?:draft|text|version|note|message|information)?\s*"
        r"(?:okay|ok|fine|good|right|correct|complete)\b",
        r"\b(?:can|could|would) you (?:please )?confirm (?:if|that|whether)\b|\bthis (?:version|draft)\b",
        r"\bdoes (?:it|this|that) do\b|^\W*what do you say\W*$",
    ),
    "finished": _any(  # asks the user for the text itself, or to do the work
        r"\b(?:provide|give|send|show|share|write|see|paste|have|draft)\b(?: me| us)?(?: with)? (?:the|a|an|your|some|"
        r"me an?|us an?)?\s*(?:\w+[- ])?(?:final|finished|completed?|full|whole|written|actual|sample|example|template|"
        r"draft|copy|version)\b(?! (?:date|time|address|name|list|details|information|inputs?|outputs?|calls?|"
        r"values?))",
        r"\b(?:can|could|would|will) you (?:please |also |just |kindly |try to |help me (?:to )?)*(?:write|create|make|"
        r"help|do|try|draft|suggest|recommend|think|use|show|find|read|design|prepare|come|summari[sz]e|rewrite|revise|"
        r"check|assist|see|believe|imagine|start|put|be(?! more| a bit| able))\b(?! (?:sure|time) )",
        r"\b(?:recommendations?|suggestions?|advice|advise|tips|feedback|rephrase)\b|\bfinal answer\b",
        r"\b(?:provide|give|send)\b(?: me| us)?(?: with)? (?:something|anything|one)\b",
        r"\b(?:explain|tell me|describe)\b(?: to me)? (?:how|why)\b(?!.*\b(?:you|your|it should|should it)\b)",
    ),
}
_EXAMPLE = content_words("example examples")  # where the user has one, to ask for it is to ask for no result
# Asks for the text by its name: "Could you give me the finished notice?". "The details about the notice" are fine.
_HANDED_OVER = re.compile(
    r"\b(?:provide|give|send|show|list)\b(?: me| us)?(?: with)? (?:the|an?|your) "
    r"(?:(?!about|of|on|for|regarding|with|in|and)\w+[ ,-]+){0,4}?(\w+)(?= (?:with|once|without|text|in full)|\W*$)"
)
# These are no offers: "What do you want me to cover?", "What kind of project do you need help with?"
_WANTS_ME = re.compile(
    r"\bwhat (?:kind|type|sort|specific)\b.*\bneed help with\b|"
    r"\b(?:what|which|how|who|where|when)\b.*\b(?:want|like|need) me to\b(?! (?:help|do|assist|teach|discuss|explain|"
    r"tell|talk)\b)"
)

# Only looks like a wish or a slot. Refused unless it is a request.
_WORLD = _any(
    r"^\W*(?:and |so |but |well |okay |now )*how (?:do|does|can|could|should|would|is|are|will)\b"
    r"(?! you (?:want|wish|prefer|plan|like|envision|feel|intend|see|imagine|expect|think|need|hope))"
    r"(?!.*\b(?:people|readers?|guests?|participants?|visitors|they|one|someone|members|customers|anyone) "
    r"(?:sign|register|apply|contact|reach|book|join|pay|get in touch|take part))",
    r"^\W*how did\b(?! (?:it|you|he|she|this|they)\b)",
    r"^\W*why\b(?! (?:do|did|are|were|have|would) you\b)(?! (?:is|was|does|did) (?:it|he|she|they)\b(?!.* so\b))",
    r"^\W*(?:what|who) (?:causes?|invented|discovered|happens|kinds? of \w+ (?:are|is) there)\b",
    r"^\W*what makes? (?!it|this|them|her|him)",
    r"^\W*how \w+ (?:can|could|do|does|did|is|are|will|should) (?:an?|most|some|humans?)\b",
    r"^\W*what (?:does|do) an? (?!.*cost)",
    r"\b(?:commonly|usually|typical|typically|generally|in general|legally|in most|in the world|"
    r"most (?:popular|recent|common|famous)|according to|ever|would you say)\b",
    r"^\W*(?:isn't|aren't|doesn't)\b|\bwhat more\b|\bwhere can you\b",
    r"^\W*(?:did you know (?!him|her|them|it|this)|have you|are you (?:ready|aware|sure|tired|familiar|an? ))",
    r"\b(?:who (?:does|would)n't|isn't (?:it|that)|don't you|wouldn't you|aren't they|doesn't it)\b",
    r"^\W*(?:where|when) (?:can|could) (?:i|we)\b",
    r"\bdo you know (?:how|why) (?!much|many|long|you|it|your)",
    r"^\W*(?:want|ready|looking|tired|need|feeling|wondering) (?:to|for|of|an?)\b",
)

# --- what is accepted ---------------------------------------------------------------------------------------------

_REQUEST = _any(  # "Can you give me more details?"
    r"\b(?:can|could|would|will|please|how about|might) ?(?:you )?(?:please |kindly |also |perhaps |maybe |just |"
    rf"be more |be able to )*(?:{_TELL}|specific)\b|\bmind (?:sharing|telling|giving)\b",
    r"\bdo you (?:happen to )?(?:know|remember) (?:what|how|when|where|who|which|if)\b",
    r"\b(?:may|can|could|might) i (?:please |just )?(?:ask|know|have|get)\b",
    rf"^\W*(?:please |kindly )?(?:{_TELL})\b(?! (?:me )?(?:how|why)\b)",
    r"\b(?:i|we) (?:would|'d) (?:like|love|need) to know\b",
)
_WISH = _any(
    r"\b(?:what|which|who|whom|where|when|how|why)\b.*\b(?:do|would|are|were|have|had|will|can|could|should|does) "
    r"you\b(?! (?:do|know|learn|hear|see|discuss|ask)\b)",
    r"\b(?:what|which|who|whom|where|when|how|why)\b.*\bdid you\b|\b(?:i wonder|supposed to)\b",
    r"\b(?:what|which|who|whom|where|when)\b.*\b(?:your|yours|you(?:'re|'d|'ve)?(?: would| are| were| have)? "
    r"(?:want|need|plan|wish|refer|mean|look|like|hop|us|mind|going|talk))",
    r"\bis there anything\b|^\W*what makes (?:it|this|them|her|him)\b|^\W*how should (?:it|the|this)\b",
    r"^\W*why (?:is|was|does|did) (?:it|he|she|they)\b",
    r"\bwhat(?:'s| is| are) (?:so |really )?(?:special|unique|missing)\b",
    r"\bwhat (?:made|brought|led|makes|inspired) you\b",
    r"^\W*(?:the|it|so the|and the|this) .*\bshould be\b",
    r"^\W*(?:and |so )?what(?:'s| is| are| was)? your\b|\bwhat counts as\b|\bhow about the\b",
    rf"\b(?:do|would|did) you (?:want|like|prefer|need)\b.*\b(?:or|it to|this to|the \w+ to|your \w+ to|{_CHOICE})\b",
    rf"\b(?:do|would|did) you (?:want|like|prefer|need|wish)\b(?: to)? (?:also )?(?:{_WRITE})\b",
    r"\b(?:do|did|would) you (?:prefer|mean|refer|wish|plan|intend|have a preference)\b",
    r"\b(?:do|did) you (?:already |also )?have\b(?: any| an?| some| other| anything| something)?\b.*\b"
    rf"(?:{_CHOICE}|{_DETAILS}|{_ATTRIBUTES}|or)\b",
    r"\b(?:are|were) you (?:looking|hoping|planning|going|thinking|aiming|trying|using|writing|inviting|offering|"
    r"interested|referring|celebrating|having|seeking|expecting|selling)\b",
    r"\b(?:should|must|does|will|would|could|is|are|may) (?:it|the|this|that|they|there|these|your|our|i|we)\b.*\b"
    rf"(?:or|{_WRITE}|{_CHOICE}|deadline|allowed|required|free|need|funny|serious|you(?:'d)? (?:want|like|need)|"
    r"restrictions?|limit|minimum|maximum|negative|empty)\b",
    r"\bwhat (?:kind|type|sort|style|tone)s? of\b|\bwhat(?:'s| is| are) the (?:kind|type|sort)s? of\b",
    r"\bwhich (?:kind|type|sort|one|of)\b|\bany (?:specific|particular|special)\b",
    r"\b(?:any|which|what) other (?:\w+ )?(?:details?|facts?|points?|wishes)\b",
    r"\banything (?:else|specific|special|particular|in particular)\b|\bwhat (?:else )?should\b|\bwhat about\b",
    r"\bwhat (?:does|do|did|is|are) (?:\S+ ){1,5}(?:consist of|made of|include|contain|look like|called|offer|cost|"
    r"need)\b|\bwhat(?:'s| is) (?:it|this|the \w+) about\b|\bhow did (?:it|you|he|she|this|they)\b",
    r"^\W*should (?:it|they|the|there|people|we)\b|^\W*any(?:thing|one|body)?\b|\bsomething else\b",
    r"^\W*(?:is|are|was|were|can|could|will|does|do|did|should|are you|do you)\b.* or ",
    r"\bwhat(?:'s| is| are) (?:he|she|they)\b|\bwhat (?:specific|exact)",
    r"\bdo you have (?:an?|any|some) (?!brand|experience|idea|favou?rite|interest|thoughts)",
    r"\bor (?:something|anything|someone|somewhere|some other \w+|maybe something) else\b",
    r"^\W*(?:did|does|is|was|are|were|has|have) your\b|\bof yours\b",
    r"\b(?:is|are|was|were) .*\b(?:given|missing|left out|stated|mentioned)\b",
    r"^\W*(?:and )?(?:the )?(?:number|amount) of\b",
)
_BARE_SLOT = _any(  # accepted if it is about the user's case: "Who leads the course?"
    r"\b(?:when|where|who|whom|whose|how (?:much|many|long|often|old|far|big|large|soon|late|early|tall|wide|deep|"
    r"heavy|fast))\b|^\W*at what\b",
)
_SLOT = _any(
    r"\b(?:what|which) (?:time|day|date|year|month|place|tone|style|length|size|colou?r|price|person|people|kind|type|"
    r"sort|audience|readers?|format|name|age|number|hours?|address|venue|location|ingredients?|materials?|library|"
    r"libraries|module|arguments?|parameters?|values?|units?|percentage|share|fraction)\b",
    r"\bwhat(?:'s| is| are|re| was| were| will be)(?: the| your| its| their| some(?: of the)?| our) (?:\w+ )?"
    rf"(?:{_ATTRIBUTES})\b",
    rf"^\W*what(?:'s| is| are) (?:\S+ ){{1,5}}(?:{_ATTRIBUTES})\W*$|\bwhat (?:was|were) (?:the|his|her|its|their)\b",
    r"\b(?:is|are) there (?:an?|any)\b|^\W*(?:and |in |at |on )?which \w+ (?:is|are|was|were|does|do|should|will|"
    r"would|did|have|has|can|must)\b",
)
_ABOUT_THE_CASE = re.compile(  # with a slot's name: "Is it free?", "Do you have a date in mind?", "And the tone?"
    r"^\W*(?:and |so )?(?:do|did|would) you\b|^\W*(?:and |so )?(?:is|are|will|does|should|was|must) "
    r"(?:it|the|this|there|your)\b|^\W*(?:and|what about|any)\b"
    r"|^\W*how (?:do|can|should|will) (?:people|readers?|guests?|participants?|visitors|they|members|customers)\b"
)
_MEANS_IT = re.compile(  # the user's case
    r"\b(?:it|its|they|them|she|he|her|his|their|there|you|your|text|people|readers?|guests?|participants?)\b"
)
OF_ANY_TEXT = content_words(  # words for slots, wishes and attributes
    " ".join((*SLOTS.values(), *(re.sub(r"[^a-z ]", " ", named) for named in (_DETAILS, _ATTRIBUTES, _TELL, _WRITE))))
    + " kind type sort take happen happening open opens close closes much many often long far old big large soon early"
    + " late event meeting course class workshop session product item thing text letter note person people guest"
    + " everybody everyone anybody anyone somebody someone participant buyer customer client visitor member"
    + " bring come attend join plan need want think"
    + " exactly start begin end finish held hold located locate hour word"
)
_OPEN = _any(
    rf"\b(?:{_TELL})\b.*\b(?:{_DETAILS}|more|about|a (?:bit|little))\b|\btell me (?:more|about|a)\b|\belaborate\b",
    rf"\b(?:what|which)\b.*\b(?:{_WRITE})\b|\b(?:what|which|any|are there|is there)\b.*\b(?:{_DETAILS})\b",
    r"\b(?:what|which) (?:kind|type|sort|specific|particular)\b|\bin mind\b",
    r"\banything (?:else|specific|special|particular|in particular|you)\b|\bwhat should (?:\w+ ){1,4}know\b",
    r"\b(?:missing|left out)\b|\bwhat (?:should|must|will|would) (?:it|this|the (?:function|program|code))\b|"
    r"\bwhat (?:can|could) you tell\b",
    r"\bwhat(?:'s| is| are) (?:it|the \S+|your \S+|this|they) (?:\S+ )?(?:about|like|for)\b",
    r"\bwhat (?:do|are|would|did) you (?:want|need|like|looking|look|hope|wish|planning|plan)\b",
)
_OPENING = content_words(re.sub(r"[^a-z ]", " ", f"{_WRITE} {_DETAILS}"))  # words that make a question open


@dataclass(frozen=True)
class Reading:
    """What a question asks for.

    Attributes:
        asks: Whether it asks for something that the user wants or knows.
        why: The rule that decided, e.g. "slot" or "definition".
        open: Whether it asks what the text should say, and for no slot.
        slots: Names of the `SLOTS` that it names.
        meaning: Stems of its content words.
    """

    asks: bool
    why: str
    open: bool = False
    slots: frozenset[str] = frozenset()
    meaning: frozenset[str] = frozenset()


@lru_cache(maxsize=65536)  # the user and several metrics read the same questions
def read_question(question: str, known: frozenset[str] = frozenset(), cues: frozenset[str] = frozenset()) -> Reading:
    """Decide what one question asks for.

    Args:
        question: A sentence with a question mark, or a request.
        known: Stems of what the user gives at once: the topic and the form.
        cues: Stems by which hidden items can be asked for. A question with one of them may be about the user's case
            even if no other rule says so.
    """
    text = re.sub(r"\b(?:take|takes|took|taking) place\b", "happen", " ".join(question.lower().split()))
    text = re.sub(r"\ba place (?:on|in|at)\b ?", "", text.replace("’", "'"))
    slots, meaning = _slots(_ADDED.sub(r"\1", text), known), content_words(text)
    if refused := _refusal(text, len(slots), meaning, known, cues):
        return Reading(False, refused, meaning=meaning)
    if _REQUEST.search(text):
        return Reading(True, "request", not slots, slots, meaning)
    if _WORLD.search(text) and not meaning & cues:
        return Reading(False, "world", meaning=meaning)
    opens = not slots and bool(_OPEN.search(_without(known & _OPENING, text)))
    if _WISH.search(text) or _is_choice(text):
        return Reading(True, "wish", opens, slots, meaning)
    # "When is the sun?" names a thing that is neither the user's nor a part of any text.
    in_the_case = _MEANS_IT.search(text) or meaning & (known | cues) - OF_ANY_TEXT or not meaning - OF_ANY_TEXT
    asks_slot = _SLOT.search(text) or _BARE_SLOT.search(text) or (slots and _ABOUT_THE_CASE.search(text))
    if asks_slot and in_the_case:
        return Reading(True, "slot", opens, slots, meaning)
    if meaning & cues and in_the_case and re.search(r"^\W*(?:and )?(?:what|which|how|who|where|when)\b", text):
        return Reading(True, "case", False, slots, meaning)
    return Reading(False, "nothing", meaning=meaning)


def _refusal(text: str, num_slots: int, meaning: frozenset[str], known: frozenset[str], cues: frozenset[str]) -> str:
    """The rule that refuses a question, or ""."""
    length = len(words(text))
    if num_slots > 2:
        return "too many"
    if length < 2 or (length == 2 and not num_slots and not meaning & cues):
        return "short"
    for rule, pattern in _REFUSED.items():
        excused = rule == "offer" and _WANTS_ME.search(text) or rule == "finished" and meaning & cues & _EXAMPLE
        if pattern.search(text) and not excused:
            return rule
    without_verb = _HOW_LONG.search(text)
    if without_verb and stem(without_verb[1]) in known:
        return "broken"
    asked_for = _HANDED_OVER.search(text)
    return "finished" if asked_for and stem(asked_for[1]) in known else ""


def _without(known: frozenset[str], text: str) -> str:
    """The text without these words: "What does the shared kiln cost?" does not ask what is to be shared."""
    return re.sub(r"[\w'-]+", lambda word: "" if stem(word[0]) in known else word[0], text) if known else text


def _is_choice(text: str) -> bool:
    """Whether it only lists things to choose from, without a verb: "Friendly nudge or firm warning?"."""
    asked = words(text)
    several = "or" in asked[1:-1] or text.count(",") > 1
    return several and len(asked) <= 12 and not _VERBS & set(asked)


_HOW_LONG = re.compile(  # "How long should the note?", without a verb, which GRPO asked of every text
    r"\bhow long (?:should|may|might|must|can|could|will|would) (?:the|this|your|that)\b"
    r"(?! .*\b(?:be|take|last|run|stay|go|wait|remain|keep|hold|hang|stand)\b)(?: [\w'-]+)? ([\w'-]+)\W*$"
)
_VERBS = frozenset("is are was were do does did can could will would shall should may have has you i we".split())


@lru_cache(maxsize=4096)  # items are read at every turn of every conversation
def slots_of(cues: str) -> frozenset[str]:
    """The slots that the cues of an item name."""
    return _slots(cues.lower(), frozenset())


def _slots(text: str, known: frozenset[str]) -> frozenset[str]:
    """The slots that a question names. Words of the topic name none."""
    named = [word.split("'")[0] for word in words(text)]
    slots = {_SLOT_OF[word] for word in named if word in _SLOT_OF and stem(word) not in known}
    slots |= {slot for phrase, slot in _PHRASES.items() if phrase in text}
    if re.search(r"\bhow long\b.*\bbe\b|\bhow many (?:words|sentences)\b", text):
        slots = slots - {"how many", "how long"} | {"length"}
    elif "how long" in text:
        slots = slots - {"length"} | {"how long"}
    if re.search(r"\bwho (?:is|will|are|would|should)\b.*\b(?:for|read|to|reading|receive|addressed|invited)\b", text):
        slots.add("audience")
    if re.search(r"\b(?:what|where|how|when) (?:should|do|can|must|will|may) (?:the |your )?readers? (?!be\b)\w", text):
        slots.discard("audience")  # "What should readers bring?" does not ask who they are
    if "name of" in text and not _NAME_OF_SOMEBODY.search(text):
        slots = slots - {"who"}
    return frozenset(slots - {"who"} if "audience" in slots else slots)


_PHRASES = {"how much": "how much", "how many": "how many", "sign up": "contact"}
_ADDED = re.compile(  # "How should it sound when the cranes are done?" does not ask when
    r"^(\W*(?:and |so )?(?:what|which|who|how|where|why)\b.*?)(?<! and)(?<! or)(?<! about)(?<! at)(?<!,) "
    r"(?:when|where|while|if|once|until|after|before|because)\b.*"
)
_NAME_OF_SOMEBODY = re.compile(  # a thing has no name that the user would hold back
    r"\bname of (?:\S+ ){0,3}?(?:person|contact|man|woman|host|guide|chef|cook|coach|nurse|child|"
    r"\w+(?:er|or|ist|ian))\b"
)
