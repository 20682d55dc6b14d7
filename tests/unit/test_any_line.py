"""Whatever a line of a data file holds, it is read or refused by its number."""

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collab.datamodules.abg_coqa import AbgCoqaGoals
from collab.datamodules.code import CodeGoals
from collab.datamodules.conversations import load_groups
from collab.datamodules.doc_edit import DocEditGoals
from collab.datamodules.goals import TaskGoals, load_goals
from collab.datamodules.safety import SafetyGoals
from collab.util.errors import BadInput

GOAL = {"id": "a", "single_turn_prompt": "A text on a.", "single_turn_completion": "All about a."}
RESPONSE = {"completion": "Yes.", "score": 0.5, "rewards": {"MR": [0.5], "accuracy": [1.0]}, "finish_reason": "stop"}
NESTED = {
    "conv_id": "a/0",
    "single_turn_prompt": "A text on a.",
    "single_turn_metadata": {"preferences": {"tone": "dry"}},
    "turns": [{"prompt": [{"role": "user", "content": "Hi"}], "responses": [RESPONSE]}],
}
FLAT = {"conv_id": "a/1", "prompt": [{"role": "user", "content": "Hi"}], **RESPONSE}
COLUMNS = (  # of published data
    ("title", "text", "timestamp", "tags"),
    ("task_id", "instruct_prompt", "code_prompt", "canonical_solution", "test", "entry_point"),
    ("task_id", "prompt", "canonical_solution", "test", "entry_point"),
    ("id", "story", "target_turn", "history_turns", "ambiguity", "clarification_turn"),
    ("goal", "target"),
    ("Behavior", "FunctionalCategory", "SemanticCategory", "Tags", "ContextString", "BehaviorID"),
    ("category", "source", "forbidden_prompt"),
    ("id", "prompt", "type", "label", "focus", "note"),
)

NAMES = [
    "title",
    "form",
    "notes",
    "cues",
    "tone",
    "agenda",
    "preferences",
    "makes",
    "opening",
    "items",
    "content",
    "role",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=3), inner),
    max_leaves=8,
)


@st.composite
def changed(draw, row):
    """The row with some of its entries, at any depth, replaced by anything."""
    if not isinstance(row, dict | list) or draw(st.integers(0, 3)) == 0:
        return draw(JSON)
    keys = list(row) if isinstance(row, dict) else range(len(row))
    new = dict(row) if isinstance(row, dict) else list(row)
    for key in draw(st.sets(st.sampled_from(keys), max_size=2)) if keys else ():
        new[key] = draw(changed(row[key]))
    return new


def check_lines(tmp_path, read, first, row):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(f"{json.dumps(first)}\n{json.dumps(row)}\n".encode("utf-8", "surrogatepass"))
    try:
        read(path)
    except BadInput as error:
        assert f"{path}, line 2" in str(error)


SETTINGS = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@SETTINGS
@given(
    row=changed(
        {**GOAL, "single_turn_metadata": {"title": "a", "notes": ["b"], "cues": ["c"], "preferences": {"tone": "dry"}}}
    )
    | JSON
)
def test_any_line_is_a_goal_or_refused_by_its_number(row, tmp_path):
    check_lines(tmp_path, lambda path: load_goals(path, "train"), GOAL, row)


@SETTINGS
@given(data=st.data(), columns=st.sampled_from(COLUMNS))
def test_any_row_of_published_columns_is_a_goal_or_refused_by_its_number(data, columns, tmp_path):
    row = data.draw(st.fixed_dictionaries(dict.fromkeys(columns, JSON)))
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    for task in (DocEditGoals(), CodeGoals(), AbgCoqaGoals(), SafetyGoals(), TaskGoals()):
        try:
            load_goals(path, "train", task)
        except BadInput as error:
            assert "line 1" in str(error) or "holds no goals" in str(error)


@SETTINGS
@given(row=changed(NESTED) | changed(FLAT) | JSON)
def test_any_line_is_a_conversation_or_refused_by_its_number(row, tmp_path):
    check_lines(tmp_path, lambda path: load_groups(path, ""), NESTED, row)


