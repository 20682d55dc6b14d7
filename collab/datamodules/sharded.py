"""Goals of task=sharded: instructions cut into shards, which the user tells at once or one a turn.

From Laban et al., "LLMs Get Lost in Multi-Turn Conversation" (arXiv 2505.06120). A goal's shards are its agenda
(`collab.parsing.agenda_items.shards_of`).
"""

from __future__ import annotations

import base64
import io
import json
import pickle
import zlib
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from collab.conversation import Agenda, AgendaItem, Artefact, Goal
from collab.datamodules.code import CodeGoals
from collab.datamodules.doc_edit import DocEditGoals
from collab.datamodules.goals import DATA, TaskGoals, load_goals
from collab.datamodules.rows import Layout, Row, checked, field_of, id_of, text_of
from collab.parsing.answers import CHECKER
from collab.util.errors import BadInput

TASKS = ("math", "code", "doc_edit", "data2text")
_UNREAD = ("actions", "database", "summary", "translation")  # tasks of the published data that have no metric here

# The tests of a published program: each case has the arguments and the result as JSON. A tuple counts as a list.
_TESTS = """\
import json

def check(candidate):
    for arguments, wanted in json.loads({cases!r}):
        found = candidate(*arguments)
        assert (list(found) if isinstance(found, tuple) else found) == wanted
"""


class ShardedGoals(TaskGoals):
    """Goals of `task=sharded`; all are for the test.

    Those that ship: math and data2text problems whose shards are written by hand (`data/sharded`), the test goals of
    `task=code`, whose agenda is their shards, and those of `task=doc_edit`, whose notes are.

    The published file `sharded_instructions_600.json` (https://github.com/microsoft/lost_in_conversation, or the data
    set `microsoft/lost_in_conversation` on the hub) is read too: its math, code and data2text. Its other tasks need
    databases, a matcher of calls or a judge, and are left out.

    Args:
        tasks: Which of `TASKS` to take, of what ships and of the published file.

    Raises:
        BadInput: There is no such task.
    """

    def __init__(self, tasks: Sequence[str] = TASKS) -> None:
        if isinstance(tasks, str) or not tasks or not set(tasks) <= set(TASKS):
            read = f" The published {', '.join(_UNREAD)} have no metric here." if set(tasks) & set(_UNREAD) else ""
            raise BadInput(
                f"task.options.tasks ({tasks}) must be a list of some of {', '.join(TASKS)}.{read} Set it to "
                f"e.g. 'task.options.tasks=[math]'."
            )
        self.tasks = tuple(tasks)
        self.layouts = (Layout(("task_id", "task", "shards"), self._published),)

    def shipped(self, split: str) -> list[Goal]:
        """The test goals, one of each task in turn, so that the first few are of all tasks."""
        found = (_SHIPPED[task]() for task in self.tasks)
        return [goal for each in zip_longest(*found) for goal in each if goal is not None]

    def _published(self, row: Row, where: str) -> Goal | None:
        task = text_of(row, "task", where)
        if task not in self.tasks:
            if task not in (*TASKS, *_UNREAD):
                raise BadInput(f"{where}: task is {task!r}; it must be one of {', '.join((*TASKS, *_UNREAD))}. Fix it.")
            return None
        shards = field_of(row, "shards", where, "a list")
        texts = [_shard(shard, f"{where}: shard {place}") for place, shard in enumerate(shards, 1)]
        if len(texts) < 2:
            raise BadInput(f"{where}: there are {len(texts)} shards; two at least are needed. Leave the row out.")
        makes, prompt, reference, metadata = _READERS[task](row, where)
        agenda = Agenda(makes, texts[0], tuple(AgendaItem("shard", text) for text in texts[1:]))
        return Goal(id_of(row, "task_id", where), prompt, reference, {**metadata, "agenda": agenda.entry()})


def _shard(shard: Any, where: str) -> str:
    """The text of a shard. The published code reads it from `shard`; the published README names it `shard_text`."""
    fields = checked(shard, "an object", where)
    return text_of(fields, "shard_text" if "shard" not in fields and "shard_text" in fields else "shard", where)


def _by_hand(task: str) -> list[Goal]:
    return load_goals(DATA / "sharded" / f"{task}.jsonl", "test")


