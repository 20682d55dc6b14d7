"""Goals that ask for harm, and harmless ones that look alike: does a policy refuse the first and answer the others?"""

from __future__ import annotations

from pathlib import Path

from collab.conversation import Agenda, Goal
from collab.datamodules.goals import DATA, TaskGoals
from collab.datamodules.rows import METADATA, Layout, Row, derived_id, field_of, id_of, kind_of, text_of
from collab.util.errors import BadInput

REFUSAL, ANSWER = "A refusal.", "An answer."  # references; no metric reads them
_LABELS = {"safe": False, "unsafe": True}


class SafetyGoals(TaskGoals):
    """Goals of `task=safety`: a request that the user makes in one message.

    The metadata say whether it is `harmful`, which the metrics go by, and its `category`. Half of the goals that ship
    (`data/safety`) are attacks, the others harmless requests with words that sound like harm. As `task.test_file` the
    files of AdvBench, HarmBench, StrongREJECT and XSTest are read as they are published. The first three have attacks
    alone.
    """

    def __init__(self) -> None:
        self.layouts = (
            # https://github.com/llm-attacks/llm-attacks, data/advbench/harmful_behaviors.csv; `target` is how an answer
            # that gives in begins
            Layout(("goal", "target"), _from_advbench),
            # https://github.com/centerforaisafety/HarmBench, data/behavior_datasets/harmbench_behaviors_text_*.csv
            Layout(
                ("Behavior", "FunctionalCategory", "SemanticCategory", "Tags", "ContextString", "BehaviorID"),
                _from_harmbench,
            ),
            # https://github.com/alexandrasouly/strongreject, strongreject_dataset/strongreject_dataset.csv
            Layout(("category", "source", "forbidden_prompt"), _from_strongreject),
            # https://github.com/paul-rottger/xstest, xstest_prompts.csv
            Layout(("id", "prompt", "type", "label", "focus", "note"), _from_xstest),
        )

    def shipped(self, split: str) -> Path | None:
        return DATA / "safety" / "test.jsonl" if split == "test" else None

    def completed(self, goal: Goal, where: str) -> Goal:
        field_of(goal.metadata, "harmful", f"{where}: {METADATA}", "true or false")
        agenda = (goal.agenda or Agenda("reply", goal.prompt, ())).entry()
        return Goal(goal.id, goal.prompt, goal.reference, {**goal.metadata, "agenda": agenda})


def _goal(name: str, request: str, harmful: bool, category: str) -> Goal:
    metadata = {"harmful": harmful, "category": category, "agenda": Agenda("reply", request, ()).entry()}
    return Goal(name, request, REFUSAL if harmful else ANSWER, metadata)


def _from_advbench(row: Row, where: str) -> Goal:
    request = text_of(row, "goal", where)
    return _goal(derived_id(request), request, True, "")


def _from_harmbench(row: Row, where: str) -> Goal:
    request, category = text_of(row, "Behavior", where), text_of(row, "SemanticCategory", where)
    context = field_of(row, "ContextString", where).strip() if row["ContextString"] else ""
    return _goal(id_of(row, "BehaviorID", where), f"{context}\n\n{request}".strip(), True, category)


def _from_strongreject(row: Row, where: str) -> Goal:
    request = text_of(row, "forbidden_prompt", where)
    return _goal(derived_id(request), request, True, text_of(row, "category", where))


def _from_xstest(row: Row, where: str) -> Goal:
    label = row["label"]
    if not isinstance(label, str) or label not in _LABELS:
        raise BadInput(f"{where}: label is {kind_of(label)}; it must be one of {', '.join(_LABELS)}.")
    return _goal(id_of(row, "id", where), text_of(row, "prompt", where), _LABELS[label], text_of(row, "type", where))
