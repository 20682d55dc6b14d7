"""What the voice of `user=hybrid` may type, as a grammar, and worked examples of it.

A message is brackets, [1] and [2], with small words of chat around them. Only the words below are allowed, so the voice
can add nothing to what the brackets stand for. The words right before a bracket and right behind it are of fewer kinds,
so that a sentence fits there.

The grammar is a regular expression and part of the schema of the reply, so the local engine draws nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Kind:
    """A kind of message. Lists of words are one text, where "_" stands for a space inside a phrase.

    Attributes:
        words: What may be typed around the brackets, besides the words of the other lists.
        leads: What may stand right before a bracket without a mark between them.
        joins: What may stand right behind a bracket without a mark between them.
        ends: What may end a message behind the last bracket.
        closing: Marks that may end a message.
        examples: Persona -> messages with one bracket or two.
    """

    words: str
    leads: str
    joins: str
    ends: str
    closing: str
    examples: dict[str, tuple[str, ...]]


_COMMON = """
a about actually afraid ah all also alright and anyway as basically be believe bit both btw but by can clear could
course did exact fair for frank fyi guess ha haha here hey hm hmm honest honestly I I'd I'll I'm I've in is it it's just
know let's let_me like little look me mean mind my now of oh ok okay on one please plus point quick quite really right
say see should so some sorry suppose that that's the then there thing think this though to too uh um wait was way well
what with would yeah you
"""
_OPENS = Kind(
    # No bare "you", "let's", "how" and "what": with them the voice asks what the other side would like.
    words=" ".join(set(_COMMON.split()) - {"you", "let's", "let_me", "what", "I'll"})
    + """
    again asked asking been begin best bother can_you come could_you could_you_maybe do doing draft drafting else
    ever first get getting give good got great had hand have hello help help_me_with helping hi hope how_to_start
    idea if if_you_could kind lost love make making maybe much need new not not_sure not_very_good on_my_own or_so
    possible put quickly someone something start starting stuck thank thanks thinking time today together took
    trying up us want we where wondering working write writing
    """,
    leads="about do draft drafting for get have is like make making me need of on want was with write writing",
    joins="and but can_you could_you for I if it's please pls so thanks that",
    ends="appreciate begin bother great hand haha help here idea it know lol me much now ok okay please pls possible "
    "right start sure thanks that this time together too up us with how_to_start",
    closing=".!?",
    examples={
        "terse": (
            "need [1]",
            "hey can you write [1]",
            "[1] pls",
            "need help with [1]",
            "so I have to write [1]",
            "can you do [1] for me",
        ),
        "chatty": (
            "Hi there! I really need [1], could you help me?",
            "Hey! I have to do [1]. Can you help?",
            "Oh hello! Help me with [1]? I'd love that!",
            "Hi! I need to write [1], and I'm lost, haha!",
        ),
        "unsure": (
            "um, hi, I need [1]? I'm not sure",
            "Hello, um, I need [1], if possible.",
            "Hi, I guess I want [1], if that's ok?",
            "So, I have to write [1]. Can you help?",
        ),
        "exacting": (
            "Hello. I need [1], please.",
            "Could you please write [1]?",
            "I would like to have [1], please.",
            "Hello. I need [1]. Please draft it.",
        ),
    },
)
_GIVES = Kind(
    words=_COMMON
    + """
    add again answer asked asking do else enough exactly finally first forgot funny glad go good had have helps hope how
    if important main makes matters maybe mention mentioned need nearly next not_sure precise precisely question
    questions remember second sense short sure tell thank thanks things two was_going_to where_was_I yep yes
    """,
    leads="actually add also and anyway basically believe btw but forgot fyi guess haha hm honestly know maybe mean "
    "mention oh ok plus remember right say so sure suppose that then think uh um well yeah yep yes",
    joins="also and as but I if it's lol maybe ok plus right so that's then though too you",
    ends="actually all anyway asked basically believe bit both btw clear course enough exact fair fyi guess haha help "
    "helps here honest honestly important it know lol matters maybe mean mentioned mind now ok okay please point "
    "precise precisely question remember right said say sense suppose sure thanks that there think this though too way "
    "you",
    closing=".!",
    examples={
        "terse": (
            "[1], [2]",
            "ok so [1] and [2]",
            "[1]. oh and [2]",
            "yeah, [1]",
            "[1] I think",
            "um, [1]. also [2]",
            "well [1]",
            "so [1]. [2] too",
        ),
        "chatty": (
            "Oh, good question! So, [1], and I nearly forgot, [2], haha!",
            "Haha, glad you asked! Well, [1]!",
            "Oh yes, that! So [1], and then, wait, [2], I think that's it!",
            "Well, let's see, [1]. Oh, and then, [2]!",
            "Right, so [1], if that helps!",
            "Ah, I was going to mention that! [1], you know. And then [2]!",
        ),
        "unsure": (
            "um, I think [1], and I guess [2]",
            "Hm, I suppose [1], if that makes sense.",
            "I think [1], not sure if that helps.",
            "Well, [1], I believe. And maybe also [2].",
            "Oh, um, [1], I guess. Also, [2], if I remember right.",
            "So, I mean, [1], if that matters.",
        ),
        "exacting": (
            "To be precise, [1]. Also, [2].",
            "[1]. And please remember that [2].",
            "Thank you for asking. [1], to be exact.",
            "First, [1]. Second, [2].",
            "Two things, please. [1]. And then, [2]. That's all.",
            "Yes. To be clear, [1].",
        ),
    },
)
_REMARKS = Kind(
    words=f"{_COMMON} hope no not_sure respect",
    leads="actually and but hm hmm honestly look no oh ok so sorry uh um wait well",
    joins="sorry",
    ends="haha lol sorry",
    closing=".!",
    examples={
        "terse": ("hm. [1]", "[1]", "um, [1]", "ok but [1]", "well, [1]", "no. [1]"),
        "chatty": ("Oh, haha, well, [1]", "Hmm, wait, wait! [1]", "Oh, I see, but, um, [1]", "Haha, ok! But [1]"),
        "unsure": ("um, sorry, [1]", "Hmm, I mean, [1]", "Well, I guess, um, [1]", "Sorry, but [1]"),
        "exacting": ("To be honest, [1]", "I'm sorry, but [1]", "Look, [1]", "With respect, [1]", "To be frank: [1]"),
    },
)
KINDS = {"opens": _OPENS, "gives": _GIVES, "remarks": _REMARKS}
_LONG = 4  # words before the last one in front of a bracket or at an end; with more a 1.5B rambles


@lru_cache(maxsize=64)  # a few kinds and numbers of brackets
def pattern_of(name: str, brackets: int) -> str:
    """What a message of this kind looks like, as a regular expression: so many brackets in their order, and words.

    Args:
        name: Of `KINDS`.
        brackets: At least 1.
    """
    kind = KINDS[name]
    word = _any(f"{kind.words} {kind.leads} {kind.joins} {kind.ends}")
    lead, join, end = _any(kind.leads), _any(kind.joins), _any(kind.ends)
    both = _any(" ".join(set(kind.leads.split()) & set(kind.joins.split())))
    # Behind a word or a bracket, before a space. No dots: with them a small model breaks its sentences off.
    stop = f"[,:{kind.closing}]"
    some = f"(?:{word}{stop}? ){{0,{_LONG}}}"
    until = f"{some}(?:{word}{stop}|{lead}) "  # the next bracket
    between = f"(?:{stop} (?:{until})?|,? (?:{both} |{join}{stop}? {until}))"
    after = f"(?:(?:{stop} | {join}{stop}? ){some}{end}| {end})?[{kind.closing}]{{0,3}}"
    return f"^(?:{until})?{between.join(_marks(brackets))}{after}$"


def loose_pattern_of(brackets: int) -> str:
    """A pattern that is short: so many brackets in their order, and no figure and no other alphabet beside them."""
    around = r"[A-Za-z',.:!? -]{0,80}"
    return f"^{around}{around.join(_marks(brackets))}{around}$"


def _marks(brackets: int) -> list[str]:
    return [rf"\[{number}\]" for number in range(1, brackets + 1)]


def _any(words: str) -> str:
    """Any of these words or phrases, with a capital or without."""
    each = sorted({word.replace("_", " ") for word in words.split()})
    return "(?:" + "|".join(one if one[0] == "I" else f"[{one[0].upper()}{one[0]}]{one[1:]}" for one in each) + ")"
