"""`collab simulator-report` and `collab judge-report` as typed, with rules and with a model of random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import finished
from marks import slow


def test_users_are_played_compared_and_compared_again_from_their_transcripts(tmp_path: Path) -> None:
    played = finished(
        *("collab", "simulator-report", "experiment=doc_edit", "users=difficulty", "report.num_conversations=6"),
        f"output_dir={tmp_path / 'played'}",
    )
    assert played.returncode == 0, played.stderr
    report = json.loads((tmp_path / "played" / "report.json").read_text())
    assert list(report["users"]) == ["user", "impatient", "vague", "noisy"]
    assert all(row["words"]["n"] == 6 for row in report["users"].values())
    assert report["users"]["noisy"]["invalid"]["mean"] == 0 and report["distance"]["vague"]["mean"] > 0
    satisfied = report["users"]["user"]["satisfied"]  # the user has read the last stored reply, the finished text
    assert satisfied["mean"] > 0 and satisfied["n"] > 0
    assert "stock phrases" in played.stdout and (tmp_path / "played" / "users.png").stat().st_size > 10_000

    again = finished(
        *("collab", "simulator-report", "experiment=doc_edit", f"report.stored=[before:{tmp_path / 'played'}]"),
        *(f"report.chats={tmp_path / 'played'}", "report.num_conversations=24", f"output_dir={tmp_path / 'again'}"),
    )
    assert again.returncode == 0, again.stderr
    found = json.loads((tmp_path / "again" / "report.json").read_text())
    assert list(found["users"]) == ["people", "before"] and found["users"]["before"] == found["users"]["people"]
    assert found["distance"]["before"]["mean"] == 0 < found["distance"]["before"]["chance"]
    assert found["totals"]["before"]["seconds_per_message"] is None

    refused = finished("collab", "simulator-report", "experiment=doc_edit", f"output_dir={tmp_path / 'again'}")
    assert refused.returncode == 1 and "has a report, which is not overwritten" in refused.stderr


@pytest.mark.parametrize("count", [1, slow(2)])
def test_two_judges_are_asked_and_compared(count: int, tiny_model: Path, tmp_path: Path) -> None:
    local = [f"{key}.endpoint.model={tiny_model}" for key in ("judge", "report.judges.two")]
    short = [f"{key}.max_new_tokens=30" for key in ("judge", "report.judges.two")]
    done = finished(
        *("collab", "judge-report", "experiment=doc_edit", "judge=local", "+judge@report.judges.two=local"),
        *(*local, *short, "report.judges.two.temperature=1.0", f"report.num_conversations={count}"),
        f"output_dir={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report["judges"]) == ["judge", "two"] and list(report["agreement"]) == ["judge, two"]
    entry = report["judges"]["two"]["interactivity"]
    assert entry["score"]["asked"] == count
    assert entry["injected"]["asked"] == count * entry["injections"]["texts"] >= count * 20
    assert entry["score"]["missing"] == entry["injected"]["missing"] == 0  # it is held to a schema
    assert report["position"]["judge"]["text"]["first"]["asked"] == count
    chats = tmp_path / "transcripts.jsonl"
    said = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert [(line["judge"], line["metric"], line["conversation"]) for line in said] == [
        (judge, "interactivity", number) for judge in ("judge", "two") for number in range(count)
    ]
    assert [line["goal"] for line in said[:count]] == [
        json.loads(line)["goal"] for line in chats.read_text().splitlines()
    ]
    assert all(0 <= line[name] <= 1 for line in said for name in ("score", "padded"))
    assert "unmoved" in done.stdout and "evaluator" not in report["position"]
