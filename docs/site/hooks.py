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
import inspect
import io
import json
import os
import posixpath
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints
from unittest import mock

import hydra
from hydra.core.config_store import ConfigStore
from latex2mathml.converter import convert
from mkdocs.structure.files import File
from omegaconf import MISSING, OmegaConf

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

    return re.sub(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', formula, content, flags=re.DOTALL)


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
            target = posixpath.relpath(
                OF_THE_ROOT.get(path, path.removeprefix("docs/")), posixpath.dirname(page) or "."
            )
            return f"{label}({target}{'#' if anchor else ''}{anchor})"
        if not (ROOT / path).exists():
            return found[0]
        if repo_url:
            return f"{label}({repo_url.rstrip('/')}/blob/HEAD/{path}{'#' if anchor else ''}{anchor})"
        text = label[1:-1]
        return text if path.endswith(text.strip("`")) else f"{text} (`{path}`)"

    return _LINK.sub(mend, markdown)


# --- generated lists ---------------------------------------------------------------------------------------------


def command_line() -> Iterator[str]:
    """A section for each command: what `--help` prints."""
    from collab.__main__ import COMMANDS

    for name, what in COMMANDS.items():
        yield from ("", f"## collab {name}", "", *_text(what[0].upper() + what[1:]), "", "```text")
        yield from help_of(name).splitlines()
        yield "```"


def help_of(command: str) -> str:
    """What `collab COMMAND --help` prints, as it stands at the moment."""
    from collab.__main__ import main

    printed = io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["collab", command, "--help"]),
        mock.patch.dict(os.environ, {"COLUMNS": "120"}),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        main()
    return printed.getvalue().strip()


def config_fields() -> Iterator[str]:
    """A table for each node of the config: field, type, default, meaning, all from the schema."""
    from collab.app.compose import compose
    from collab.config.register import register
    from collab.config.schema import Config
    from collab.util.paths import config_dir

    register()
    with hydra.initialize_config_dir(str(config_dir()), version_base=None):
        composed = compose("train", [], [])
    places = _places(Config)
    yield from _fields("Of the run", Config, "", composed, {})
    for place, (cls, others) in places.items():
        node = OmegaConf.select(composed, place) if "NAME" not in place else None
        names = [f"`{name}`" for name in (place, *others)]
        depth = "#" * min(2 + place.count("."), 3)
        options = _schemas(place)
        yield from _fields(", ".join(names), cls, place, None if options else node, {}, depth)
        inherited = {each.name: _default(each) for each in dataclasses.fields(cls)}
        for option, schema in options.items():
            if schema is not cls:
                yield from _fields(f"`{place}={option}`", schema, place, None, inherited, "###")


def _places(cls: type, above: str = "") -> dict[str, tuple[type, list[str]]]:
    """Place of each node below a dataclass -> the dataclass that is there, and the other places that have it too."""
    found: dict[str, tuple[type, list[str]]] = {}
    for name, hint in get_type_hints(cls).items():
        for kind in (hint, *get_args(hint)):
            if not dataclasses.is_dataclass(kind):
                continue
            place = f"{above}{name}" + (".NAME" if get_origin(hint) is dict else "")
            below = {place: (kind, [])}
            for each in (kind, *_schemas(place).values()):
                below |= _places(each, f"{place}.")
            for key, (node, more) in below.items():
                same = next((others for other, others in found.values() if other is node), None)
                if same is None:
                    found[key] = (node, list(more))
                else:
                    same += [each for each in (key, *more) if each not in found and each not in same]
    return found


def _schemas(group: str) -> dict[str, type]:
    """Options of a group that have a dataclass of their own."""
    names = ConfigStore.instance().repo.get(group, {})
    return {
        name.removeprefix("schema_").removesuffix(".yaml"): OmegaConf.get_type(node.node)
        for name, node in names.items()
        if name.startswith("schema_")
    }


