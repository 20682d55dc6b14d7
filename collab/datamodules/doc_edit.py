"""Goals of document editing: the assistant writes a short text, and only the user knows what is to be in it."""

from __future__ import annotations

import ast
from datetime import UTC, datetime
from pathlib import Path

from collab.conversation import Goal
from collab.datamodules.goals import DATA, TaskGoals
from collab.datamodules.rows import Layout, Row, derived_id
from collab.util.errors import BadInput

MAX_WORDS = 500  # longer articles are left out, as in the paper


class DocEditGoals(TaskGoals):
    """Goals of `task=doc_edit`.

    The goals that ship are in `data/doc_edit`, one JSONL file for each split. Their references have 25 to 45 words in a
    few sentences, and no split shares a goal or a topic with another.

    `fabiochiu/medium-articles` is read too, as in the paper: articles of at most 500 words, the most recent first. In
    the paper a language model summarises each article as the user's wish; here the wish is title and tags.
    """

    def __init__(self) -> None:
        # https://huggingface.co/datasets/fabiochiu/medium-articles: one CSV file, which also has url and authors
        self.layouts = (Layout(("title", "text", "timestamp", "tags"), _article, _newest_first),)

    def shipped(self, split: str) -> Path:
        return DATA / "doc_edit" / f"{split}.jsonl"


def _article(row: Row, where: str) -> Goal | None:
    title, text = (str(row[name] or "").strip() for name in ("title", "text"))
    if not title or not 0 < len(text.split()) <= MAX_WORDS:
        return None
    try:
        _newest_first(row)
    except (ValueError, OverflowError) as error:
        raise BadInput(
            f"{where}: timestamp is {row['timestamp']!r}; it must be a date like 2020-12-24 06:04:27."
        ) from error
    tags = ", ".join(_tags(row["tags"]))
    wish = f'Please write an article of at most {MAX_WORDS} words with the title "{title}".'
    wish += f" It belongs to {tags}." if tags else ""
    metadata = {"title": title, "form": "article", **({"tags": tags} if tags else {})}
    return Goal(derived_id(wish, text), wish, text, metadata)


def _newest_first(row: Row) -> float:
    time = datetime.fromisoformat(str(row["timestamp"]))
    return -(time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _tags(given: object) -> list[str]:
    """The tags of a row; the column holds Python lists, which are text in CSV."""
    if isinstance(given, str):
        try:
            given = ast.literal_eval(given)
        except (ValueError, SyntaxError):
            given = [given]
    return [str(tag) for tag in given if str(tag).strip()] if isinstance(given, list) else []
