"""The README is short, and what it and the pages of docs/ name is there: options, fields, files, anchors.

Their commands are checked in test_page_commands.py.
"""

import json
import posixpath
import re
from dataclasses import is_dataclass
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import pytest

from collab.app.compose import options
from collab.config.schema import Config
from collab.datamodules.goals import load_goals
from collab.util.paths import config_dir

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
}


def test_the_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 150


def test_the_table_has_the_figures_of_the_showcase():
    (table,) = re.findall(r"^<!-- showcase table -->\n(.*)^<!-- /showcase table -->\n", PAGES["README.md"], re.M | re.S)
    rows = dict(re.findall(r"^\| (\w.*?) \| (\S+ .*) \|$", table, re.MULTILINE))
    found = json.loads((ROOT / "docs/results/qwen25_coder_15b/showcase.json").read_text(encoding="utf-8"))
    told = {"base": found["1"]["base"], "proactive": found["1"]["proactive"]}
    told |= {f"grpo, seed {seed}": policies["trained"] for seed, policies in found.items()}
    for name, metrics in told.items():
        shown = [float(cell) for cell in rows[name].split(" | ")]
        names = ("reward", "coverage", "pertinent", "interactivity", "assistant_tokens")
        for value, metric in zip(shown, names, strict=True):
            assert value == pytest.approx(metrics[metric]["mean"], abs=0.5 if metric == "assistant_tokens" else 0.0051)


def test_the_readme_shows_every_program():
    shown = set(re.findall(r"^(?:python|collab) (\w+)", PAGES["README.md"], re.MULTILINE))
    assert shown == {"train", "evaluate", "synthesize", "report", "chat", "estimate"}


def test_every_page_is_reached_from_the_readme_or_the_home_page_of_the_site():
    reached = ["README.md", "docs/index.md"]
    for page in reached:  # it grows
        links = re.findall(r"\]\(((?!https?:)[^)#]+\.md)(?:#[^)]*)?\)", PAGES[page])
        targets = [posixpath.normpath(posixpath.join(posixpath.dirname(page), link)) for link in links]
        reached += [target for target in dict.fromkeys(targets) if target in PAGES and target not in reached]
    written = {"docs/results/table.md", "docs/results/ablation.md"}  # by targets of make
    assert set(reached) - written == set(PAGES) - written


def test_the_table_lists_every_option_of_every_group():
    told = dict(re.findall(r"^\| `(\w+)` \| (`.*?`) \|", PAGES["docs/configuration.md"], re.MULTILINE))
    there = {group: sorted(names) for group, names in options([config_dir()]).items()}
    assert {group: sorted(re.findall(r"`([\w/]+)`", names)) for group, names in told.items()} == there


def schema(node=Config, prefix=""):
    """Dotted names of all fields that some option has, and of those whose entries are free (dictionaries)."""
    known, dicts = set(), set()
    options = [node]
    for option in options:  # it grows
        options += option.__subclasses__()
        for name, hint in get_type_hints(option).items():
            known.add(f"{prefix}{name}")
            for kind in (hint, *get_args(hint)):
                if get_origin(kind) is dict:
                    dicts.add(f"{prefix}{name}")
                elif is_dataclass(kind):
                    below, more = schema(kind, f"{prefix}{name}.")
                    known |= below
                    dicts |= more
    return known, dicts


def test_every_field_that_a_page_names_is_there():
    known, dicts = schema()
    groups = {name.partition(".")[0] for name in known if "." in name}
    wrong = []
    for page, text in PAGES.items():
        for name in re.findall(r"`'?\+?([a-z_]+(?:\.[a-z_]+)+)(?:=[^`]*)?`", text):
            first, last = name.partition(".")[0], name.rpartition(".")[2]
            there = name in known or any(name.startswith(f"{place}.") for place in dicts)
            if first in groups and last not in ("py", "md", "yaml", "json") and not there:
                wrong.append(f"{page}: {name}")
    assert not wrong, "\n".join(wrong)


def anchors(text):
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    wrong = []
    for link in re.findall(r"\]\(((?!https?:)[^)]+)\)", PAGES[page]):
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            wrong.append(link)
    assert not wrong, wrong


@pytest.mark.parametrize("page", PAGES)
def test_every_path_that_a_page_names_is_there(page):
    named = re.findall(r"`((?:collab|conf|tests|benchmarks)/[\w./-]*)`", PAGES[page])
    made = ("benchmarks/.envs/", "benchmarks/gpu.json")
    assert [path for path in named if path not in made and not (ROOT / path).exists()] == []


def test_the_goal_shown_is_one(tmp_path):
    (line,) = re.findall(r"^```json\n(.*)\n```$", PAGES["docs/data.md"], re.MULTILINE)
    file = tmp_path / "goals.jsonl"
    file.write_text(line, encoding="utf-8")
    (goal,) = load_goals(file, "train")
    assert goal.id == "bench"
