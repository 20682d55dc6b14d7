"""Goals: reading them, refusing bad ones, and the order in which a run trains on them."""

import gzip
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest

from collab.config.schema import TaskConfig
from collab.conversation import Goal
from collab.datamodules.goals import GoalSplits, check_disjoint, check_reference_lengths, load_goals, load_splits
from collab.util.errors import BadInput

DOC_EDIT = TaskConfig(name="doc_edit", target="collab.datamodules.doc_edit.DocEditGoals")
PLAIN = "collab.datamodules.goals.TaskGoals"  # goals in the project's own form, from files


def row(name, **changes):
    fields = {"id": name, "single_turn_prompt": f"write about {name}", "single_turn_completion": f"All about {name}."}
    return {**fields, **changes}


def row_of(goal):
    return {"single_turn_prompt": goal.prompt, "single_turn_completion": goal.reference}


def write(path, rows):
    path.write_text("".join(json.dumps(item) + "\n" for item in rows))
    return str(path)


def write_parquet(path, rows):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


def refusal(source, split="train"):
    with pytest.raises(BadInput) as caught:
        load_goals(source, split)
    return str(caught.value)


MIXED = [
    row("tea", single_turn_metadata={"title": "Tea", "facts": ["green", "hot"]}),
    row("cat", single_turn_metadata={"tone": "dry", "length": 30}),
    row("sea"),
]
EXPECTED = [
    Goal("tea", "write about tea", "All about tea.", {"title": "Tea", "facts": ["green", "hot"]}),
    Goal("cat", "write about cat", "All about cat.", {"tone": "dry", "length": 30}),
    Goal("sea", "write about sea", "All about sea.", {}),
]


# Reading


def test_jsonl_and_parquet_give_the_same_goals(tmp_path):
    folder = tmp_path / "sweep[1],lr=*"  # a path is a name here, never a pattern
    folder.mkdir()
    assert load_goals(write(folder / "goals.jsonl", MIXED), "train") == EXPECTED
    assert load_goals(write_parquet(folder / "goals.parquet", MIXED), "train") == EXPECTED


def test_metadata_may_be_a_json_string(tmp_path):
    rows = [{**item, "single_turn_metadata": json.dumps(item.get("single_turn_metadata", {}))} for item in MIXED]
    assert load_goals(write(tmp_path / "goals.jsonl", rows), "train") == EXPECTED
    assert load_goals(write_parquet(tmp_path / "goals.parquet", rows), "train") == EXPECTED


@pytest.mark.parametrize("name,save", [("goals.jsonl", write), ("goals.parquet", write_parquet)])
def test_an_edited_file_is_read_again(tmp_path, name, save):
    path = tmp_path / name
    assert [goal.id for goal in load_goals(save(path, [row("tea")]), "train")] == ["tea"]
    assert [goal.id for goal in load_goals(save(path, [row("cat")]), "train")] == ["cat"]


def test_parquet_is_read_without_output(tmp_path, capfd):
    import datasets

    load_goals(write_parquet(tmp_path / "goals.parquet", MIXED), "train")
    assert capfd.readouterr() == ("", "")
    assert datasets.is_progress_bar_enabled()


def test_a_missing_id_is_derived_from_the_texts_and_a_number_is_an_id(tmp_path):
    def ids(*rows):
        return [goal.id for goal in load_goals(write(tmp_path / "goals.jsonl", rows), "train")]

    first, second = ids(row("tea", id=None), row("cat", id=None))
    assert first != second and len(first) == 12
    assert ids(row("sea"), row("tea", id=None, single_turn_metadata={"a": 1}), row("fox", id=7)) == ["sea", first, "7"]


def test_blank_lines_a_byte_order_mark_and_line_separators_inside_text_are_no_errors(tmp_path):
    path = tmp_path / "goals.jsonl"
    odd = json.dumps(row("tea", single_turn_completion="One\u2028two."), ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + odd.encode() + b"\r\n\r\n" + json.dumps(row("cat")).encode())
    assert [goal.reference for goal in load_goals(path, "train")] == ["One\u2028two.", "All about cat."]


