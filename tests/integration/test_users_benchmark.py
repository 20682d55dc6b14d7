"""`benchmarks/users.py` with a model of random weights: it answers in form, and says nothing of sense."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import users


@pytest.mark.slow  # tests/integration/test_schemas.py has a user and a judge of random weights too
def test_it_measures_users_judge_and_overhead(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(users, "WRITTEN", tmp_path / "users.json")
    monkeypatch.setattr(
        sys, "argv", ["users.py", "--model", str(tiny_model), "--conversations", "2", "--requests", "2", "--write"]
    )
    users.main()
    found = json.loads((tmp_path / "users.json").read_text())
    assert json.loads(capsys.readouterr().out)["judge_in_form"] == found["judge_in_form"] == 1
    assert found["hybrid_invalid"] == found["agenda_invalid"] == 0 and 0 <= found["hybrid_fallback"] <= 1
    assert "user_shape" not in found["llm_problems"] and found["schema_overhead"] > -1
    assert found["command"].startswith("python benchmarks/users.py --model model")