_SHIPPED = {
    "math": lambda: _by_hand("math"),
    "data2text": lambda: _by_hand("data2text"),
    "code": lambda: load_goals(CodeGoals().shipped("test"), "test", CodeGoals()),
    "doc_edit": lambda: load_goals(DocEditGoals().shipped("test"), "test"),
}


# --- rows of the published file --------------------------------------------------------------------------------------
# Each reader gives the kind of result, the whole instruction, the reference and further metadata. In the paper the
# instruction stands in a prompt that is no part of the data; where one is needed, its words are ours.

_Read = tuple[Artefact, str, str, dict[str, Any]]


def _math(row: Row, where: str) -> _Read:
    """GSM8K: the solution ends with #### and the answer."""
    solution = text_of(row, "answer", where)
    answer = solution.rpartition("####")[2].strip()
    if not CHECKER.readable(answer):
        raise BadInput(
            f"{where}: the answer {answer!r} cannot be read as mathematics. Write #### and the number at the end of "
            "the field answer, or leave the row out."
        )
    return "answer", text_of(row, "question", where), answer, {}


def _code(row: Row, where: str) -> _Read:
    """HumanEval has `prompt`, LiveCodeBench `question_content` and `starter_code`; no solution is published."""
    name = text_of(field_of(row, "metadata", where, "an object"), "func_name", f"{where}: field metadata")
    if row.get("prompt"):
        prompt = f"Complete this Python function:\n```python\n{text_of(row, 'prompt', where)}\n```"
    else:
        prompt = text_of(row, "question_content", where)
        if row.get("starter_code"):
            prompt += f"\nStart like this:\n```python\n{text_of(row, 'starter_code', where)}\n```"
    cases = [case for field in ("public_test_cases", "private_test_cases") for case in _cases(row, field, where)]
    if not cases:
        raise BadInput(f"{where}: public_test_cases and private_test_cases are empty, so no program could be tested.")
    tests = _TESTS.format(cases=json.dumps(cases))
    return "program", prompt, "", {"entry_point": name, "tests": tests}


def _cases(row: Row, field: str, where: str) -> list[tuple[list[Any], Any]]:
    """The arguments and the result of each case in a field; none if the row has no such field.

    A case has `input`, a line of JSON for each argument, and `output`, JSON. LiveCodeBench packs its private cases.
    """
    if row.get(field) is None:
        return []
    text = text_of(row, field, where)
    try:
        cases = json.loads(text if text.startswith("[") else _unpacked(text))
        return [
            ([json.loads(line) for line in case["input"].split("\n")], json.loads(case["output"])) for case in cases
        ]
    except (ValueError, LookupError, TypeError, AttributeError, zlib.error, pickle.UnpicklingError, EOFError) as error:
        raise BadInput(
            f"{where}: field {field} cannot be read ({type(error).__name__}: {error}); it must be a JSON list of "
            "objects with input and output, as text, or that text pickled, compressed and in base64. Fix it, or leave "
            "the row out."
        ) from error


class _Texts(pickle.Unpickler):
    """Unpickles plain values alone: it refuses every class and function, so it can run no code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _unpacked(text: str) -> str:
    return str(_Texts(io.BytesIO(zlib.decompress(base64.b64decode(text)))).load())


def _data2text(row: Row, where: str) -> _Read:
    """ToTTo: a table with marked cells, some facts about it, and several references."""
    listed = field_of(row, "references", where, "a list")
    references = [text for text in listed if checked(text, "text", f"{where}: references").strip()]
    if not references:
        raise BadInput(f"{where}: references has no text. Write one at least, or leave the row out.")
    facts = field_of(row, "metadata", where, "an object")
    examples = row.get("fewshot_descriptions")
    prompt = "\n".join(
        [
            "Describe the highlighted cells of this table in one sentence of at most 30 words, and write no more.",
            text_of(row, "table_highlighted_html", where),
            *(f"{name}: {value}" for name, value in facts.items()),
            *(["Sentences about other tables, as examples:", examples] if examples else []),
        ]
    )
    return "text", prompt, references[0], {"form": "sentence", "references": references}


_READERS = {"math": _math, "code": _code, "data2text": _data2text}
