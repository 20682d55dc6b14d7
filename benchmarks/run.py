"""Speed and memory as ratios: ours and a peer on the same work, in turn, in one run; medians.

    python benchmarks/run.py                      # all rows that this machine can measure
    python benchmarks/run.py decode_vs_generate   # one
    python benchmarks/run.py decode_vs_generate decode_vs_floor --runs 5 --tokens 64 --requests 32

A row is printed as it is measured. `--write` puts what was measured into benchmarks/results.json, in place of older
figures of the same rows, and the table into docs/benchmarks.md; rows that were measured on a GPU are marked _gpu and
stand apart. Peers are installed from the package registry when a row first needs them, into benchmarks/.envs/: about
7 GB for all. TORCH_ARGS holds pip's options for torch, as in the Makefile. Measure on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import importlib
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.page import write
from benchmarks.rows import FOLDER, ROWS
from benchmarks.steps import commit

_OPTIONS = {
    "--runs": "counted runs of each side",
    "--requests": "sequences decoded at a time, in the decode rows",
    "--tokens": "new tokens of each, there; turns of forward samples have 48 at most",
    "--contexts": "contexts of the rows against the official package",
}
_DEFAULTS = {"runs": 3, "requests": 32, "tokens": 64, "contexts": 4}


def _parser() -> argparse.ArgumentParser:
    rows = "\n".join(f"  {name:30} {row.what}; ours / peer {row.wanted}" for name, row in ROWS.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nrows:\n{rows}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", help="rows to measure; all if none is named")
    for option, text in _OPTIONS.items():
        default = _DEFAULTS[option.removeprefix("--")]
        parser.add_argument(option, type=_count, default=default, metavar="N", help=f"{text}; {default} if left out")
    parser.add_argument(
        "--model",
        help="folder or Hugging Face id, or random-1b for a Llama of that size with random weights; "
        "SmolLM2-135M-Instruct if left out",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto is cuda where there is")
    parser.add_argument("--checkpointing", action="store_true", help="update rows: both sides recompute activations")
    parser.add_argument("--write", action="store_true", help="put the figures into results.json and docs/benchmarks.md")
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def command(row: str, args: argparse.Namespace) -> str:
    """What to type to measure a row again."""
    words = ["python benchmarks/run.py", row]
    words += [f"{option} {getattr(args, option.removeprefix('--'))}" for option in _OPTIONS]
    words += [f"--model {args.model}"] if args.model else []
    words += [f"--device {args.device}"] if args.device != "auto" else []
    words += ["--checkpointing"] if args.checkpointing else []
    return " ".join(words)


def main(argv: Sequence[str] | None = None, results: Path | None = None, docs: Path | None = None) -> int:
    """Measure, print and, if asked to, write; the exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    if unknown := [name for name in args.rows if name not in ROWS]:
        parser.error(f"{', '.join(unknown)}: no such row. Rows: {', '.join(ROWS)}.")

    import torch
    import transformers

    from benchmarks.measure import Setting, model_folder
    from benchmarks.peer import PeerFailed
    from collab.lm.device import resolve_device, resolve_dtype
    from collab.util.errors import BadInput
    from collab.util.quiet import quiet

    quiet()
    try:
        device = resolve_device(args.device)
        if elsewhere := [name for name in args.rows if device.type not in ROWS[name].devices]:
            where = ", ".join(f"{name} on {' or '.join(ROWS[name].devices)}" for name in elsewhere)
            raise BadInput(f"--device is {device.type}, and {where} alone. Choose another device or other rows.")
        dtype = resolve_dtype("auto", device)
        setting = Setting(
            model=model_folder(args.model),
            device=device,
            dtype=dtype,
            runs=args.runs,
            requests=args.requests,
            tokens=args.tokens,
            contexts=args.contexts,
            checkpointing=args.checkpointing,
        )
    except BadInput as error:
        parser.error(str(error))
    version = commit()
    place = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    machine = (
        f"{place}, {setting.named_dtype}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}{f', commit {version}' if version else ''}"
    )
    measured: list[dict[str, Any]] = []
    failed = False
    for name in args.rows or [name for name, row in ROWS.items() if device.type in row.devices]:
        row = ROWS[name]
        try:
            figures = getattr(importlib.import_module(f"benchmarks.{row.subject}"), name)(setting)
        except PeerFailed as error:
            print(f"{name}: not measured. {error}", flush=True)
            failed = True
            continue
        finally:
            setting.close()
        found = {
            "row": f"{name}_gpu" if device.type == "cuda" else name,
            "ours": figures.ours,
            "peer": figures.peer,
            "ratio": figures.ratio,
            "unit": row.unit,
            "runs": args.runs,
            "command": command(name, args),
            "ratios": list(figures.ratios),
            "wanted": row.wanted,
            "machine": machine,
        }
        measured.append(found)
        print(
            f"{name}: ours {figures.ours:.4g}, peer {figures.peer:.4g} {row.unit}, ratio {figures.ratio:.2f} "
            f"({min(figures.ratios):.2f} to {max(figures.ratios):.2f}), wanted {row.wanted}\n  {found['command']}",
            flush=True,
        )
        if args.write:
            write(measured, results or FOLDER / "results.json", docs or FOLDER.parent / "docs" / "benchmarks.md")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
