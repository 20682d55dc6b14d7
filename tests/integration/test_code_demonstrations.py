"""Conversations about programs that SFT learns from: asked, answered by the rule-based user, written, and tried."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.code_demonstrations import main
from collab.datamodules.conversations import load_groups


def test_they_are_written_in_the_layout_that_training_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = tmp_path / "made" / "demonstrations.jsonl"
    monkeypatch.setattr(sys, "argv", ["code_demonstrations.py", str(written), "task.data=null", "task.num_train=3"])
    main()
    groups = load_groups(written, "")
    assert [group.context.turn for group in groups] == [1, 2, 3] * 3
    assert all("```python" in group.candidates[0].reply.text for group in groups[2::3])
    assert all(group.candidates[0].scores[0].parts["pass_rate"] == 1 for group in groups[2::3])