def _fields(
    title: str, cls: type, place: str, node: Any, inherited: dict[str, Any], depth: str = "##"
) -> Iterator[str]:
    """The table of a dataclass, with the values of a composed node; inherited fields are left out if unchanged."""
    from collab.config.docs import field_docs
    from collab.config.fields import rule

    docs, hints = field_docs(cls), get_type_hints(cls)
    values = OmegaConf.to_container(node) if node is not None else {}
    rows = []
    for each in dataclasses.fields(cls):
        default = _default(each)
        kind = hints[each.name]
        nested = any(dataclasses.is_dataclass(part) for part in (kind, *get_args(kind)))
        if nested or (each.name in inherited and inherited[each.name] in (default, MISSING)):
            continue
        must = rule(each).removeprefix("a finite number")
        words = must.removeprefix("one of ") if must.startswith("one of ") else f"{_kind(kind)}, {must}".strip(", ")
        key = f"{place}.{each.name}" if place else each.name
        shown = _value(values.get(each.name, default))
        rows.append(f"| `{key}` | {_escaped(words)} | {shown} | {_escaped(docs.get(each.name, ''))} |")
    if rows:
        about = inspect.getdoc(cls) if cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}(") else ""
        yield from ("", f"{depth} {title}", "", *_text((about or "").partition("\n\n")[0].replace("\n", " ")), "")
        yield from ("| field | values | default | what it is |", "|---|---|---|---|", *rows)


def _default(each: dataclasses.Field[Any]) -> Any:
    return each.default_factory() if each.default_factory is not dataclasses.MISSING else each.default


def _kind(hint: Any) -> str:
    """A type as one would say it."""
    if hint is Any:
        return "any"
    if isinstance(hint, type):
        return {"str": "text", "bool": "true or false", "int": "whole number", "float": "number"}[hint.__name__]
    if type(None) in get_args(hint):
        return " or ".join("null" if part is type(None) else _kind(part) for part in get_args(hint))
    return {"list": "list", "dict": "names with values"}[hint.__origin__.__name__]


def _value(value: Any) -> str:
    if value in (MISSING, ""):
        return "set by the option" if value else "empty"
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False).replace('"', "")
    return f"`{text}`" if len(text) <= 60 else "set by the option"


def weights() -> Iterator[str]:
    """A table for each task and each definition: metric, weight in R*, what it measures."""
    yield from ("| task | metric | weight | what it measures |", "|---|---|---:|---|")
    for file in sorted((ROOT / "conf" / "task").glob("*.yaml")):
        yield from _weights(OmegaConf.to_container(OmegaConf.load(file)), "")
    official: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "definitions" / "official.yaml"))
    for name, task in official["tasks"].items():
        yield from _weights({"name": name, **task}, ", `definitions=official`")


def _weights(task: Any, definitions: str) -> Iterator[str]:
    for name, metric in task["metrics"].items():
        module, _, cls = metric["target"].rpartition(".")
        doc = inspect.getdoc(getattr(importlib.import_module(module), cls)) or ""
        line = doc.partition("\n\n")[0].replace("\n", " ").replace("|", "\\|").replace("R*", "R\\*")
        yield f"| `{task['name']}`{definitions} | `{name}` | {metric.get('weight', 1.0):g} | {line} |"


def _text(text: str) -> Iterable[str]:
    return (_escaped(text) + ("" if text.endswith(".") else "."), "") if text else ()


def _escaped(text: str) -> str:
    """A text as Markdown of a table's cell; what stands in backticks stays code."""
    parts = re.split(r"(`[^`]+`)", text)
    parts[::2] = (html.escape(re.sub(r"([\\*_{}\[\]|])", r"\\\1", part), quote=False) for part in parts[::2])
    return "".join(parts)


GENERATED: dict[str, Callable[[], Iterator[str]]] = {
    "command line": command_line,
    "config": config_fields,
    "weights": weights,
}