def test_hub_name_reads_the_split_and_calls_val_validation(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name):
        asked.append(name)
        return datasets.DatasetDict(
            {split: datasets.Dataset.from_list([row(f"{split}-goal")]) for split in ("train", "validation")}
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_goals("someone/goals", "train")[0].id == "train-goal"
    assert load_goals("someone/goals", "val")[0].id == "validation-goal"
    message = refusal("someone/goals", "test")
    assert "someone/goals has no split test; it has train, validation" in message and "task.test_file" in message
    assert asked == ["someone/goals"] * 3


def test_a_hub_name_may_name_its_split(monkeypatch, tmp_path):
    import datasets

    found = datasets.DatasetDict({"v0.1": datasets.Dataset.from_list([row("tea")])})
    monkeypatch.setattr(datasets, "load_dataset", lambda name: found if name == "someone/goals" else None)
    assert [goal.id for goal in load_goals("someone/goals:v0.1", "test")] == ["tea"]
    assert "has no split v0.2; it has v0.1" in refusal("someone/goals:v0.2", "test")
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "goals:v0.1", [row("cat")])  # a file that is there is meant
    assert [goal.id for goal in load_goals("goals:v0.1", "test")] == ["cat"]


def test_a_json_file_is_a_list_or_has_one_or_is_read_line_by_line(tmp_path):
    path = tmp_path / "goals.json"
    for content in (MIXED, {"version": 1, "data": MIXED}):
        path.write_text(json.dumps(content, indent=1))
        assert load_goals(path, "train") == EXPECTED
    assert load_goals(write(path, MIXED), "train") == EXPECTED
    assert load_goals(write(path, MIXED[:1]), "train") == EXPECTED[:1]
    path.write_text(json.dumps([row("tea"), 3]))
    assert "row 2 is a number ('3')" in refusal(str(path))
    path.write_text("{")
    assert "line 1 is not JSON" in refusal(str(path))
    path.write_text(json.dumps({"goals": MIXED}, indent=1))
    assert "is one object over several lines, with: goals. A .json file must be a list of rows" in refusal(str(path))


CSV = "id,single_turn_prompt,single_turn_completion,single_turn_metadata\n"


def test_an_empty_field_of_csv_that_may_be_left_out_is_left_out(tmp_path):
    path = tmp_path / "goals.csv"
    path.write_text(CSV + 'tea,a sign,Tea.,"{""notes"": [""noon""]}"\n,a label,Jam.,\n')
    tea, jam = load_goals(path, "train")
    assert (tea.id, tea.notes) == ("tea", ("noon",))
    assert jam.metadata == {} and jam.id == load_goals(write(tmp_path / "g.jsonl", [row_of(jam)]), "train")[0].id
    path.write_text(CSV + "tea,,Tea.,\n")
    assert "row 1: field single_turn_prompt is empty" in refusal(str(path))


@pytest.mark.parametrize("mark", [";", "\t"])
def test_a_csv_file_without_commas_is_named_so(tmp_path, mark):
    path = tmp_path / "goals.csv"
    path.write_text((CSV + "tea,a sign,Tea.,\n").replace(",", mark))
    assert f"{path} has {mark!r} between the fields of its header" in refusal(str(path))


@pytest.mark.parametrize(
    "beside", [{"notes": "noon; red cup", "title": "the tea"}, {"preferences": {"tone": "dry"}}, {"cues": ["when"]}]
)
def test_what_the_user_would_tell_is_not_read_beside_the_metadata_and_not_lost_in_silence(tmp_path, beside):
    message = refusal(write(tmp_path / "goals.jsonl", [row("tea", title="of a book"), row("cat", **beside)]))
    assert f"line 2: {', '.join(sorted(beside, reverse=True))} would not be read beside" in message
    assert "only within it" in message


def test_a_file_may_be_compressed(tmp_path):
    path = tmp_path / "goals.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(item) + "\n" for item in MIXED).encode()))
    assert load_goals(path, "train") == EXPECTED
    path.write_bytes(path.read_bytes()[:-9])
    assert f"{path} cannot be read" in refusal(str(path))


def test_unreachable_hub_name_says_both_that_no_file_is_there_and_that_it_needs_the_network(monkeypatch):
    import datasets

    def load_dataset(name):
        raise ConnectionError("Couldn't reach it\nmore")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    message = refusal("someone/goals", "val")
    assert "no file someone/goals" in message and "(Couldn't reach it)" in message
    assert "task.val_file" in message and "network" in message


# Refusing


