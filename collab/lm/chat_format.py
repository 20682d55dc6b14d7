"""From messages to token ids, append-only; only the chat template makes control tokens.

Chat templates are not append-only: when a longer conversation is rendered again, an earlier reply may be rewritten or
tokenised in another way. The policy would then be trained on tokens that it never sampled. So a reply enters as the ids
that were sampled, and the template gives only what lies between two replies.

A message may spell a control token, such as `<|im_end|>`, which would end its turn and could open another one. So the
template and the tokenizer see a character of the private use area in place of each such spelling, and what stands
between two control tokens of the template is tokenised as ordinary text. A conversation without such spellings is
tokenised in one piece.

A template that leaves out what the assistant thought in earlier turns is the exception to the first paragraph: it
renders each prompt anew, since the model was trained to read it so. What is trained on are the sampled ids behind the
prompt that was read, in any case.

The template of a user model, such as UserLM-8b's, ends each prompt by opening a message of the user. Then replies are
the user's messages (`ChatFormat.speaker`), in what follows too. Such a model writes one control token within a message:
`END`, where its tokenizer has it as one.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any

from collab.chat.base import ContextFull, Sampling
from collab.chat.thoughts import MARKS, split_thought
from collab.conversation import Message, Reply, Role
from collab.lm.inner import inner_of
from collab.parsing.intents import END
from collab.util.errors import BadInput, first_line

_PRIVATE = (0xE000, 0xF900), (0xF0000, 0xFFFFE)  # ranges of code points that no script uses
_PROBES = [
    Message("system", "40817"),
    Message("user", "29553"),
    Message("assistant", "73519"),
    Message("user", "61142"),
]  # what they say is recognised in a rendering


class ChatFormat:
    """Renders conversations for one tokenizer.

    Where the template refuses system messages or leaves them out, the system message is put in front of the first user
    message, with an empty line between them.

    Args:
        tokenizer: A transformers tokenizer with a chat template and an end-of-turn token.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._spelt_in = lru_cache(4096)(self._find_control)

    def encode(self, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        """Token ids of the prompt that asks for the next message of the speaker.

        Returns:
            The ids, and the lengths of prefixes that earlier requests for the same conversation have computed: they end
            with a message of the speaker, or in front of one if the template drops thoughts.

        Raises:
            BadInput: The chat template cannot render the messages.
        """
        replies = [i for i, message in enumerate(messages) if message.role == self.speaker]
        if replies and self.drops_thoughts:
            ids = self._tokens(messages)
            prompts = [self._tokens(messages[:place]) for place in replies]
            return ids, [len(prompt) for prompt in prompts if ids[: len(prompt)] == prompt]
        ends = [*replies, len(messages)]
        opening = messages[: ends[0]]
        ids = self._tokens(opening)
        boundaries = []
        for place, following in itertools.pairwise(ends):
            message = messages[place]
            reply = list(message.token_ids) if message.token_ids else self.encode_text(self._lead + message.content)
            ids += reply
            boundaries.append(len(ids))
            ids += self._between(opening, messages[place + 1 : following], reply)
        return ids, boundaries

    def encode_reply(self, text: str, cut: bool = False) -> list[int]:
        """Token ids of a reply that is known as text, as if it had been sampled; at least one.

        Args:
            text: The reply. `END` alone becomes the control token, if a user model has it as one.
            cut: Whether it was cut at the length limit, before an end-of-turn token.
        """
        if self.opens_thought and self.marks[1] not in text:  # else the reply would be taken for a thought
            text = f"\n{self.marks[1]}\n\n{text}"
        if text == END and self._end_of_chat:
            ids = [*self.encode_text(self._lead), *self._end_of_chat]
        else:
            ids = self.encode_text(self._lead + text)
        return ids if ids and cut else [*ids, *self._end]

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a text alone, none of them a control token."""
        return self._ordinary(text) if self._spelt_in(text) else self._tokenize(text)

    def read(self, reply: Reply, sampling: Sampling) -> Reply:
        """A sampled reply with the text of its `token_ids`, the thought apart unless `sampling` wants it shown."""
        whole = self.decode(reply.token_ids, sampling.stop)
        text, thought = split_thought(whole, self.marks, self.opens_thought)
        if text == whole or sampling.show_thoughts:
            return replace(reply, text=whole)
        said = len(self.encode_text(text)) + (reply.token_ids[-1] in self.control)
        return replace(reply, text=text, reasoning=thought, reasoning_tokens=max(0, len(reply.token_ids) - said))

    def decode(self, ids: Sequence[int], stop: Sequence[str] = ()) -> str:
        """The text of a reply before its first stop string, stripped and without control tokens but `END`."""
        spelt = self._mark_tokens | self._end_of_chat  # they may be special tokens
        said = [index for index in ids if index in spelt or index not in self.control]
        text = ""
        for mark, part in itertools.groupby(said, spelt.get):
            text += mark or self.tokenizer.decode(list(part), skip_special_tokens=True)
        return text[: min((text.find(one) for one in stop if one in text), default=None)].strip()

    def render(self, messages: Sequence[Message]) -> str:
        """The text of the prompt that asks for the next message of the speaker, as the template writes it."""
        if messages and messages[0].role == "system" and self.folds_system:
            system, *rest = messages
            if not rest or rest[0].role != "user":
                return self._template([replace(system, role="user"), *rest])
            messages = [replace(rest[0], content=f"{system.content}\n\n{rest[0].content}"), *rest[1:]]
        return self._template(messages)

    @cached_property
    def speaker(self) -> Role:
        """Who writes what a prompt asks for: the assistant, or the user if a prompt ends as a user's message begins."""
        try:
            asks, heard = self._template(_PROBES[:1]), self._template(_PROBES[:2])
        except BadInput:
            return "assistant"
        before, found, _ = heard.partition(_PROBES[1].content)
        return "user" if found and before.rstrip() == asks.rstrip() else "assistant"

    @property
    def _opening(self) -> list[Message]:
        """The shortest conversation in which the speaker is due."""
        return _PROBES[:1] if self.speaker == "user" else _PROBES[1:2]

    @cached_property
    def _lead(self) -> str:
        """White space that a user model's template writes between the end of a prompt and the message."""
        if self.speaker == "assistant":
            return ""
        asks, heard = self._template(_PROBES[:1]), self._template(_PROBES[:2])
        return heard[len(asks) : heard.index(_PROBES[1].content)]

    @cached_property
    def folds_system(self) -> bool:
        """Whether the template refuses system messages, or leaves them out. Those of user models have to keep them."""
        if self.speaker == "user":
            return False
        self._template(_PROBES[1:2])
        try:
            return _PROBES[0].content not in self._template(_PROBES[:2])
        except BadInput:
            return True

    @cached_property
    def marks(self) -> tuple[str, str]:
        """What stands before and behind a thought."""
        template = str(self.tokenizer.chat_template)
        return next((marks for marks in MARKS if marks[0] in template or marks[1] in template), MARKS[0])

    @cached_property
    def opens_thought(self) -> bool:
        """Whether a prompt ends within a thought, so that a reply begins in it."""
        asks = self.render(_PROBES).rpartition(_PROBES[-1].content)[2]
        return asks.rfind(self.marks[0]) > asks.rfind(self.marks[1])

    @cached_property
    def drops_thoughts(self) -> bool:
        """Whether the template leaves out what the assistant thought in earlier turns. Users do not think aloud."""
        if self.speaker == "user":
            return False
        (start, end), (_, user, reply, last) = self.marks, _PROBES
        thinking = replace(reply, content=f"{start}\n90337\n{end}\n\n{reply.content}")
        text = self.render([user, thinking, last])
        return "90337" not in text and reply.content in text

    @property
    def dates(self) -> bool:
        """Whether the template writes the date of the day, so that prompts differ from day to day."""
        clock = "{% macro strftime_now(layout) %}41975{% endmacro %}"
        return "41975" in self._template(self._opening, chat_template=clock + self.tokenizer.get_chat_template())

    @cached_property
    def _mark_tokens(self) -> dict[int, str]:
        """Id -> spelling of the marks that are added tokens."""
        added = self.tokenizer.added_tokens_decoder
        return {index: token.content for index, token in added.items() if token.content in self.marks}

    @cached_property
    def _end_of_chat(self) -> dict[int, str]:
        """Id -> spelling of the control token with which a user model ends the chat; empty if it has no such one."""
        if self.speaker == "assistant":
            return {}
        added = self.tokenizer.added_tokens_decoder
        return {index: END for index, token in added.items() if token.content == END and index in self.control}

    @cached_property
    def control(self) -> frozenset[int]:
        """The ids that only the template may make: special tokens, and added tokens by which it marks turns.

        The marks of thoughts are none of them, since the model makes them too.
        """
        added = self.tokenizer.added_tokens_decoder
        special = {index for index, token in added.items() if token.special}
        frame, _, _ = self.render(_PROBES).rpartition(_PROBES[-1].content)
        written = {i for i, token in added.items() if token.content.strip() and token.content in frame}
        return frozenset((special | written | set(self.tokenizer.all_special_ids)) - self._mark_tokens.keys())

    @property
    def end(self) -> int | None:
        """The control token that the template puts behind a reply; None if it puts ordinary text there."""
        return next((index for index in self._end if self._ends(index)), None)

    @cached_property
    def _end(self) -> list[int]:
        """The end-of-turn token."""
        ids = self._between(self._opening, [], [])
        place = self._end_in(ids)
        return ids[place : place + 1]

    def _end_in(self, ids: list[int]) -> int:
        """The place of the end-of-turn token in what the template puts behind a reply; white space may come first."""
        place = next((i for i, index in enumerate(ids) if self._ends(index)), 0)
        return 0 if self.tokenizer.decode(ids[:place]).strip() else place

    def _ends(self, index: int) -> bool:
        unknown = self.tokenizer.unk_token_id  # also what a word beyond the vocabulary becomes
        return index in self.control and (index != unknown or index == self.tokenizer.eos_token_id)

    def _between(self, opening: Sequence[Message], added: Sequence[Message], reply: list[int]) -> list[int]:
        """The ids from the end of a reply to the start of the next one.

        They are what the template puts behind a mark in place of the reply. A sampled reply already ends with the
        end-of-turn token, so it is left out; a reply that was cut gets it here.
        """
        mark = "~73519~"  # no letters, since a template may change their case
        while any(mark in message.content for message in (*opening, *added)):
            mark += "~"
        ids = self._tokens([*opening, Message(self.speaker, mark), *added], mark)
        place = self._end_in(ids)
        return ids[place + 1 :] if reply and ids and reply[-1] == ids[place] else ids

    def _tokens(self, messages: Sequence[Message], mark: str = "") -> list[int]:
        """The ids of a prompt, or of what follows the last `mark` in it."""
        hidden, spelt = self._hide(messages)
        text = self.render(hidden)
        if mark:
            if mark not in text:
                raise BadInput(f"The chat template of {self._name} leaves out a reply, or changes it.")
            text = text[text.rindex(mark) + len(mark) :]
        if not spelt:
            return self._tokenize(text)
        ids: list[int] = []
        done = 0
        for start, end, index in self._find_control(text):
            ids += [*self._ordinary(_shown(text[done:start], spelt), within=done > 0), index]
            done = end
        return ids + self._ordinary(_shown(text[done:], spelt), within=done > 0)

    def _template(self, messages: Sequence[Message], **arguments: Any) -> str:
        plain = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text: str = self.tokenizer.apply_chat_template(
                plain, tokenize=False, add_generation_prompt=True, **arguments
            )
        except Exception as error:  # a template is a program, and may fail in any way
            roles = ", ".join(message.role for message in messages)
            raise BadInput(
                f"The chat template of {self._name} cannot render a conversation of {roles}: {first_line(error)}. "
                "Mend the template, or take a tokenizer with another one."
            ) from error
        return text

    @property
    def _name(self) -> str:
        return self.tokenizer.name_or_path or type(self.tokenizer).__name__

    # --- text apart from control tokens ----------------------------------------------------------------------------

    def _tokenize(self, text: str, **options: Any) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, **options)["input_ids"]
        return ids

    def _find_control(self, text: str) -> tuple[tuple[int, int, int], ...]:
        """(start, end, id) of each control token in the tokenizer's own reading of a text."""
        tokenizer = self.tokenizer
        if not tokenizer.is_fast:  # it has no offsets
            names = {tokenizer.convert_ids_to_tokens(index): index for index in self.control}
            pattern = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
            return tuple((*match.span(), names[match[0]]) for match in re.finditer(pattern, text))
        read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        found = ((*span, index) for index, span in zip(read["input_ids"], read["offset_mapping"], strict=True))
        unknown, name = tokenizer.unk_token_id, tokenizer.unk_token  # text beyond the vocabulary becomes it, too
        return tuple(
            (start, end, index)
            for start, end, index in found
            if index in self.control and (index != unknown or text[start:end].strip() == name)
        )

    def _hide(self, messages: Sequence[Message]) -> tuple[Sequence[Message], dict[str, str]]:
        """The messages with a character for each spelling of a control token, and character -> spelling."""
        if not any(self._spelt_in(message.content) for message in messages):
            return messages, {}
        used = set().union(*(message.content for message in messages))
        free = (chr(code) for area in _PRIVATE for code in range(*area) if chr(code) not in used)
        names: dict[str, str] = {}  # spelling -> character
        hidden = []
        for message in messages:
            text, done = "", 0
            for start, end, _ in self._spelt_in(message.content):
                spelling = message.content[start:end].strip()  # a token may take in the white space around it
                start = message.content.index(spelling, start)
                if spelling not in names:
                    names[spelling] = next(free)
                text += message.content[done:start] + names[spelling]
                done = start + len(spelling)
            hidden.append(replace(message, content=text + message.content[done:]))
        return hidden, {character: spelling for spelling, character in names.items()}

    def _ordinary(self, text: str, within: bool = False) -> list[int]:
        """The ids of a text in which nothing is read as a control token.

        Args:
            text: The text.
            within: Whether it follows a control token. Some tokenizers put a space in front of a text's beginning.
        """
        if within and self._spaces_beginning:
            head, whole = self._ordinary("\n"), self._ordinary(f"\n{text}")
            if whole[: len(head)] == head:
                return whole[len(head) :]
        ids = self._tokenize(text, split_special_tokens=True)
        if self.control.isdisjoint(set(ids) - {self.tokenizer.unk_token_id}):
            return ids
        # Not marked as special, or a word of the vocabulary: such a spelling is cut behind its first character.
        cuts = [end - len(text[start:end].lstrip()) + 1 for start, end, _ in self._spelt_in(text)]
        parts = [text[start:end] for start, end in itertools.pairwise([0, *cuts, len(text)])]
        if len(parts) == 1 or "" in parts[1:]:  # a token of one character cannot be cut
            return [index for index in ids if index not in self.control]
        return [*self._ordinary(parts[0], within), *(i for part in parts[1:] for i in self._ordinary(part, True))]

    @cached_property
    def _spaces_beginning(self) -> bool:
        end = self.tokenizer.eos_token or ""
        return self._tokenize(f"{end}a") != self._tokenize(end) + self._tokenize("a")


