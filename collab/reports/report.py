"""One page for a run, or for two: `collab report RUN [RUN2] [--output FILE]`.

The page is one HTML file with its style, its program and its data. It loads nothing, so it works without a network.
The data is JSON in a script element that browsers do not run. Every `<` in it is escaped, so no message can end that
element. The program puts texts into the page as text nodes. A content security policy with the hashes of style and
program keeps browsers from running or loading anything else.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import html
import os
import re
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from collab.reports.run_data import as_json, page_data, read_run
from collab.util.errors import BadInput
from collab.util.files import naming

PAGE, COMPARISON = "report.html", "comparison.html"  # in the folder of the (first) run


def render(data: Any) -> str:
    """The page that shows `data`, what `page_data` returns."""
    folder = files("collab.reports") / "page"
    page, style, script = (
        (folder / f"report.{kind}").read_text(encoding="utf-8").strip("\n") for kind in ("html", "css", "js")
    )
    parts = {
        "title": html.escape(data["title"]),
        "style": style,
        "style_hash": _hash(style),
        "script": script,
        "script_hash": _hash(script),
        "data": as_json(data),
    }
    # In one pass, so that what is put in is not searched for further places.
    return re.sub(rf"\{{({'|'.join(parts)})\}}", lambda place: parts[place[1]], page)


def _hash(text: str) -> str:
    """As a content security policy names an inline style or script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def write_report(folders: Sequence[Path], output: Path | None = None) -> Path:
    """Write the page of one run, or of two that are compared, and return its path.

    Args:
        folders: Of the runs.
        output: The file; None for `report.html` or `comparison.html` in the first folder.

    Raises:
        BadInput: A folder has no run, or a damaged one.
    """
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    page = render(page_data([read_run(folder, name) for folder, name in zip(folders, names, strict=True)]))
    path = output or folders[0] / (PAGE if len(folders) == 1 else COMPARISON)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            temporary.write_text(page, encoding="utf-8", errors="replace")  # a lone surrogate has no UTF-8
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="collab report",
        description="Write one HTML page about a run: the table, the curves and all conversations, as trees of "
        "candidates and futures and side by side. With two runs, the page compares them.",
        epilog="example: collab report outputs/doc_edit/2026-01-31_12-00-00-seed1",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="the folder of a run, or of two runs")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help=f"the page (default: RUN/{PAGE}, of two runs RUN/{COMPARISON})"
    )
    arguments = parser.parse_args(argv)
    try:
        if len(arguments.runs) > 2:
            raise BadInput(f"{len(arguments.runs)} runs were given, and a page compares two at most. Name one or two.")
        if len({folder.resolve() for folder in arguments.runs}) < len(arguments.runs):
            raise BadInput(f"{arguments.runs[0]} is given twice. Name one run, or two different ones.")
        path = write_report(arguments.runs, arguments.output)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename}: cannot be written ({error.strerror}). Name another --output.", file=sys.stderr)
        return 1
    print(f"report: {path.resolve().as_uri()} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0
