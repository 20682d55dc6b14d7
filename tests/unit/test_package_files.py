"""Files that other tools read say the same as the rest of the repository: citation, hooks, containers."""

import configparser
import json
import re
from pathlib import Path

import pytest
import yaml

import collab

ROOT = Path(__file__).parents[2]


def loaded(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_citation_is_of_this_version():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    citation = loaded("CITATION.cff")
    assert citation["version"] == collab.__version__ and citation["license"] == setup["metadata"]["license"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (paper,) = citation["references"]
    assert paper["title"] in readme
    named = re.search(r"author\s*= \{(.*?)\}", readme, re.DOTALL)
    assert [author["family-names"] for author in paper["authors"]] == re.findall(r"(\w+), \w+", named[1])


def test_the_hooks_are_those_of_make():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    hooks = {hook["id"]: hook["entry"] for repo in loaded(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]}
    of_make = re.findall(r"\$\(BIN\)/((?:ruff|mypy) .*)$", makefile, re.MULTILINE)
    assert sorted(
        entry.replace(".venv/bin/", "").replace(" --force-exclude", "") for entry in hooks.values()
    ) == sorted(command.removesuffix(" .") for command in of_make)


@pytest.mark.parametrize("source", ["setup.cfg", "pyproject.toml", "README.md", "LICENSE", "collab", "conf"])
def test_the_image_gets_what_a_wheel_is_built_of(source):
    dockerfile = (ROOT / "docker/Dockerfile").read_text(encoding="utf-8")
    copied = [word for line in re.findall(r"^COPY (?!--)(.*) \S+$", dockerfile, re.MULTILINE) for word in line.split()]
    kept = re.findall(r"^!(.*)$", (ROOT / "docker/Dockerfile.dockerignore").read_text(encoding="utf-8"), re.MULTILINE)
    assert source in copied and set(copied) <= set(kept)
    assert all((ROOT / word).exists() for word in copied)


def test_the_devcontainer_runs_a_target_of_make():
    made = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text(encoding="utf-8"))["postCreateCommand"]
    assert re.search(rf"^{made.removeprefix('make ')}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