@pytest.mark.parametrize("name", ["missing.jsonl", "data/goals.parquet", "/no/such/goals", "goals.csv"])
def test_missing_file_is_named_and_not_looked_for_on_the_hub(monkeypatch, tmp_path, name):
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    assert f"There is no file {name}. Check the path (task.test_file)" in refusal(name, "test")


def test_a_folder_is_refused(tmp_path):
    assert "is a folder" in refusal(str(tmp_path))


@pytest.mark.parametrize(
    "bad,parts",
    [
        (
            '{"single_turn_prompt": "x", ',
            ["line 2 is not JSON (Expecting property name enclosed in double quotes at character", "whole JSON"],
        ),
        (b'{"single_turn_prompt": "\xff"}', ["line 2 is not JSON", "utf-8"]),
        ('{"single_turn_prompt": "\\ud800"}', ["line 2 is not JSON", "surrogates"]),
        ("[" * 100_000, ["line 2 is not JSON"]),
        ("[1, 2]", ["line 2 is a list ('[1, 2]')", "must be an object"]),
        (
            row("cat", single_turn_prompt=None),
            ["line 2: field single_turn_prompt is missing", "has: id, single_turn_prompt, single_turn_completion"],
        ),
        ({"single_turn_prompt": "x"}, ["line 2: field single_turn_completion is missing", "has: single_turn_prompt"]),
        (row("cat", single_turn_completion=" "), ["line 2: field single_turn_completion is empty", "Fill it in"]),
        (row("cat", single_turn_prompt=42), ["line 2: field single_turn_prompt is a number ('42')", "must be text"]),
        (row("cat", single_turn_metadata=["a"]), ["line 2: field single_turn_metadata is a list", "be an object"]),
        (row("cat", single_turn_metadata="dry"), ["line 2: field single_turn_metadata is text that is not JSON"]),
        (row("cat", single_turn_metadata="[3]"), ["line 2: field single_turn_metadata is a list ('[3]')"]),
        (row("cat", id=""), ["line 2: field id is text ('')", "must be text or a whole number"]),
        (row("cat", id=True), ["line 2: field id is true or false ('True')"]),
    ],
)
def test_bad_line_is_named_with_its_number(tmp_path, bad, parts):
    path = tmp_path / "goals.jsonl"
    line = bad if isinstance(bad, bytes) else (bad if isinstance(bad, str) else json.dumps(bad)).encode()
    path.write_bytes(json.dumps(row("tea")).encode() + b"\n" + line + b"\n" + json.dumps(row("sea")).encode())
    message = refusal(str(path))
    assert str(path) in message
    for part in parts:
        assert part in message


NOTES = ["noon", "red cup"]


@pytest.mark.parametrize(
    ("metadata", "parts"),
    [
        ({"notes": "noon"}, ["notes is text ('noon')", "must be a list of texts, none empty"]),
        ({"notes": 3}, ["notes is a number ('3')"]),
        ({"notes": {"a": "noon"}}, ["notes is an object"]),
        ({"notes": ["noon", 3]}, ["notes is a list", "must be a list of texts"]),
        ({"notes": ["noon", " "]}, ["notes is a list", "none empty"]),
        ({"notes": NOTES, "cues": "when what"}, ["cues is text ('when what')"]),
        ({"notes": NOTES, "cues": ["when", None]}, ["cues is a list"]),
        ({"notes": NOTES, "cues": ["when", ""]}, ["cues is a list"]),
        ({"notes": NOTES, "cues": ["when"]}, ["there are 1 cues for 2 notes", "Write as many, or leave cues out"]),
        ({"notes": NOTES, "cues": ["when", "what", "why"]}, ["there are 3 cues for 2 notes"]),
        ({"cues": ["when"]}, ["there are 1 cues for 0 notes"]),
        ({"preferences": ["warm"]}, ["preferences is a list", "must be an object"]),
        (
            {"preferences": {"tone": {"a": "warm"}}},
            ["preferences: tone is an object", "must be text, a number, or a list"],
        ),
    ],
)
def test_notes_cues_and_preferences_of_a_wrong_shape_are_refused_with_their_line(tmp_path, metadata, parts):
    path = write(tmp_path / "goals.jsonl", [row("tea"), row("cat", single_turn_metadata=metadata)])
    message = refusal(path)
    for part in (f"{path}, line 2: field single_turn_metadata: ", *parts):
        assert part in message


