"""Document editing: the assistant writes a short text that only the user knows the content of."""

from __future__ import annotations

from collab.datamodules.base import GoalDataModule


class DocEditData(GoalDataModule):
    """Goals of `task=doc_edit`; those that ship are in `data/doc_edit`, one JSONL file a split.

    Their references have 25 to 45 words in a few sentences, and no split shares a goal or a topic with another.
    """
