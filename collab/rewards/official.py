"""The metrics of the official code, for `definitions=official`: the same figures for the same conversations.

The package `collabllm` 0.0.8 brings the extraction and the sum; its metrics are in the folder examples/metrics of
https://github.com/microsoft/CollabLLM. The computations are theirs, the wording of the prompts is ours.
docs/method/official.md has the table. Interactivity is `collab.rewards.judge.Interactivity`, as theirs from 0 to 1.

tiktoken comes with the extra `official`.
"""

from __future__ import annotations

import re
from typing import Any

from collab.conversation import Conversation
from collab.rewards.judge import JudgedMetric, spoken
from collab.rewards.metrics import CharacterBleu, Judged, PassRate
from collab.util.errors import BadInput

_EXTRA = "Run `pip install 'collab-llm[official]'`, or take definitions=collab."
_FENCED = re.compile(r"\s*```\w*\n(.*?)\n?```\s*", re.DOTALL)
_ACCURACY = """\
You decide whether a user got the right answer to a problem out of a conversation with an AI assistant. You see the
problem, the reference answer and the whole conversation. Only the final result counts, not the way to it and not its
form: 1 if what the assistant ends up with says the same as the reference, 0 if it says something else or nothing."""


class ChatBleu(CharacterBleu):
    """`CharacterBleu` of the document that a model puts together from the whole conversation."""

    whole_chat = True


class ChatPassRate(PassRate):
    """`PassRate` of the program that a model puts together from the whole conversation.

    It is run as it is, so a line that is no code makes it fail. Only a fence around all of it is taken off.
    """

    whole_chat = True

    def program(self, texts: list[str], entry_point: str) -> str:
        (text,) = texts
        fenced = _FENCED.fullmatch(text)
        return fenced[1] if fenced else text


class ChatAccuracy(JudgedMetric):
    """1 if a judge who reads the whole conversation finds the reference answer in it, else 0."""

    what = "accuracy"

    async def ask(self, conversation: Conversation) -> Judged:
        goal = conversation.goal
        return await self.judge.score(
            self.what,
            _ACCURACY,
            conversation,
            material="The problem, its reference answer and the conversation",
            name="conversation",
            texts=[f"PROBLEM: {goal.prompt}", f"REFERENCE: {goal.reference}", *spoken(conversation)],
        )


class Tokens:
    """Thousands of tokens (cl100k_base) of all messages of one side, joined by blanks.

    Args:
        side: "assistant" counts what the user reads, "user" what the user types.

    Raises:
        BadInput: `side` is neither; tiktoken is not installed, or cannot get its table.
    """

    def __init__(self, side: str = "assistant") -> None:
        if side not in ("assistant", "user"):
            raise BadInput(f"side ({side!r}) must be assistant or user. Set it to one of them.")
        self.side, self._encoding = side, _cl100k()

    async def __call__(self, conversation: Conversation) -> float:
        texts = conversation.assistant_texts if self.side == "assistant" else [turn.user for turn in conversation.turns]
        return len(self._encoding.encode(" ".join(texts), disallowed_special=())) / 1000


def _cl100k() -> Any:
    try:
        import tiktoken
    except ImportError as error:
        raise BadInput(f"definitions=official counts tokens with tiktoken, which is not installed. {_EXTRA}") from error
    try:
        return tiktoken.get_encoding("cl100k_base")
    except Exception as error:  # whatever requests, a proxy or a file system may raise
        raise BadInput(
            "tiktoken cannot download the table of cl100k_base, which definitions=official counts tokens with. Where "
            'there is a network, run `TIKTOKEN_CACHE_DIR=tables python -c "import tiktoken; '
            "tiktoken.get_encoding('cl100k_base')\"` once, copy the folder, and set TIKTOKEN_CACHE_DIR to it here. The "
            "package litellm has the table, too, in litellm/litellm_core_utils/tokenizers."
        ) from error