def test_notes_are_what_the_user_knows(tmp_path):
    metadata = [{"notes": NOTES, "cues": ["when", "what"]}, {"notes": None}, {"notes": NOTES}]  # null is not there
    names = ("tea", "cat", "sea")
    rows = [row(name, single_turn_metadata=entry) for name, entry in zip(names, metadata, strict=True)]
    tea, cat, sea = load_goals(write(tmp_path / "goals.jsonl", rows), "train")
    assert tea.notes == sea.notes == tuple(NOTES) and cat.notes == ()


def test_bad_parquet_row_is_named_with_its_number(tmp_path):
    path = write_parquet(tmp_path / "goals.parquet", [row("tea"), row("cat", single_turn_completion="")])
    assert f"{path}, row 2: field single_turn_completion is empty" in refusal(path)


def test_a_file_that_is_no_parquet_is_refused_without_other_output(tmp_path, capfd):
    path = write(tmp_path / "goals.parquet", [row("tea")])
    assert f"{path} cannot be read as Parquet" in refusal(path)
    assert capfd.readouterr() == ("", "")


def test_no_rows(tmp_path):
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "goals.jsonl"
    path.write_text("\n\n")
    assert f"{path} holds no goals" in refusal(str(path))
    path = tmp_path / "goals.parquet"
    parquet.write_table(pyarrow.table({"single_turn_prompt": pyarrow.array([], pyarrow.string())}), path)
    assert f"{path} holds no goals" in refusal(str(path))


def test_duplicate_id_names_both_lines(tmp_path):
    message = refusal(write(tmp_path / "goals.jsonl", [row("tea"), row("cat"), row("fox", id="tea")]))
    assert "line 3 has the same id as " in message and "line 1: 'tea'" in message and "another id" in message
    message = refusal(write(tmp_path / "goals.jsonl", [row("tea", id=None), row("cat"), row("tea", id=None)]))
    assert "line 3 has the same id as " in message and "line 1: " in message


def test_splits_that_share_a_goal_are_refused():
    tea, cat, sea = (Goal(name, f"write {name}", f"About {name}.") for name in ("tea", "cat", "sea"))
    check_disjoint({"train": [tea], "val": [cat], "test": [sea]})
    with pytest.raises(BadInput, match="train and test share 1 of their goals, the first by its id: 'tea'"):
        check_disjoint({"train": [tea], "val": [cat], "test": [sea, Goal("tea", "other", "words")]})
    with pytest.raises(BadInput, match="val and test share 1 of their goals, the first by its prompt and reference"):
        check_disjoint({"train": [tea], "val": [cat], "test": [Goal("other", cat.prompt, cat.reference)]})
    check_disjoint({"train": [tea], "val": [Goal("other", tea.prompt, "Another text.")]})


def test_references_longer_than_a_reply_are_said_with_the_value_to_set_and_refused_where_most_are(capsys):
    goals = [Goal("tea", "p", "one two three"), Goal("cat", "p", "one two three four five"), Goal("sea", "p", "one")]
    check_reference_lengths(goals, lambda text: len(text.split()), 5)
    assert not capsys.readouterr().out
    check_reference_lengths(goals, lambda text: len(text.split()), 4)
    said = capsys.readouterr().out
    assert said.startswith("note: 1 of 3 references are longer than task.max_new_tokens (4)")
    assert "'cat' (5 tokens)" in said and said.endswith("Set task.max_new_tokens=5 or more.\n")
    with pytest.raises(BadInput) as caught:
        check_reference_lengths(goals, lambda text: len(text.split()), 2)
    for part in ("2 of 3 references", "'cat' (5 tokens), 'tea' (3 tokens)", "Set task.max_new_tokens=5 or more"):
        assert part in str(caught.value)


# Splits


def test_files_replace_what_ships_split_by_split(tmp_path):
    shipped = load_splits(DOC_EDIT)
    mine = write(tmp_path / "mine.jsonl", MIXED)
    splits = load_splits(replace(DOC_EDIT, test_file=mine))
    assert splits == GoalSplits(shipped.train, shipped.val, EXPECTED)


def test_own_test_goals_may_not_be_among_the_shipped_training_goals(tmp_path):
    goal = load_splits(DOC_EDIT).train[3]
    copied = row("mine", single_turn_prompt=goal.prompt, single_turn_completion=goal.reference)
    mine = write(tmp_path / "mine.jsonl", [row("tea"), copied])
    with pytest.raises(BadInput) as caught:
        load_splits(replace(DOC_EDIT, test_file=mine))
    for part in ("the train goals (", "train.jsonl", f"the test goals ({mine})", "share 1", "'mine'"):
        assert part in str(caught.value)


