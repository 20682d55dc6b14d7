"""What the README tells people to type composes."""

import re
import shlex
from pathlib import Path

import pytest

from collab.app.compose import load_config, options
from collab.datamodules.goals import load_goals
from collab.util.paths import config_dir

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python (?:-m collab\.)?(train|evaluate|synthesize)(?:\.py)? (.*)$", README, re.MULTILINE)


@pytest.mark.parametrize(("entry", "arguments"), COMMANDS, ids=[" ".join(found) for found in COMMANDS])
def test_a_command_composes(entry, arguments):
    typed = shlex.split(arguments)
    sweep = "-m" in typed
    overrides = [text.split(",")[0] if sweep else text for text in typed if text != "-m"]
    load_config(entry, overrides)


def test_the_table_lists_every_option_of_every_group():
    told = dict(re.findall(r"^\| `(\w+)` \| (`.*`) \|", README, re.MULTILINE))
    there = {group: sorted(names) for group, names in options([config_dir()]).items()}
    assert {group: sorted(re.findall(r"`([\w/]+)`", names)) for group, names in told.items()} == there


def test_the_goal_shown_is_one(tmp_path):
    (line,) = re.findall(r"^```json\n(.*)\n```$", README, re.MULTILINE)
    file = tmp_path / "goals.jsonl"
    file.write_text(line, encoding="utf-8")
    (goal,) = load_goals(file, "train")
    assert goal.id == "bench"
