"""Synthesis with a server as the teacher, in several processes, and with its data on the hub: whole commands."""

from __future__ import annotations

import collections
import json
import os
import time
from pathlib import Path
from typing import Any

import datasets
import pytest
from commands import finished, joined, start, start_two
from composing import load_config
from fault_server import FaultServer
from hub_server import HubServer, use_hub

from collab.app.estimate import estimate
from collab.app.synthesize import claim_folder, own_part, synthesize
from collab.app.too_long import goals_that_fit
from collab.config.checks import check
from collab.config.endpoints import reads_model
from collab.datamodules.conversations import load_groups
from collab.datamodules.goals import load_splits
from collab.datamodules.synthesis_folder import (
    ConversationFile,
    check_no_other_division,
    conversation_files,
    file_of,
    part_of,
)
from collab.datamodules.synthesis_folder import finished as rows_of
from collab.util.errors import BadInput
from collab.util.files import among_others, if_last, is_locked, only_writer


def speaks(call: dict[str, Any]) -> str:
    return f"Draft {call['seed'] % 997}. Who will read it, and when should it be ready?"


@pytest.fixture
def teacher():
    with FaultServer(say=speaks, models=("teacher",)) as server:
        yield server


def command(server: FaultServer, folder: Path, *more: str) -> list[str]:
    """Overrides for short conversations about three goals. The model is on no machine, so it is never read."""
    return [
        *("experiment=doc_edit", "callbacks=quiet", "model.path=nobody/has-this-model"),
        *("teacher=vllm", f"teacher.base_url={server.url}", "trainer.accelerator=cpu"),
        *("task.max_turns=2", "sampler.group_size=2", "sampler.equal_turns=false", "synthesis.num_goals=3"),
        *(f"output_dir={folder}", f"cache_file={folder.parent / 'replies.sqlite'}", *more),
    ]


def run(server: FaultServer, folder: Path, *more: str) -> str:
    done = finished("collab", "synthesize", *command(server, folder, *more))
    assert done.returncode == 0, done.stderr
    return done.stdout