def test_a_task_of_ones_own_needs_its_files(tmp_path):
    files = {f"{name}_file": write(tmp_path / f"{name}.jsonl", [row(name)]) for name in ("train", "val", "test")}
    assert [goal.id for goal in load_splits(TaskConfig(name="mine", target=PLAIN, **files)).val] == ["val"]
    with pytest.raises(BadInput, match="task.val_file is not set, and no goals ship for task 'mine'"):
        load_splits(TaskConfig(name="mine", target=PLAIN, **{**files, "val_file": None}))


def test_metadata_that_look_like_preferences_are_named(tmp_path):
    told = row("tea", single_turn_metadata={"preferences": {"tone": "dry"}})
    untold = [row(name, single_turn_metadata={"style": "dry", "tone": "dry", "tests": "none"}) for name in ("a", "b")]
    files = {name: write(tmp_path / name, rows) for name, rows in (("t", [told, untold[0]]), ("v", [untold[1]]))}
    config = TaskConfig(
        name="mine",
        target=PLAIN,
        train_file=files["t"],
        val_file=files["v"],
        test_file=write(tmp_path / "s", [row("c")]),
    )
    (note,) = load_splits(config).notes
    assert note.startswith("The user does not tell the tone, style in the single_turn_metadata of 2 goals")
    assert load_splits(DOC_EDIT).notes == ()


def test_shipped_goals_are_many_short_and_complete():
    splits = load_splits(DOC_EDIT)
    assert len(splits.train) >= 64 and len(splits.val) >= 16 and len(splits.test) >= 24
    goals = splits.train + splits.val + splits.test
    for goal in goals:
        preferences = goal.metadata["preferences"]
        assert "title" in goal.metadata and preferences.keys() == {"tone", "audience", "length"}, goal.id
        about = int(preferences["length"].removeprefix("about ").removesuffix(" words"))
        assert 25 <= about <= 45 and abs(len(goal.reference.split()) - about) <= 2, goal.id
    titles = Counter(goal.metadata["title"] for goal in goals)
    assert titles.most_common(1)[0][1] == 1, "two goals about the same thing"


def test_goals_are_checked_without_torch_lightning_or_datasets():
    code = (
        "import sys; from collab.config.schema import TaskConfig; from collab.datamodules.goals import load_splits;"
        f"load_splits(TaskConfig(name='doc_edit', target='{DOC_EDIT.target}'));"
        "print(sorted({'torch', 'lightning', 'datasets', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


# The order of training


def numbered(count):
    return [Goal(str(index), f"prompt {index}", f"reference {index}") for index in range(count)]


def module(count=10, goals_per_step=4, max_steps=5, seed=1, world_size=None, rank=0):
    from collab.datamodules.base import GoalDataModule

    data = GoalDataModule(GoalSplits(numbered(count), numbered(70), numbered(3)), goals_per_step, max_steps, seed)
    if world_size is not None:
        current = SimpleNamespace(ready=0)
        loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(current=current)))
        data.trainer = SimpleNamespace(world_size=world_size, global_rank=rank, fit_loop=loop)
    return data


def ids(loader):
    return [[goal.id for goal in batch.goals] for batch in loader]


@pytest.mark.parametrize("count,goals_per_step", [(10, 4), (10, 10), (7, 5), (4, 4), (64, 4), (5, 3)])
def test_schedule_is_passes_over_all_goals_without_repeats_in_a_step(count, goals_per_step):
    from collab.datamodules.base import schedule

    steps = 3 * count  # whole passes: 3 * goals_per_step of them
    order = [goal.id for goal in schedule(numbered(count), goals_per_step, steps, seed=1)]
    assert len(order) == steps * goals_per_step
    for start in range(0, len(order), goals_per_step):
        assert len(set(order[start : start + goals_per_step])) == goals_per_step
    passes = [order[start : start + count] for start in range(0, len(order), count)]
    assert all(sorted(one) == sorted(passes[0]) for one in passes) and set(Counter(passes[0]).values()) == {1}
    assert passes[0] != passes[1]


