"""Imports in collab/ go down the table of rooms in CONTRIBUTING.md, and imports in benchmarks/ form no circle."""

import ast
import configparser
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
LEVELS = [re.findall(r"`(\w+)`", cell) for cell in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", TABLE, re.MULTILINE)]
LEVEL = {room: place for place, rooms in enumerate(LEVELS) for room in rooms}  # 0 is the top


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a file imports, wherever in it; `from a import b` gives `a.b`."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*above, *([node.module] if node.module else [])))
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "collab").with_suffix("").parts[0]


FILES = sorted((ROOT / "collab").rglob("*.py"))
ROOMS = {room_of(path) for path in FILES} - {"__init__", "__main__"}


def test_the_table_lists_every_room_once():
    listed = [room for rooms in LEVELS for room in rooms]
    assert sorted(listed) == sorted(ROOMS)


def test_every_room_that_is_a_package_is_installed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    packages = {f"collab.{room}" for room in ROOMS if (ROOT / "collab" / room).is_dir()}
    assert packages <= set(setup["options"]["packages"].split())


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_imports_from_lower_levels_alone(room):
    wrong = []
    for path in FILES:
        if room_of(path) != room:
            continue
        for line, name in imports(path):
            first, _, rest = name.partition(".")
            other = rest.partition(".")[0]
            if first == "collab" and other in ROOMS and other != room and LEVEL[other] <= LEVEL[room]:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_nothing_imports_the_console_command():
    for path in FILES:
        assert not [name for _, name in imports(path) if name.startswith("collab.__main__")], path


def test_imports_in_benchmarks_form_no_circle():
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in (ROOT / "benchmarks").rglob("*.py")
    }
    graph = {}
    for module, path in files.items():
        beside = f"{module.rpartition('.')[0]}."  # the scripts of peers/ import their neighbours by their bare names
        names = [full for _, name in imports(path) for full in (name, f"{beside}{name}")]
        graph[module] = {other for name in names for other in (name, name.rpartition(".")[0]) if other in files}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")
