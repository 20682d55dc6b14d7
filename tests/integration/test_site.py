"""The documentation site: a dead link stops the build, links out of docs/ hold, generated lists are whole.

`make site`, a step of CI, builds the whole site. Here is what needs no whole build.
"""

import ast
import dataclasses
import importlib.util
import logging
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from collab.callbacks.rollout_metrics import conversation_values, group_values
from collab.config import algorithms, schema
from collab.reports.sections import PLOTS, SUMMARIES
from collab.simulation.sampler import LostCounts

pytest.importorskip("mkdocs", reason="mkdocs comes with the extra `site`")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[there](other.md#part), [web](https://example.org)", ""),
        ("[gone](nowhere.md)", "nowhere.md"),
        ("[gone](other.md#nowhere)", "nowhere"),
        ("![gone](nowhere.svg)", "nowhere.svg"),
        ("[absolute](/other.md)", "/other.md"),
        ("[gone](../nowhere.py)", "nowhere.py"),
    ],
)
def test_a_dead_link_stops_the_build(text, told, tmp_path, caplog):
    from mkdocs.commands.build import build
    from mkdocs.config import load_config
    from mkdocs.exceptions import Abort

    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text(f"# Home\n\n{text}\n")
    (docs / "other.md").write_text("# Other\n\n## Part\n")
    small = {
        "nav": ["index.md", "other.md"],
        "plugins": [],
        "hooks": [],
        "extra_css": [],
        "watch": [],
        "theme": "mkdocs",
    }
    config = load_config(  # validation and anchors as the site has them
        str(ROOT / "mkdocs.yml"), docs_dir=str(docs), site_dir=str(tmp_path / "site"), strict=True, **small
    )
    caplog.set_level(logging.INFO, "mkdocs")
    if not told:
        build(config)
        assert (tmp_path / "site" / "index.html").exists()
        return
    with pytest.raises(Abort):
        build(config)
    (problem,) = (record for record in caplog.records if record.levelno >= logging.WARNING)
    assert told in problem.getMessage()


@pytest.mark.parametrize(
    ("page", "link", "alone", "with_repository"),
    [
        ("data.md", "[tasks](tasks.md#x)", "[tasks](tasks.md#x)", None),
        ("reference/api.md", "[a](../python.md)", "[a](../python.md)", None),
        ("index.md", "[change](../CONTRIBUTING.md#tests)", "[change](contributing.md#tests)", None),
        ("method/official.md", "[c](../../CONTRIBUTING.md)", "[c](../contributing.md)", None),
        ("contributing.md", "[task](docs/new-task.md)", "[task](new-task.md)", None),
        ("contributing.md", "[log](CHANGELOG.md)", "[log](changelog.md)", None),
        ("data.md", "[train.py](../train.py)", "train.py", "[train.py](https://example.org/c/blob/HEAD/train.py)"),
        (
            "data.md",
            "[`collab/`](../collab/)",
            "`collab/` (`collab`)",
            "[`collab/`](https://example.org/c/blob/HEAD/collab)",
        ),
        ("data.md", "[it](../setup.cfg)", "it (`setup.cfg`)", "[it](https://example.org/c/blob/HEAD/setup.cfg)"),
        ("data.md", "[gone](../nowhere.py)", "[gone](../nowhere.py)", None),
        ("data.md", "[web](https://example.org/x.py) [here](#x)", "[web](https://example.org/x.py) [here](#x)", None),
    ],
)
def test_a_link_holds_on_the_site(page, link, alone, with_repository, hooks):
    assert hooks.mend_links(link, page, None) == alone
    assert hooks.mend_links(link, page, "https://example.org/c/") == (with_repository or alone)


def test_the_config_page_has_every_field(hooks):
    text = "\n".join(hooks.config_fields())
    fields = set(re.findall(r"^\| `(\S+)` \|", text, re.MULTILINE))
    sections = set(re.findall(r"`([\w.]+)`", "\n".join(re.findall(r"^##+ (.*)$", text, re.MULTILINE))))
    last = {name.rpartition(".")[2] for name in fields | sections}
    for cls in (*vars(schema).values(), *vars(algorithms).values()):
        if dataclasses.is_dataclass(cls):
            assert {each.name for each in dataclasses.fields(cls)} <= last | {"metrics", "tasks"}, cls  # as NAME
    assert {"sampler.window", "algorithm.gae_lambda", "user.patience", "user.endpoint.base_url"} <= fields
    (line,) = re.findall(r"^\| `sampler.num_samples` \|.*$", text, re.MULTILINE)
    assert "whole number, at least 1 | `1` | forward samples per candidate" in line


def test_a_command_shows_its_help(hooks):
    before = list(sys.argv)
    assert "--output FILE" in hooks.help_of("report") and "policy=base temperature=0" in hooks.help_of("chat")
    assert sys.argv == before


def test_every_weight_is_listed(hooks):
    rows = list(hooks.weights())
    assert "| `doc_edit` | `bleu` | 24 | `S(Extract(t), y_g)` of Eq. 3: sentence BLEU" in "\n".join(rows)
    assert sum("definitions=official" in row for row in rows) == 12


def test_formulas_are_mathml(hooks):
    found = hooks.on_page_content(r'<p><span class="arithmatex">\(x &lt; \pi_t\)</span></p>')
    assert found.startswith('<p><math xmlns="http://www.w3.org/1998/Math/MathML" display="inline">')
    assert "arithmatex" not in found


def test_results_that_are_written_later_are_in_the_nav(hooks, tmp_path):
    (tmp_path / "results").mkdir()
    for name in ("showcase", "table"):
        (tmp_path / "results" / f"{name}.md").touch()
    nav = [{"Home": "index.md"}, {"Results": [{"Showcase": "results/showcase.md"}]}]
    hooks.on_config(SimpleNamespace(nav=nav, docs_dir=str(tmp_path)))
    assert nav[1]["Results"] == [{"Showcase": "results/showcase.md"}, "results/table.md"]


def test_the_page_of_metrics_has_every_metric():
    text = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    told = {name.rpartition("/")[2] for name in re.findall(r"`([\w/]+)`", text)}
    logged = {*group_values([], {"token_penalty": 1.0}), *conversation_values([], ["token_penalty"])}
    logged |= {field.name for field in dataclasses.fields(LostCounts)}
    logged |= {name.rpartition("/")[2] for plots in PLOTS.values() for plot in plots for name in plot}
    logged |= {name.rpartition("/")[2] for name in SUMMARIES}
    for file in (ROOT / "collab" / "modules").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "_log":
                logged |= {keyword.arg for keyword in node.keywords if keyword.arg}
    of_parts = {"token_penalty", "token_penalty_spread"}  # NAME and NAME_spread; the site lists the names
    assert logged - of_parts - told - {"user_usd", "judge_usd"} == set()