def test_schedule_with_fewer_goals_than_a_step_spreads_them_evenly():
    from collab.datamodules.base import schedule

    order = [goal.id for goal in schedule(numbered(3), 8, 3, seed=1)]
    for start in range(0, 24, 8):
        assert sorted(Counter(order[start : start + 8]).values()) == [2, 3, 3]


def test_schedule_repeats_with_the_seed_and_is_the_beginning_of_a_longer_one():
    assert ids(module(seed=3).train_dataloader()) == ids(module(seed=3).train_dataloader())
    assert ids(module(seed=3).train_dataloader()) != ids(module(seed=4).train_dataloader())
    assert ids(module(seed=3, max_steps=9).train_dataloader())[:5] == ids(module(seed=3).train_dataloader())


def test_training_batches():
    batches = list(module(max_steps=5).train_dataloader())
    assert [len(batch.goals) for batch in batches] == [4] * 5
    assert batches[0].groups is None and batches[0].scored == [] and batches[0].scored is not batches[1].scored


def test_evaluation_batches_are_in_file_order():
    assert [len(batch) for batch in ids(module().val_dataloader())] == [64, 6]
    assert sum(ids(module().val_dataloader()), []) == [str(index) for index in range(70)]
    assert ids(module().test_dataloader()) == [["0", "1", "2"]]


def test_processes_share_a_step_evenly():
    whole = ids(module().train_dataloader())
    shares = [ids(module(world_size=2, rank=rank).train_dataloader()) for rank in range(2)]
    # Process r has items r, r + 2, ... of a step: `RolloutCallback` numbers them by that.
    assert [step[r::2] for r in range(2) for step in whole] == [*shares[0], *shares[1]]


def test_one_process_under_ddp_trains_in_the_order_of_the_schedule():
    from torch.utils.data import DistributedSampler

    loader = module(world_size=1).train_dataloader()
    assert ids(loader) == ids(module().train_dataloader())
    assert isinstance(loader.sampler, DistributedSampler)  # Lightning replaces any other by one that shuffles


@pytest.mark.parametrize(
    ("count", "batches"), [(70, [[35], [35]]), (3, [[2], [1]]), (1, [[1], [0]]), (129, [[64, 1], [64, 0]])]
)
def test_processes_evaluate_each_goal_once_in_as_many_batches(count, batches):
    shares = []
    for rank in range(2):
        data = module(world_size=2, rank=rank)
        data.splits = GoalSplits([], numbered(count), [])
        shares.append(ids(data.val_dataloader()))
    assert [[len(batch) for batch in share] for share in shares] == batches
    assert [sum(share, []) for share in shares] == [
        [str(index) for index in range(rank, count, 2)] for rank in range(2)
    ]


def seen_by_lightning(folder, ckpt_path=None, killed_at=None):
    """What `training_step` got, by step: the batch index that a callback put on the batch, and the goals' ids."""
    import lightning
    import torch

    from collab.callbacks.checkpoint import BatchCheckpoint

    class Fill(lightning.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == killed_at:
                raise SystemExit
            batch.groups = [batch_idx]

    class Record(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight, self.seen = torch.nn.Parameter(torch.zeros(())), []

        def training_step(self, batch, batch_idx):
            self.seen.append((batch.groups, [goal.id for goal in batch.goals]))
            return self.weight**2

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = lightning.Trainer(
        max_epochs=1, limit_val_batches=0, accelerator="cpu", logger=False,
        callbacks=[Fill(), BatchCheckpoint(folder, every_n_steps=1)],
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    policy = Record()
    trainer.fit(policy, datamodule=module(), ckpt_path=ckpt_path)
    return policy.seen


def test_lightning_hands_on_the_very_batch_that_a_callback_filled(tmp_path):
    steps = ids(module().train_dataloader())
    assert seen_by_lightning(tmp_path) == [([step], goals) for step, goals in enumerate(steps)]


@pytest.mark.parametrize("done", [1, 2, 4])
def test_a_run_that_is_taken_up_sees_the_goals_of_the_steps_that_remain(done, tmp_path):
    whole = seen_by_lightning(tmp_path / "whole")
    with pytest.raises(SystemExit):
        seen_by_lightning(tmp_path / "killed", killed_at=done)
    again = seen_by_lightning(tmp_path / "again", ckpt_path=tmp_path / "killed" / f"step-{done:06d}.ckpt")
    assert len(whole) == 5 and again == whole[done:]
