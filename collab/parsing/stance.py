"""Whether a user's chat message agrees or complains, by patterns of English.

The patterns are rough: they see no irony, and they miss what they do not list. They serve to compare users on many
messages, not to judge a single one.
"""

from __future__ import annotations

import re

_AGREES = re.compile(
    r"^\W*(?:oh,? |ah,? |well,? )?(?:yes|yeah|yep|yup|sure|right|ok|okay|of course|exactly|correct|absolutely"
    r"|definitely|agreed|great|perfect|excellent|nice|fine|cool|good (?:question|point|idea|one|job|work))\b(?!\?)"
    r"|\b(?:sounds (?:good|great|fine|right)|that works|that will do|i (?:like|love) (?:it|that|this)"
    r"|looks (?:good|great|fine)|well done|that(?:'s| is) (?:it|right|perfect|great|good|exactly|fine|better))\b"
    r"|(?<!no )\b(?:thanks|thank you)\b"
)
_COMPLAINS = re.compile(
    r"^\W*(?:hmm,? |uh,? |well,? )?(?:no|nope|nah|ugh|wrong)\b(?! (?:idea|problem|worries|wish|thanks))"
    r"|\b(?:not what i|not (?:really )?the point|not (?:quite )?right|cannot be right|can't be right"
    r"|(?:does not|doesn't|did not|didn't|do not|don't) (?:really )?(?:help|fit|work|answer|listen|get it)"
    r"|you(?:'re| are)? (?:missing|missed|forgot|keep|still have not|still haven't|have that already)"
    r"|i(?:'ve| have)? (?:just |already )*(?:told|said|answered|explained)|(?:already|just) (?:told|said|gave|answered)"
    r"|we have been there|one thing at a time|a lot at once|too (?:many|long|much)|for the (?:second|third|last) time"
    r"|how would that help|(?:is|'s) not what|i had another|stop (?:asking|it|that)|get to the point|no time|waste"
    r"|useless|pointless|annoy\w*|frustrat\w*|ridiculous|seriously|come on|never mind|forget it|i give up)\b"
)


def agrees(message: str) -> bool:
    """Whether a message says yes, thanks or praises."""
    return bool(_AGREES.search(_plain(message)))


def complains(message: str) -> bool:
    """Whether a message objects, or shows that its writer is losing patience."""
    return bool(_COMPLAINS.search(_plain(message)))


def _plain(message: str) -> str:
    return message.lower().replace("’", "'")