def finished_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of all processes, by their names: in the files they stand as they finished."""
    return sorted(rows_of(folder), key=lambda row: row["conv_id"])


def names(folder: Path) -> list[str]:
    return [row["conv_id"] for row in finished_rows(folder)]


# --- the teacher -----------------------------------------------------------------------------------------------------


def test_a_teacher_plays_the_assistant_and_no_model_is_read(teacher: FaultServer, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    said = run(teacher, folder)
    assert f"the model at {teacher.url} plays the assistant" in said
    rows = finished_rows(folder)
    assert len(rows) == 3
    spoken = {speaks(call) for call in teacher.calls}
    responses = [response for row in rows for turn in row["turns"] for response in turn["responses"]]
    assert responses and {response["completion"] for response in responses} <= spoken
    assert all(response["score"] is not None for response in responses)
    # Half of the candidates were asked for under the proactive instruction, the futures under the usual one.
    config = load_config("synthesize", command(teacher, folder))
    asked = collections.Counter(call["messages"][0]["content"] for call in teacher.calls)
    assert set(asked) == {config.task.system_prompt, config.task.proactive_prompt}
    assert asked[config.task.proactive_prompt] == len(responses) // 2
    # No conversation was left early, so as many calls were made as the estimate says.
    assert [row["ended_by"] for row in rows] == ["max_turns"] * 3
    (expected,) = [call for call in estimate(config, one_part(config, 3), "synthesize").total if call.role == "policy"]
    assert expected.calls == len(teacher.calls) and expected.model is None
    spent = json.loads((folder / "spend.json").read_text())["policy"]
    assert (spent["calls"], spent["cached"]) == (len(teacher.calls), 0)
    # The same conversations elsewhere come from the stored replies.
    before = len(teacher.calls)
    run(teacher, tmp_path / "again")
    assert len(teacher.calls) == before and finished_rows(tmp_path / "again") == rows


def one_part(config: Any, count: int) -> Any:
    """The splits, of which a synthesis takes the first training goals."""
    splits = load_splits(config.task)
    assert config.synthesis.num_goals == count < len(splits.train)
    return splits


def test_a_budget_ends_a_synthesis_that_goes_on_without_a_call_made_twice(teacher: FaultServer, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    given = command(teacher, folder, "synthesis.num_conversations=4", "synthesis.at_once=1")
    config = load_config("synthesize", given)
    unit = estimate(config, one_part(config, 3), "synthesize").unit
    cap = f"budget.max_tokens={sum(round(call.tokens) for call in unit)}"  # the least that is accepted
    stopped = finished("collab", "synthesize", *given, cap)
    assert stopped.returncode == 1
    assert f"The next hosted call could cost more than {cap}" in stopped.stderr
    assert "Go on with: the same command" in stopped.stderr
    assert 0 < len(names(folder)) < 12
    rest = finished("collab", "synthesize", *given)
    assert rest.returncode == 0 and len(names(folder)) == 12
    requests = collections.Counter(json.dumps([call["messages"], call["seed"]]) for call in teacher.calls)
    assert set(requests.values()) == {1}


def test_the_teacher_is_a_part_of_what_a_folder_holds(teacher: FaultServer, tmp_path: Path) -> None:
    folder = tmp_path / "data"

    def claim(*more: str) -> None:
        claim_folder(load_config("synthesize", command(teacher, folder, *more), output_dir=str(folder)))

    claim()
    assert json.loads((folder / "synthesis.json").read_text())["teacher"]["model"] == "teacher"  # asked at the server
    claim("teacher.model=teacher", "teacher.max_retries=3", "teacher.base_url=http://127.0.0.1:9/v1")
    with pytest.raises(BadInput, match='teacher.model is "teacher" there and "unlisted" here'):
        claim("teacher.model=unlisted")
    with pytest.raises(BadInput, match="teacher is {.* there and null here"):
        claim("teacher=none", "teacher.base_url=''")


def test_the_model_is_read_if_a_local_user_or_judge_speaks_with_it() -> None:
    def read(*overrides: str) -> bool:
        return reads_model(load_config("synthesize", ["experiment=doc_edit", *overrides]))

    assert read() and read("teacher=vllm", "user=local") and read("teacher=vllm", "judge=local")
    assert not read("teacher=vllm") and not read("teacher=vllm", "user=local", "user.endpoint.model=another/one")


def test_programs_that_no_reply_can_hold_are_left_out_by_a_guess() -> None:
    overrides = ["experiment=code", "teacher=vllm", "model.path=nobody/has-this-model", "task.max_new_tokens=60"]
    config = load_config("synthesize", [*overrides, "task.data=null", "task.num_test=8", "task.num_val=4"])
    goals = load_splits(config.task)
    kept, notes = goals_that_fit(config, goals, "synthesize")
    lengths = {goal.id: len(goal.reference) / 4 for goal in goals.train}  # one token for four characters
    assert {goal.id for goal in kept.train} == {name for name, length in lengths.items() if length <= 60}
    assert 0 < len(kept.train) < len(goals.train)
    assert any("programs are longer than task.max_new_tokens (60)" in note for note in notes)


@pytest.mark.parametrize(
    ("entry", "overrides", "said"),
    [
        ("synthesize", ["teacher.model=gpt-4o"], "teacher.base_url is empty, and teacher.model is gpt-4o"),
        ("synthesize", ["teacher=vllm", "teacher.kind=local"], "Set teacher=none, and model.path to the teacher's"),
        ("synthesize", ["teacher=vllm", "teacher.base_url=localhost"], "teacher: the base_url (localhost) must be"),
        (
            "synthesize",
            ["teacher=openai", "budget.max_usd=1", "teacher.model=new"],
            "budget.prices has no price for new",
        ),
        ("synthesize", ["synthesis.part=0/4"], "synthesis.part (0/4) must be I/N"),
        ("synthesize", ["synthesis.part=5/4"], "synthesis.part (5/4) must be I/N"),
        ("synthesize", ["synthesis.part=half"], "synthesis.part (half) must be I/N"),
        ("synthesize", ["push_to_hub=mine"], "push_to_hub (mine) must be OWNER/NAME"),
        ("train", ["teacher=vllm"], "teacher plays the assistant of `collab synthesize`, and nothing here"),
        ("evaluate", ["push_to_hub=ada/x"], "push_to_hub=ada/x: an evaluation makes nothing to put there"),
    ],
)
def test_settings_that_make_no_sense_are_refused(entry: str, overrides: list[str], said: str) -> None:
    with pytest.raises(BadInput) as caught:
        check(load_config(entry, ["experiment=doc_edit", *overrides]), entry)
    assert said in str(caught.value)


def test_a_teacher_that_is_not_there_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with FaultServer() as server:
        given = command(server, tmp_path / "data")
    done = finished("collab", "synthesize", *given)
    assert done.returncode == 1 and done.stderr.startswith("error: teacher: ")
    assert not (tmp_path / "data" / "synthesis.json").exists()


# --- several processes -----------------------------------------------------------------------------------------------


def test_each_conversation_is_in_one_part_whatever_else_is_played() -> None:
    for parts in (1, 2, 3, 8):
        shares = collections.Counter(part_of(place, number, parts) for place in range(24) for number in range(3))
        assert set(shares) == set(range(parts)) and len(set(shares.values())) == 1
    assert [file_of(part, 2) for part in range(2)] == ["conversations-1-of-2.jsonl", "conversations-2-of-2.jsonl"]
    assert file_of(0, 1) == "conversations.jsonl"


def test_a_part_is_typed_or_comes_from_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_part(load_config("synthesize", ["experiment=doc_edit"])) == (0, 1)
    assert own_part(load_config("synthesize", ["experiment=doc_edit", "synthesis.part=3/4"])) == (2, 4)
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", "2"), ("RANK", "3")):
        monkeypatch.setenv(name, value)
    config = load_config("synthesize", ["experiment=doc_edit"])
    assert own_part(config) == (3, 4)
    check(config, "synthesize")
    config.synthesis.part = "1/4"
    with pytest.raises(BadInput, match="and so does torchrun, which has started 4 processes. Leave synthesis.part out"):
        check(config, "synthesize")


def test_of_processes_that_leave_the_last_one_hears_so(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with among_others(mark):
        with among_others(mark):
            pass
        with if_last(mark) as last:  # the first is still at work
            assert not last
    with if_last(mark) as last:
        assert last
        with if_last(mark) as another:
            assert not another


def test_another_division_of_the_same_conversations_is_refused_while_one_is_played(tmp_path: Path) -> None:
    with only_writer(tmp_path, file_of(1, 4)):
        assert is_locked(tmp_path / file_of(1, 4))
        check_no_other_division(tmp_path, 4)
        for parts in (1, 2):
            with pytest.raises(BadInput, match=rf"conversations-2-of-4\.jsonl.* another number of parts than {parts}:"):
                check_no_other_division(tmp_path, parts)
        with pytest.raises(BadInput, match="Another process is writing into"), only_writer(tmp_path, file_of(1, 4)):
            pass
    check_no_other_division(tmp_path, 2)  # it has ended; what it played is read


def test_a_command_is_refused_while_its_conversations_are_played(teacher: FaultServer, tmp_path: Path) -> None:
    config = load_config("synthesize", command(teacher, tmp_path, "synthesis.part=1/2"), output_dir=str(tmp_path))
    claim_folder(config)
    for other, said in ((file_of(0, 1), "another number of parts than 2"), (file_of(0, 2), "Another process is wri")):
        with only_writer(tmp_path, other), pytest.raises(BadInput, match=said):
            synthesize(config)
    assert teacher.calls == []


def test_the_data_are_written_when_the_last_part_has_ended(teacher: FaultServer, tmp_path: Path, capsys) -> None:
    for part, there, more in (("2/2", False, ["push_to_hub=ada/x"]), ("1/2", True, [])):
        given = command(teacher, tmp_path, f"synthesis.part={part}", *more)
        config = load_config("synthesize", given, output_dir=str(tmp_path))
        claim_folder(config)
        synthesize(config)
        said = capsys.readouterr().out
        assert ("others are not begun yet: conversations-1-of-2.jsonl" in said) is not there
        assert ("push_to_hub=ada/x: give it to all parts." in said) is not there  # the last part pushes nothing
        assert (tmp_path / "dataset").is_dir() is (tmp_path / "futures").is_dir() is there
    assert len(datasets.load_from_disk(str(tmp_path / "dataset"))) == 3


@pytest.mark.timeout(300)
def test_parts_share_the_work_and_a_killed_one_goes_on(tmp_path: Path) -> None:
    folder, log = tmp_path / "data", tmp_path / "log"
    with FaultServer(say=speaks, models=("teacher",), seconds=0.02) as server:
        more = ("synthesis.num_conversations=6", "synthesis.at_once=1")
        given = [command(server, folder, *more, f"synthesis.part={number}/2") for number in (1, 2)]
        first, second = (start("collab", ["synthesize", *one], log) for one in given)
        file = folder / file_of(0, 2)
        while first.is_alive() and not (file.is_file() and file.stat().st_size):
            time.sleep(0.002)
        first.kill()
        first.join()
        second.join()
        assert second.exitcode == 0, log.read_text()
        before = {path.name: ConversationFile(path).rows for path in conversation_files(folder)}
        assert 0 < len(before[file_of(0, 2)]) < 9 and len(before[file_of(1, 2)]) == 9
        assert len(datasets.load_from_disk(str(folder / "dataset"))) == len(names(folder))  # what there is so far
        # The rest may be played by another number of processes.
        said = run(server, folder, *more)
    assert f"{sum(map(len, before.values()))} conversations are there already." in said
    assert {path.name: ConversationFile(path).rows for path in conversation_files(folder)} == before | {
        "conversations.jsonl": ConversationFile(folder / "conversations.jsonl").rows
    }
    goals = [goal.id for goal in load_splits(load_config("synthesize", given[0]).task).train[:3]]
    expected = [f"{goal}/{number}" for goal in goals for number in range(6)]
    assert names(folder) == sorted(expected)
    assert list(datasets.load_from_disk(str(folder / "dataset"))["conv_id"]) == expected


@pytest.mark.slow  # tests/e2e/test_synthesize.py has two processes with weights of their own
def test_processes_of_a_launcher_share_the_work(teacher: FaultServer, tmp_path: Path) -> None:
    folder, log = tmp_path / "data", tmp_path / "log"
    joined(start_two("collab", ["synthesize", *command(teacher, folder)], log), log)
    assert [len(ConversationFile(path).rows) for path in conversation_files(folder)] == [2, 1]
    requests = collections.Counter(json.dumps([call["messages"], call["seed"]]) for call in teacher.calls)
    assert set(requests.values()) == {1}
    assert json.loads((folder / "statistics.json").read_text())["conversations"] == 3
    assert len(load_groups(folder, "")) == 6
    run(teacher, tmp_path / "alone")
    alone = {row["conv_id"]: row for row in finished_rows(tmp_path / "alone")}
    assert {row["conv_id"]: row for row in finished_rows(folder)} == alone  # who plays them does not change them
    assert {path.name for path in folder.glob("spend*")} == {"spend.json", "spend-rank1.json"}


# --- what is kept, and where it goes ---------------------------------------------------------------------------------


def test_every_forward_conversation_is_kept_and_gives_its_score(teacher: FaultServer, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    run(teacher, folder, "sampler.num_samples=2")
    check_futures(datasets.load_from_disk(str(folder / "dataset")), datasets.load_from_disk(str(folder / "futures")))
    assert "futures" not in datasets.load_from_disk(str(folder / "dataset")).column_names


def check_futures(conversations: Any, futures: Any) -> None:
    """Each response has two futures, which begin with it and have the rewards and parts that it was scored by."""
    found = collections.defaultdict(list)
    for future in futures:
        found[future["conv_id"], future["turn"], future["response"]].append(future)
    tried = 0
    for row in conversations:
        for turn, made in enumerate(row["turns"], 1):
            for number, response in enumerate(made["responses"]):
                played = found.pop((row["conv_id"], turn, number))
                assert [future["sample"] for future in played] == [0, 1]
                rewards = dict(response["rewards"])
                assert [future["reward"] for future in played] == rewards.pop("MR")
                for name, values in rewards.items():
                    assert [future["parts"][name] for future in played] == values
                begins = [*made["prompt"], {"role": "assistant", "content": response["completion"]}]
                for future in played:
                    assert future["messages"][1 : len(begins) + 1] == begins  # an instruction comes first
                    assert len(future["messages"]) == 5 and future["ended_by"] == "max_turns"
                tried += 1
    assert tried == 12 and not found


def test_the_data_arrive_at_the_hub_and_are_read_from_there(
    teacher: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    goals = [{"single_turn_prompt": f"About {n}.", "single_turn_completion": f"All of {n}."} for n in "abc"]
    (tmp_path / "goals.jsonl").write_text("".join(json.dumps(goal) + "\n" for goal in goals))  # without metadata
    more = (f"task.train_file={tmp_path / 'goals.jsonl'}", "sampler.num_samples=2", "push_to_hub=lab/talks")
    config = load_config("synthesize", command(teacher, folder, *more), output_dir=str(folder))
    os.makedirs(folder)
    claim_folder(config)
    with HubServer() as hub:
        use_hub(hub, monkeypatch)
        synthesize(config)
        assert f"on the hub: {hub.url}/datasets/lab/talks" in capsys.readouterr().out
        assert hub.repos["datasets/lab/talks"]["private"]
        there = hub.download("datasets/lab/talks", tmp_path / "there")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    conversations, futures = (
        datasets.load_dataset(str(there), name, split="train", cache_dir=str(tmp_path / "cache"))
        for name in ("default", "futures")
    )
    assert conversations["conv_id"][:] == [row["conv_id"] for row in datasets.load_from_disk(str(folder / "dataset"))]
    assert len(futures) == 24 and {future["reward"] is None for future in futures} == {False}
    assert load_groups(there / "default" / "train.parquet", "") == load_groups(folder, "")
    card = (there / "README.md").read_text()
    assert "| conversations | 3 |" in card and str(tmp_path) not in card


@pytest.mark.parametrize("entry", ["train", "synthesize"])
def test_a_push_that_cannot_be_is_refused_before_anything_is_made(entry: str, tmp_path: Path) -> None:
    done = finished("collab", entry, "experiment=doc_edit", "push_to_hub=ada/x", f"output_dir={tmp_path / 'run'}")
    assert done.returncode == 1 and not (tmp_path / "run").exists()
    assert done.stderr.startswith("error: push_to_hub=ada/x: HF_HUB_OFFLINE forbids to ask the hub.")
