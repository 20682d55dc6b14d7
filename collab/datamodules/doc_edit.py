"""Goals of document editing: the assistant writes a short text, and only the user knows what is to be in it."""

from __future__ import annotations

import ast
from datetime import UTC, datetime
from pathlib import Path

from collab.conversation import Goal
from collab.datamodules.goals import DATA, TaskGoals, check_option
from collab.datamodules.rows import Layout, Row, derived_id
from collab.util.errors import BadInput


class DocEditGoals(TaskGoals):
    """Goals of `task=doc_edit`.

    The goals that ship are in `data/doc_edit`, one JSONL file for each split. Their references have 25 to 45 words in a
    few sentences, and no split shares a goal or a topic with another.

    `fabiochiu/medium-articles` is read too, as in the paper: articles of at most `max_words` words, the most recent
    first. In the paper a language model summarises each article as the user's wish; here the wish is title and tags.

    Args:
        max_words: Longer articles are left out.

    Raises:
        BadInput: `max_words` is no whole number of at least 1.
    """

    def __init__(self, max_words: int = 500) -> None:
        check_option("max_words", max_words)
        self.max_words = max_words
        # https://huggingface.co/datasets/fabiochiu/medium-articles: one CSV file, which also has url and authors
        self.layouts = (Layout(("title", "text", "timestamp", "tags"), self._article, _newest_first),)

    def shipped(self, split: str) -> Path:
        return DATA / "doc_edit" / f"{split}.jsonl"

    def _article(self, row: Row, where: str) -> Goal | None:
        title, text = (str(row[name] or "").strip() for name in ("title", "text"))
        if not (title and text and len(text.split()) <= self.max_words):
            return None
        if _time(row) is None:
            raise BadInput(f"{where}: timestamp is {row['timestamp']!r}; it must be a date like 2020-12-24 06:04:27.")
        tags = _tags(row["tags"])
        wish = f'Please write an article of at most {self.max_words} words with the title "{title}".'
        wish += f" It belongs to {', '.join(tags)}." if tags else ""
        metadata = {"title": title, "form": "article", **({"tags": ", ".join(tags)} if tags else {})}
        return Goal(derived_id(wish, text), wish, text, metadata)


def _newest_first(row: Row) -> float:
    time = _time(row)
    assert time is not None  # else `_article` has refused the row
    return -time.timestamp()


def _time(row: Row) -> datetime | None:
    given = row["timestamp"]
    try:
        time = given if isinstance(given, datetime) else datetime.fromisoformat(str(given))
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _tags(given: object) -> list[str]:
    """The tags of a row; the column holds Python lists, which are text in CSV."""
    if isinstance(given, str):
        try:
            given = ast.literal_eval(given)
        except (ValueError, SyntaxError):
            given = [given]
    return [str(tag) for tag in given if str(tag).strip()] if isinstance(given, list) else []
