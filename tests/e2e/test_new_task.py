"""The page about new tasks: its files are written as they stand, its first command is run, the second composed."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

from collab.app.cli import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "new-task.md").read_text(encoding="utf-8")


def test_the_page_makes_a_task_that_runs(tiny_model, tmp_path, monkeypatch, capsys):
    files = re.findall(r"^`([\w./]+)`[^\n]*:\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in files] == ["packing.py", "conf_of_mine/task/packing.yaml"]
    for name, content in files:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
    evaluation, training = re.findall(r"^PYTHONPATH=\. python (.*)$", PAGE, re.MULTILINE)
    assert training == evaluation.replace("evaluate", "train")
    small = [f"model.path={tiny_model}", "trainer.accelerator=cpu", "precision=fp32", "callbacks=quiet"]
    small += ["task.max_new_tokens=24", "output_dir=run"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def run(command: str, *more: str) -> None:
        _, _, entry, *given = shlex.split(command)  # -m collab ENTRY ...
        monkeypatch.setattr(sys, "argv", ["collab", *given, *more])
        main(entry)

    run(evaluation, *small)
    policies = json.loads((tmp_path / "run" / "results.json").read_text())["policies"]
    assert list(policies) == ["base", "proactive"]
    assert {"reward", "packed", "interactivity"} <= policies["base"].keys() and policies["base"]["packed"]["n"] == 1
    run(training, "--cfg", "job")
    assert "target: packing.PackingGoals" in capsys.readouterr().out
    records = [json.loads(line) for line in (tmp_path / "run" / "transcripts.jsonl").read_text().splitlines()]
    assert "a walk across the moor" in records[0]["messages"][1]["content"]
