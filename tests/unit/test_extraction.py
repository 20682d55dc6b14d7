"""What counts as a final answer and as a program in what an assistant says."""

import pytest

from collab.parsing.extraction import defines, last_answer, last_program, outside_code, states_answer

ADD = "def add(a, b):\n    return a + b\n"
DOUBLE = "def double(a):\n    return 2 * a\n"


def fenced(code: str, mark: str = "```", language: str = "python") -> str:
    return f"{mark}{language}\n{code}{mark}\n"


@pytest.mark.parametrize(
    ("reply", "states"),
    [
        ("So there are 84 rolls.", True),
        (r"\boxed{x}", True),
        (r"It is $\boxed{\frac{1}{2}}$. Is that what you need?", True),
        ("The answer is yes. Does that help?", True),
        ("You have 7 trays. What does a roll cost?", False),  # a number, and a question
        ("How many trays are there, 7 or 8?", False),
        ("I will work it out.", False),
        ("", False),
    ],
)
def test_a_message_states_an_answer(reply, states):
    assert states_answer(reply) is states


def test_the_last_answer_is_that_of_the_latest_message_that_states_one():
    assert last_answer(["It is 5.", "No, it is 6. Shall I explain it?", "It is 7.", "You are welcome."]) == "It is 7."
    assert last_answer(["The answer is 6. Shall I explain it?"]) == "The answer is 6."
    assert last_answer(["Hello!", ""]) == ""
    assert last_answer([]) == ""


@pytest.mark.parametrize(
    ("replies", "program"),
    [
        ([fenced(ADD)], ADD),
        ([f"Sure!\n\n{fenced(ADD, language='')}\nIt adds."], ADD),
        ([fenced(ADD, "~~~")], ADD),
        ([fenced(ADD, "````")], ADD),
        ([f"Take this:\n\n    ```python\n    {ADD.replace(chr(10), chr(10) + '    ').rstrip()}\n    ```"], ADD),
        ([fenced(ADD), fenced(DOUBLE)], DOUBLE),  # the last one
        ([fenced(ADD), "Is that all right?"], ADD),  # of the conversation, not of the last message
        ([fenced(ADD) + fenced("add(1, 2)\n")], ADD),  # an expression is no program
        ([fenced("def add(a, b):\n    return a +\n")], ""),  # nor is what cannot be parsed
        ([fenced(ADD), fenced("def add(a,\n")], ADD),  # a reply that was cut
        ([f"```python\n{ADD}"], ADD),  # cut behind the program
        ([f"Here you are:\n\n{ADD}\nThis adds two numbers."], ADD),  # without a fence
        ([f"import math\n\n{ADD.rstrip()}"], f"import math\n\n{ADD}"),
        (["Just call sum(a, b) from your code."], ""),
        (["from here on it is easy"], ""),
        (["\x00"], ""),
        (["(" * 5000], ""),
        ([], ""),
    ],
)  # fmt: skip
def test_the_last_complete_program(replies, program):
    assert last_program(replies) == program


def test_a_program_with_the_entry_point_is_preferred_to_an_example_of_its_use():
    use = fenced("total = add(1, 2)\nprint(total)\n")
    assert last_program([fenced(ADD) + use], "add") == ADD
    assert last_program([fenced(ADD) + use]) == "total = add(1, 2)\nprint(total)\n"
    assert last_program([fenced(DOUBLE)], "add") == DOUBLE  # it will fail, and it is what there is
    changed = ADD.replace("a + b", "b + a")
    assert last_program([fenced(ADD), fenced(changed), use], "add") == changed


def test_defines_looks_at_the_top_level():
    assert defines(ADD, "add") and not defines(ADD, "double")
    assert defines("class add:\n    pass", "add") and defines("async def add():\n    pass", "add")
    assert not defines("def f():\n    def add():\n        pass", "add")
    assert not defines("def add(", "add")


def test_prose_around_code_is_kept_without_it():
    assert outside_code(f"Which name?\n{fenced('x = a ? b' + chr(10))}Done.").split() == ["Which", "name?", "Done."]
