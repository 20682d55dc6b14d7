"""Which run is taken up, what it may differ in, and the journal of its replies."""

from __future__ import annotations

import asyncio
import errno
import json
import shutil
import sys
from pathlib import Path

import pytest
from composing import load_config
from omegaconf import OmegaConf

from collab.app.cli import main
from collab.app.resume import RunState, disk_problem
from collab.chat.base import Sampling
from collab.chat.journal import Journal, Journalled
from collab.config.schema import Config
from collab.conversation import Message, Reply
from collab.randomness import RngKey
from collab.util.errors import BadInput

TYPED = ["experiment=doc_edit", "seed=7", "algorithm.lr=0.5"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs, which nothing is to touch."""
    here = tmp_path_factory.mktemp("runs")
    begun(here / "run")
    shutil.copytree(here / "run", here / "done")
    (here / "done" / "results.json").touch()
    shutil.copytree(here / "run", here / "played")
    RunState(here / "played", "evaluate").write()
    (here / "file").touch()
    return here


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def begun(folder: Path, entry: str = "train", started: str = "2026-01-01", typed: list[str] = TYPED) -> Path:
    """A run that was started with `typed` and did not get far."""
    (folder / ".hydra").mkdir(parents=True)
    config = load_config(entry, typed, str(folder))
    OmegaConf.save(OmegaConf.structured(config), folder / "config.yaml")
    OmegaConf.save(OmegaConf.create(typed), folder / ".hydra" / "overrides.yaml")
    RunState(folder, entry, started=started).write()
    return folder


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Config:
    """The config with which `python train.py ARGUMENTS` runs."""
    found: list[Config] = []
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    main("train", found.append)
    return found[0]


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- which run -------------------------------------------------------------------------------------------------------


def test_a_named_run_is_taken_up_with_all_that_it_was_started_with(here, monkeypatch):
    folder = begun(here / "runs" / "one")
    before = files(folder)
    for typed in ([], [*TYPED, "logger=csv", "trainer.devices=1", "threads=2"]):  # where and how fast is free
        config = command(monkeypatch, *typed, "resume=runs/one")
        assert (config.output_dir, config.seed, config.algorithm.lr) == (str(folder), 7, 0.5)
        assert config.resume is False
    assert {path: content for path, content in files(folder).items() if path.suffix != ".log"} == before


def test_the_newest_unfinished_run_of_the_experiment_and_seed_is_taken_up(here, monkeypatch):
    there = here / "outputs" / "doc_edit"
    begun(there / "b-older", started="2026-01-02")
    for name, day, entry in (("a-newer", 3, "train"), ("c-finished", 4, "train"), ("e-evaluation", 6, "evaluate")):
        shutil.copytree(there / "b-older", there / name)
        RunState(there / name, entry, started=f"2026-01-0{day}").write()
    (there / "c-finished" / "results.json").touch()
    begun(there / "d-other-seed", started="2026-01-05", typed=["experiment=doc_edit", "seed=8"])
    (there / "f-something-else").mkdir()
    assert command(monkeypatch, *TYPED, "resume=true").output_dir == str(there / "a-newer")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["resume=nowhere"], "it is not a folder. Name the folder"),
        (["resume=."], "it has no run.json"),
        (["resume=3"], "resume (3) must be true, false, or the folder of a run"),
        (["experiment=doc_edit", "resume=true"], "no unfinished run of doc_edit with seed=1"),
        (["-m", "seed=1,2", "resume=true"], "-m starts several"),
        (["resume=done"], "resume=done is finished"),
        (["resume=played"], "Resume it by `python evaluate.py resume=played`"),
        (
            ["resume=run", "algorithm.lr=0.25", "sampler.group_size=3"],
            "algorithm.lr is 0.5 there and 0.25 here; sampler.group_size is 8 there and 3 here",
        ),
        (["output_dir=run"], "has an unfinished run, which is not overwritten"),
        (["output_dir=done"], "has a finished run, which is not overwritten"),
        (["output_dir=file/run"], "file is a file"),
        (["output_dir=/proc/run"], "The folder /proc/run cannot be written: in /proc, "),
    ],
)
def test_what_cannot_be_taken_up_or_begun_is_told_and_nothing_is_touched(typed, said, runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    before = files(runs)
    with pytest.raises(SystemExit):
        command(monkeypatch, *typed)
    assert said in capsys.readouterr().err
    assert files(runs) == before


def test_a_state_that_is_broken_is_named(tmp_path):
    (tmp_path / "run.json").write_text('{"id": ')
    with pytest.raises(BadInput, match="run.json is damaged"):
        RunState.read(tmp_path)


def test_failed_writes_are_told_from_other_errors():
    full = OSError(errno.ENOSPC, "No space left on device", "here/x")
    assert disk_problem(full) == "here/x: No space left on device"
    wrapped = RuntimeError("saving failed")
    wrapped.__cause__ = full
    assert disk_problem(wrapped) == "here/x: No space left on device"
    assert disk_problem(ValueError("I/O error: No space left on device (os error 28)")) == "No space left on device"
    assert disk_problem(FileNotFoundError(errno.ENOENT, "no", "x")) == "" == disk_problem(ValueError("x"))


# --- the journal -----------------------------------------------------------------------------------------------------


class Counting:
    """Says how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    async def complete(self, messages, sampling, key) -> Reply:
        self.asked += 1
        return Reply(f"ä {self.asked}", (1, 2), (-0.1, -1 / 3), "length", (5, 6))


KEY = RngKey(3, role="policy", goal="g")
ASKED = [([Message("user", "hi")], KEY), ([Message("user", "hi")], KEY.at(sample=1)), ([Message("user", "ho")], KEY)]


def ask(folder: Path, scope: str, rank: int = 0) -> tuple[list[Reply], int]:
    """Replies to the three requests, and how often the model was asked."""
    model, journal = Counting(), Journal(folder, rank)

    async def replies() -> list[Reply]:
        with journal.scope(scope):
            return [await Journalled(model, journal).complete(said, Sampling(8), key) for said, key in ASKED]

    return asyncio.run(replies()), model.asked


def test_a_reply_is_asked_for_once_in_its_scope_whatever_the_process(tmp_path):
    first, asked = ask(tmp_path, "train-000001")
    assert asked == 3 and len({reply.text for reply in first}) == 3
    for rank in (0, 1):
        assert ask(tmp_path, "train-000001", rank) == (first, 0)
    assert ask(tmp_path, "train-000002")[1] == 3  # the policy is another one by then
    assert ask(tmp_path, "test-a/b*")[1] == 3


def test_a_line_that_was_torn_is_asked_for_again(tmp_path):
    first, _ = ask(tmp_path, "val-000001")
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    found, asked = ask(tmp_path, "val-000001")
    assert asked == 1 and found[:2] == first[:2]
    assert len([json.loads(line) for line in file.read_bytes().splitlines()]) == 3


def test_what_lies_before_the_oldest_checkpoint_is_forgotten(tmp_path):
    for scope in ("train-000001", "val-000001", "train-000002", "train-000010", "test-base"):
        ask(tmp_path, scope)
    Journal(tmp_path).forget(2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test-base.rank0.jsonl", "train-000010.rank0.jsonl"]