@SETTINGS
@given(line=st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_any_bytes_are_refused_by_the_number_of_their_line(line, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(GOAL).encode() + b"\n" + line)
    try:
        load_goals(path, "train")
    except BadInput as error:
        assert f"{path}, line " in str(error)


# Numbers that are not finite


@pytest.mark.parametrize("number", ["Infinity", "-Infinity", "1e400", "-1e400", "1" + 400 * "0"])
@pytest.mark.parametrize("field", ["score", "rewards.MR", "rewards.accuracy"])
@pytest.mark.parametrize("row", [NESTED, FLAT], ids=["nested", "flat"])
def test_a_score_that_is_not_finite_is_refused_by_its_line(number, field, row, tmp_path):
    response = {"score": {"score": 7}, "rewards.MR": {"rewards": {"MR": [7]}}}.get(field, {"rewards": {"accuracy": 7}})
    bad = (
        {**row, **response}
        if row is FLAT
        else {**row, "turns": [{**row["turns"][0], "responses": [RESPONSE | response]}]}
    )
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(NESTED)}\n{json.dumps(bad).replace('7', number)}\n")
    with pytest.raises(BadInput, match="must be finite") as caught:
        load_groups(path, "")
    assert f"{path}, line 2" in str(caught.value) and f"field {field} is a number" in str(caught.value)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
@pytest.mark.parametrize("metadata", ['{"tone": 7}', '{"title": 7}', '{"own": {"deep": [7]}}', '"{\\"tone\\": 7}"'])
def test_metadata_that_are_not_finite_are_refused_by_their_line(number, metadata, tmp_path):
    path = tmp_path / "rows.jsonl"
    for read, row in ((lambda: load_goals(path, "train"), GOAL), (lambda: load_groups(path, ""), NESTED)):
        path.write_text(json.dumps(row)[:-1] + ', "single_turn_metadata": ' + metadata.replace("7", number) + "}\n")
        with pytest.raises(BadInput) as caught:
            read()
        assert f"{path}, line 1: field single_turn_metadata: " in str(caught.value)


def test_numbers_that_are_not_finite_are_refused_in_parquet_too(tmp_path):
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([FLAT, {**FLAT, "score": math.inf}]), path)
    with pytest.raises(BadInput, match="row 2: field score is a number"):
        load_groups(path, "")


# Texts and names that nobody can use


@pytest.mark.parametrize(
    "text", ["\u200b", "\u200b \ufeff\u2060", "\u00ad", "\x00\x01\x7f", "\u3164", "\u2800", "\ufe0f", "\u200e\u202e"]
)
def test_a_text_that_nobody_sees_is_empty(text, tmp_path):
    path = tmp_path / "rows.jsonl"
    item = {"kind": "k", "text": text}
    for row, said in (
        ({**GOAL, "single_turn_prompt": text}, "field single_turn_prompt is empty"),
        ({**GOAL, "single_turn_completion": text}, "field single_turn_completion is empty"),
        ({**GOAL, "id": text}, "field id is text"),
        ({**GOAL, "single_turn_metadata": {"title": text}}, "title is text"),
        ({**GOAL, "single_turn_metadata": {"notes": ["noon", text]}}, "none empty"),
        ({**GOAL, "single_turn_metadata": {"agenda": {"makes": "text", "opening": "o", "items": [item]}}}, "agenda is"),
    ):
        path.write_text(json.dumps(row) + "\n")
        with pytest.raises(BadInput) as caught:
            load_goals(path, "train")
        assert (
            f"{path}, line 1: field {said}" in str(caught.value)
            or f"single_turn_metadata: {said}" in str(caught.value)
            or said in str(caught.value)
        )


@pytest.mark.parametrize("title", [math.nan, ["a"], {"a": 1}, True, 3])
@pytest.mark.parametrize("name", ["title", "form"])
def test_a_title_that_is_no_text_is_refused_by_its_line(title, name, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**GOAL, "single_turn_metadata": {name: title}}) + "\n")
    with pytest.raises(BadInput) as caught:
        load_goals(path, "train")
    assert f"{path}, line 1: field single_turn_metadata: {name} is " in str(caught.value)


def test_an_agenda_that_is_no_object_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**GOAL, "single_turn_metadata": {"agenda": ["x"]}}) + "\n")
    with pytest.raises(BadInput, match="line 1: field single_turn_metadata: agenda is a list"):
        load_goals(path, "train")


@pytest.mark.parametrize(
    "name", ["x" * 300, "x" * 300 + ".jsonl", "a/" * 3000, "~nobody_of_this_name/goals.jsonl", "a\x00.jsonl"]
)
def test_a_file_name_that_the_system_does_not_take_is_named(name):
    for read in (lambda: load_goals(name, "train", key="task.data"), lambda: load_groups(name, "", "task.data")):
        with pytest.raises(BadInput) as caught:
            read()
        assert name[:20] in str(caught.value) and "Check the path (task.data)" in str(caught.value)


def test_a_letter_of_half_a_character_is_refused_in_metadata_that_are_text(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**GOAL, "single_turn_metadata": '{"tone": "\\ud800"}'}) + "\n")
    with pytest.raises(BadInput, match="line 1: field single_turn_metadata: tone is text"):
        load_goals(path, "train")