def _shown(text: str, spelt: dict[str, str]) -> str:
    return "".join(spelt.get(character, character) for character in text)


def check_fits(prompt: Sequence[int], max_new_tokens: int, positions: int | None) -> None:
    """Refuse a prompt after which a model cannot write a whole reply.

    Raises:
        BadInput: The prompt is empty.
        ContextFull: It leaves too few of the model's positions for the reply.
    """
    if not prompt:
        raise BadInput(
            "The conversation is rendered as no token at all, and a reply has to follow at least one. Give a message "
            "that is not empty, or a tokenizer with a chat template that says who speaks next."
        )
    if positions and len(prompt) + max_new_tokens > positions:
        raise ContextFull(
            f"A conversation of {len(prompt)} tokens plus max_new_tokens={max_new_tokens} does not fit the model's "
            f"{positions} positions. Lower task.max_turns or task.max_new_tokens."
        )


def end_tokens(lm: Any, format: ChatFormat) -> set[int]:
    """The tokens that end a reply: of a transformers model's generation config, of its tokenizer and its template."""
    inner = inner_of(lm)
    stops = inner.generation_config.eos_token_id if inner.generation_config else None
    stops = stops if isinstance(stops, list) else [stops]
    return {stop for stop in (*stops, format.tokenizer.eos_token_id, format.end) if stop is not None}
