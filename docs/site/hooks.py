"""What the site has beyond the pages of docs/: files of the root, generated lists, formulas, links out of docs/.

A page says where a list goes by a comment: `<!-- generated: command line -->`, `config` or `weights`, and
`<!-- api: MODULE -->` for what mkdocstrings reads off a module. On GitHub, where it is not replaced, the page points to
the command or the file that has the list.
"""

from __future__ import annotations

import contextlib
import dataclasses
import html
import importlib
import io
import json
import os
import posixpath
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints
from unittest import mock

import hydra
from hydra.core.config_store import ConfigStore
from latex2mathml.converter import convert
from omegaconf import OmegaConf

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
OF_THE_ROOT = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}  # file -> its page
_LINK = re.compile(r"(\[(?:[^][]|\[[^][]*\])*\])\(((?!\w+:|#|/)[^)\s]+)\)")
_MARK = re.compile(r"^<!-- (generated|api): (.*?) -->$", re.MULTILINE)


def on_config(config: Any) -> Any:
    """Add the pages of docs/results/ that the nav does not name: targets of make write some of them."""
    (results,) = (section["Results"] for section in config.nav if "Results" in section)
    named = {page for entry in results for page in entry.values()}
    folder = Path(config.docs_dir)
    found = sorted(path.relative_to(folder).as_posix() for path in (folder / "results").rglob("*.md"))
    results += [page for page in found if page not in named]
    return config


def on_files(files: Any, *, config: Any) -> Any:
    """Add the pages whose files are in the root of the repository."""
    for name, page in OF_THE_ROOT.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Mend links to files outside docs/ and put the generated lists in."""
    markdown = mend_links(markdown, page.file.src_uri, config.repo_url)

    def generated(found: re.Match[str]) -> str:
        kind, name = found.groups()
        return f"::: {name}" if kind == "api" else "\n".join(GENERATED[name]())

    return _MARK.sub(generated, markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Formulas as MathML, which browsers draw without a script."""

    def formula(found: re.Match[str]) -> str:
        tag, text = found.groups()
        return convert(html.unescape(text), display="block" if tag == "div" else "inline")

    content = re.sub(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', formula, content, flags=re.DOTALL)
    return re.sub(r"<table>.*?</table>", r'<div class="wide">\g<0></div>', content, flags=re.DOTALL)


def mend_links(markdown: str, page: str, repo_url: str | None) -> str:
    """Links that hold on GitHub, made to hold on the site.

    A file of the root that is a page is linked as one. Any other file outside docs/ is linked in the repository if
    `repo_url` is known, else it is named. What is not there is left as it is: MkDocs warns of it.

    Args:
        markdown: Text of the page.
        page: Path of the page below docs/.
        repo_url: Of mkdocs.yml.
    """
    source = next((name for name, made in OF_THE_ROOT.items() if made == page), f"docs/{page}")

    def mend(found: re.Match[str]) -> str:
        label, link = found.groups()
        name, _, anchor = link.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), name))
        if path.startswith("docs/") or path in OF_THE_ROOT:
            target = posixpath.relpath(OF_THE_ROOT.get(path, path.removeprefix("docs/")), posixpath.dirname(page) or ".")
            return f"{label}({target}{'#' if anchor else ''}{anchor})"
        if not (ROOT / path).exists():
            return found[0]
        if repo_url:
            return f"{label}({repo_url.rstrip('/')}/blob/HEAD/{path}{'#' if anchor else ''}{anchor})"
        text = label[1:-1]
        return text if path.endswith(text.strip("`")) else f"{text} (`{path}`)"

    return _LINK.sub(mend, markdown)
