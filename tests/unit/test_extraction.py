"""What counts as a final answer and as a program in what an assistant says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collab.parsing.extraction import defines, last_answer, last_program, outside_code, states_answer

ADD = "def add(a, b):\n    return a + b\n"
DOUBLE = "def double(a):\n    return 2 * a\n"
TWICE = "def f(x):\n    return double(x)\n"


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


@pytest.mark.parametrize(
    ("reply", "states"),
    [("Option B.", True), ("(B)", True), ("**B**", True), ("Go with C.", True), ("I think A and B are alike.", False)],
)
def test_a_letter_is_an_answer_where_a_choice_is_asked_for(reply, states):
    assert states_answer(reply, "B") is states
    assert not states_answer(reply, "84") and not states_answer(reply)
    assert bool(last_answer([reply], "B")) is states and not last_answer([reply], "84")


@pytest.mark.timeout(20)
def test_a_line_of_quote_marks_takes_no_time():
    """As a policy may write it: the time once doubled with each mark."""
    line = "> " * 2000
    assert outside_code(line) == line and outside_code(f"{line}x") == f"{line}x"
    assert last_program(["> > ```python\n> > x = 1\n> > ```"]) == "x = 1\n"


@pytest.mark.timeout(20)
def test_the_search_for_a_program_ends_where_every_line_could_begin_one():
    chain = "\n".join(f"@first({', '.join('x' * 40)})" for _ in range(100))  # decorators of nothing
    assert last_program([chain]) == ""


def test_a_short_program_is_found_before_much_prose():
    prose = "\n".join(
        f"And so it goes on, line after line, for all who read up to line {number}. " * 3 for number in range(95)
    )
    assert last_program([f"def f():\n    return 1\n{prose}"]) == "def f():\n    return 1\n"


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
        ([fenced(DOUBLE), fenced(TWICE)], f"{DOUBLE}\n{TWICE}"),  # and what it calls
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


DOCUMENTED = 'def f():\n    """Doc.\n\n    ```python\n    x = 1\n    ```\n    """\n    return 1\n'
LAMBDA = "f = lambda x: x\n"
USE = "y = f(2)\nprint(y)\n"
AREA = "def area(r):\n    return math.pi * r\n"


def quoted(text: str, mark: str = "> ") -> str:
    return "".join(f"{mark}{line}\n" for line in text.splitlines())


@pytest.mark.parametrize(
    ("reply", "entry_point", "program"),
    [
        (fenced(ADD).replace("\n", "\r\n"), "", ADD),
        (fenced(DOCUMENTED), "f", DOCUMENTED),
        (fenced(DOCUMENTED, "~~~"), "f", DOCUMENTED),
        (fenced(DOCUMENTED) + "Use it so:\n" + fenced(USE), "f", DOCUMENTED),
        (fenced(LAMBDA) + fenced(USE), "f", LAMBDA),
        (fenced("class f:\n    pass\n") + fenced("x = f()\n"), "f", "class f:\n    pass\n"),
        (fenced("if True:\n    def f(): pass\n") + fenced("x = f()\n"), "f", "if True:\n    def f(): pass\n"),
        (fenced(LAMBDA) + fenced(f"from solution import f\n{USE}"), "f", LAMBDA),
        (fenced("import math\n") + "Then:\n" + fenced(AREA), "area", f"import math\n\n{AREA}"),
        (fenced("import os\n") + fenced(ADD), "add", ADD),  # it needs no os
        (fenced(DOUBLE) + fenced(TWICE), "f", f"{DOUBLE}\n{TWICE}"),
        (fenced(TWICE) + fenced(DOUBLE), "f", f"{DOUBLE}\n{TWICE}"),
        (f"```python\n{ADD}``` done\n", "", ADD),
        (f"```python\n{ADD}``` done\nAnd:\n{fenced(DOUBLE)}", "add", ADD),
        (f"~~~ python\n{ADD}~~~ end\nSo.", "", ADD),
        (quoted(fenced(ADD)), "", ADD),
        (quoted(quoted(fenced(ADD))) + "Thanks.", "", ADD),
        (quoted(fenced(ADD), ">"), "", ADD),
        (f"```python title=\"a.py\" {{1}}\n{ADD}```", "", ADD),
        (f"1. Take\n   - ```py\n     {ADD.replace(chr(10), chr(10) + '     ')}\n     ```", "", ADD),
        (f"Here: ```python\n{ADD}```\n", "", ADD),
        (f"````markdown\nHi\n{fenced(ADD)}````\n", "", ADD),
        (f"```bash\npip install x\n```\n{fenced(ADD)}", "", ADD),
        (f"```python\n{ADD}\nThis adds two numbers.", "", ADD),  # never closed
        (f"```python\n{ADD}\n```python\nadd(1, 2)\n```", "", ADD),
        (f"```python\n{ADD}\n```python\n{DOUBLE}```", "", DOUBLE),  # the second fence opens a block
        ("```\nx = \'\'\'a\n   \nb\'\'\'\n```", "", "x = \'\'\'a\n   \nb\'\'\'\n"),
        ("Take this:\nf = lambda x: x\nIt is short.", "f", LAMBDA),
        (f"import it like this:\n{ADD}", "", ADD),  # the first line only looks like code
        (f"```add``` is what you want.\nThis one:\n{ADD}", "", ADD),  # code in a sentence is no fence
        ("```python\n" + 150 * "x = 1\n", "", 150 * "x = 1\n"),  # long, and never closed
        ("    ```\n    x = '''\na'''\n    ```", "", "x = '''\na'''\n"),  # a string that is not indented
        (fenced("x = y.X\n"), "", "x = y.X\n"),
        (fenced("x = 1  # one  \n"), "", "x = 1  # one  \n"),
        (f"```\nIt is this:\n{ADD}```", "", ""),  # a block is a program as a whole
        (fenced(DOUBLE) + fenced(TWICE), "", f"{DOUBLE}\n{TWICE}"),
        (fenced(TWICE) + fenced(DOUBLE) + fenced(ADD), "f", f"{DOUBLE}\n{TWICE}"),
        (fenced(f"import os\n\n{DOUBLE}") + fenced(TWICE), "f", f"import os\n\n{DOUBLE}\n{TWICE}"),
        (fenced("import os.path\n") + fenced("f = os.path.f\n"), "f", "import os.path\n\nf = os.path.f\n"),
        (fenced(DOUBLE) + fenced(TWICE), "area", TWICE),  # it does not define what is asked for: an example
    ],
)  # fmt: skip
def test_a_program_is_read_in_every_kind_of_block(reply, entry_point, program):
    assert last_program([reply], entry_point) == program


HELPER = "def helper():\n    return 0\n"


@pytest.mark.parametrize(
    "binds",
    [
        "def f(helper):\n    return helper\n",
        "def helper():\n    return helper\n",
        "class helper:\n    pass\n\nx = helper\n",
        "import numpy as helper\n\nx = helper.pi\n",
        "import helper.sub\n\nx = helper.sub.y\n",
        "from helper import helper\n\nx = helper.y\n",
        "try:\n    x = 1\nexcept ValueError as helper:\n    print(helper)\n",
        "match 1:\n    case int() as helper:\n        print(helper)\n",
        "match [1]:\n    case [*helper]:\n        print(helper)\n",
        "match {}:\n    case {**helper}:\n        print(helper)\n",
        "for helper in [1]:\n    print(helper)\n",
    ],
)
def test_what_a_program_binds_itself_is_taken_from_no_other_block(binds):
    program = f"{binds}\nmain = 1\n"
    assert last_program([fenced(HELPER) + fenced(program)], "main") == program


@pytest.mark.parametrize("name", ["max", "__name__", "__file__"])
def test_what_every_program_has_is_taken_from_no_other_block(name):
    program = f"def f():\n    return {name}\n"
    assert last_program([fenced(f"{name} = 1\n") + fenced(program)], "f") == program


def test_an_example_of_use_gets_its_imports_and_nothing_else():
    use = "y = helper() + math.pi\nprint(y)\n"
    assert last_program([fenced(HELPER) + fenced("import math\n") + fenced(use)]) == f"import math\n\n{use}"
    assert last_program([fenced(f"import math\n{HELPER}") + fenced(use)]) == use  # not only imports


TEXTS = st.lists(
    st.sampled_from(
        ["```", "```python", "``` done", "~~~", "    ```", "> ```", "", "   ", "A word.", "\u2028", "x = 1"]
    ),
    max_size=6,
).map("\n".join)
PROGRAMS = st.lists(
    st.one_of(
        TEXTS.map(lambda text: f'def f(x):\n    """Doc.\n\n{text}\n    """\n    return x\n'),
        TEXTS.map(lambda text: f"TEXT = '''{text}'''\n"),
        st.text().map(lambda text: f"x = {text!r}\n"),
        st.sampled_from([ADD, DOUBLE, LAMBDA, "class A:\n\n    x = 1\n", "# ```\n"]),
    ),
    max_size=4,
).map(lambda parts: "".join(["import os\n", *parts]))


@given(PROGRAMS, st.data())
def test_a_fenced_program_comes_back_as_it_was(program, data):
    mark = data.draw(st.sampled_from(["```", "````", "~~~"]))
    block = f"{mark}{data.draw(st.sampled_from(['', 'python', ' py']))}\n{program}{mark}\n"
    if data.draw(st.booleans()):
        block = "".join(f"> {line}\n" for line in block.split("\n")[:-1])
    reply = data.draw(st.sampled_from(["", "Sure!\n\n"])) + block + data.draw(st.sampled_from(["", "\nIt works.\n"]))
    if data.draw(st.booleans()):
        reply = reply.replace("\n", "\r\n")
    assert last_program([reply]) == program
    assert "import os" not in outside_code(reply)


@pytest.mark.parametrize("entry_point", ["", "area"])
def test_imports_of_a_block_of_their_own_are_kept_whatever_is_asked_for(entry_point):
    reply = fenced("import math\n") + fenced(AREA)
    assert last_program([reply], entry_point) == f"import math\n\n{AREA}"


@given(st.text() | TEXTS)
def test_any_message_is_read_without_an_error(reply):
    program = last_program([reply], "f")
    assert program == "" or program.endswith("\n")
    outside_code(reply)


def test_defines_looks_at_the_top_level():
    assert defines(ADD, "add") and not defines(ADD, "double")
    assert defines("class add:\n    pass", "add") and defines("async def add():\n    pass", "add")
    assert not defines("def f():\n    def add():\n        pass", "add")
    assert not defines("def add(", "add")
    assert defines(ADD) and defines("class A:\n    pass\n") and not defines("x = 1\n")


def test_prose_around_code_is_kept_without_it():
    assert outside_code(f"Which name?\n{fenced('x = a ? b' + chr(10))}Done.").split() == ["Which", "name?", "Done."]
    assert outside_code("Look:\n```text\nHi you\n``` is a fence\nBye now\n```\nDone.") == "Look:\n\nDone."
