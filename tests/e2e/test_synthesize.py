"""`collab synthesize` as one types it: killed and taken up again; and on the real model."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from commands import finished, joined, start, start_two
from composing import load_config

from collab.app import build
from collab.app.synthesize import claim_folder, synthesize
from collab.conversation import Reply
from collab.datamodules.conversations import load_groups
from collab.datamodules.synthesis_folder import ConversationFile
from collab.simulation import synthesis

if TYPE_CHECKING:
    from conftest import Runner


def small(runner: Runner, *more: str) -> list[str]:
    """Overrides for short conversations about the two training goals."""
    given = ["experiment=doc_edit", "callbacks=quiet", *runner.files]
    return [*given, "task.max_turns=2", "task.max_new_tokens=12", "sampler.group_size=2", *more]


@pytest.mark.timeout(600)
def test_a_killed_synthesis_goes_on_where_it_was(runner: Runner, letters_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    file = folder / "conversations.jsonl"
    overrides = small(runner, f"model.path={letters_model}", "synthesis.num_conversations=8", "synthesis.at_once=1")
    command = ["synthesize", *overrides, "trainer.accelerator=cpu", f"output_dir={folder}"]
    killed = start("collab", command, tmp_path / "log")
    while killed.is_alive() and not (file.is_file() and file.read_bytes().count(b"\n") >= 2):
        time.sleep(0.005)
    killed.kill()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL, (tmp_path / "log").read_text()
    before = ConversationFile(file).rows
    assert 2 <= len(before) < 16 and not (folder / "dataset").exists()
    with file.open("ab") as torn:
        torn.write(b'{"conv_id": "train-kiln/7", "turns": [{"prom')

    again = finished("collab", *command)
    assert again.returncode == 0, again.stderr
    rows = ConversationFile(file).rows
    assert rows[: len(before)] == before  # nothing is played twice
    expected = [f"train-{goal}/{number}" for goal in ("kiln", "ferry") for number in range(8)]
    assert sorted(row["conv_id"] for row in rows) == sorted(expected)
    assert f"{len(before)} conversations are there already." in again.stdout
    assert f"conversation {len(before) + 1}/16" in again.stdout and "chosen mr: " in again.stdout
    found = json.loads((folder / "statistics.json").read_text())
    assert found["conversations"] == 16 and found["turns"] == sum(len(row["turns"]) for row in rows)
    # The data set holds the same, in the order of the goals.
    groups = load_groups(folder, "")
    names = dict.fromkeys(group.context.goal.id for group in groups)
    assert list(names) == [name for name in expected if name in names]
    in_file = {json.dumps([r["conv_id"], t["prompt"]]) for r in rows for t in r["turns"]}
    assert len(groups) == len(in_file) == found["turns"]


@pytest.mark.timeout(300)
def test_two_processes_with_weights_of_their_own_share_the_work(
    runner: Runner, letters_model: Path, tmp_path: Path
) -> None:
    folder, log = tmp_path / "data", tmp_path / "log"
    overrides = small(runner, f"model.path={letters_model}", "synthesis.num_conversations=3", f"output_dir={folder}")
    joined(start_two("collab", ["synthesize", *overrides, "trainer.accelerator=cpu"], log), log)
    parts = [
        [row["conv_id"] for row in ConversationFile(folder / f"conversations-{n}-of-2.jsonl").rows] for n in (1, 2)
    ]
    assert sorted(parts[0]) == ["train-ferry/1", "train-kiln/0", "train-kiln/2"]
    assert sorted(parts[1]) == ["train-ferry/0", "train-ferry/2", "train-kiln/1"]
    assert json.loads((folder / "statistics.json").read_text())["conversations"] == 6
    assert "part 1 of 2" in log.read_text()


def test_the_real_model_makes_data_that_it_can_learn_from(
    runner: Runner, smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    async def record(*args: Any, play: Any = synthesis.synthesise, **kwargs: Any) -> Any:
        made.append(await play(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(synthesis, "synthesise", record)
    config = load_config(
        "synthesize", small(runner, "synthesis.num_goals=1", "task.max_new_tokens=8"), output_dir=str(tmp_path / "data")
    )
    os.makedirs(config.output_dir)
    claim_folder(config)
    synthesize(config)
    (conversation,) = made

    training = load_config("train", small(runner, "algorithm=dpo", f"algorithm.data={tmp_path / 'data'}"))
    stored = build.stored_groups(training)
    groups = {tuple(m.content for m in g.context.messages()): g for g in stored}
    assert len(groups) == len(conversation.turns) == 2
    for turn in conversation.turns:
        group = groups[tuple(m.content for m in turn.context.messages())]
        for read, tried in zip(group.candidates, turn.candidates, strict=True):
            assert (read.reply.text, read.mr) == (tried.reply.text, tried.mr)
        usual: Reply = turn.candidates[0].reply
        # Read back as text, the history has the very ids that the policy was conditioned on.
        assert group.candidates[0].reply.prompt_ids == usual.prompt_ids
        assert len(turn.candidates[-1].reply.prompt_ids) > len(usual.prompt_ids)  # sampled under the proactive prompt
    for algorithm, contexts in (("dpo", 1), ("sft", len(stored))):  # contexts or conversations are counted
        training = load_config("train", small(runner, f"algorithm={algorithm}", f"algorithm.data={tmp_path / 'data'}"))
        batches = list(build.data(training, "train", stored).train_dataloader())
        assert len(batches) == training.trainer.max_steps and all(
            len(batch.groups) == training.trainer.goals_per_step * contexts for batch in batches
        )
