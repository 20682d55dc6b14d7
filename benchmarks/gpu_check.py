"""Everything that only a GPU can prove, in one command of at most ten minutes.

    python benchmarks/gpu_check.py                       # all parts, on the GPU; writes benchmarks/gpu.json
    python benchmarks/gpu_check.py --only train,engine-8b
    python benchmarks/gpu_check.py --device cpu          # a rehearsal with tiny models
    python benchmarks/gpu_check.py --collect DIR         # where there is a package registry: wheels for a bare image
    python benchmarks/gpu_check.py --site DIR            # with those wheels, beside the image's own packages

Each part is a process of its own with a time limit. What it measures is printed as it goes and kept when it fails or is
stopped. A part that the time does not suffice for is skipped. The exit status is 1 if a part failed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_process import ROOT, Check, Child, Figure, what

FILE = ROOT / "benchmarks" / "gpu.json"
PAGE = ROOT / "docs" / "results" / "gpu.md"
LEAST = 20.0  # seconds; with less no part is started
_RESERVE = 3.0  # seconds for the end
_TAIL = 25  # lines of the log of a part that failed


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        what: For the table.
        seconds: Its limit.
        target: Of the function, as `module:function`.
    """

    what: str
    seconds: float
    target: str


def _part(name: str, seconds: float, what: str) -> Part:
    return Part(what, seconds, f"benchmarks.gpu_parts:{name}")


PREPARE = _part("prepare", 100, "device, versions, default model")
PARTS: dict[str, Part] = {  # the most telling first
    "environment": _part("environment", 60, "requirements, imports, speed of the device"),
    "tests": _part("gpu_tests", 140, "the tests marked gpu"),
    "train": _part("train", 130, "quick start in small, and losses against the CPU's"),
    "losses": _part("losses", 60, "GRPO's loss on fixed replies against the CPU's"),
    "engine-135m": _part("engine_135m", 80, "tokens/s, 135M"),
    "engine-8b": _part("engine_8b", 100, "tokens/s, 8B of random weights"),
    "update-8b": _part("update_8b", 70, "LoRA update, 8B of random weights"),
    "strategies": _part("strategies", 120, "DDP and FSDP, killed and resumed"),
    "memory": _part("memory", 100, "memory at 8B against docs/scaling.md"),
    "rollout": _part("rollout", 60, "a rollout step, 8B of random weights"),
    "update-0.5b": _part("update_05b", 50, "LoRA update, 0.5B of random weights"),
    "engine-0.5b": _part("engine_05b", 60, "tokens/s, 0.5B of random weights"),
    "engine-1.5b": _part("engine_15b", 60, "tokens/s, 1.5B of random weights"),
    "vllm": _part("vllm", 150, "a vLLM server on the GPU"),
}


@dataclass
class Outcome:
    """What came of a part.

    Attributes:
        name: Of the part.
        state: passed | failed | stopped (at its limit) | skipped.
        figures: What it measured until its end.
        seconds: That it took.
        reason: Why it did not pass.
        log: The end of what it printed, unless it passed.
    """

    name: str
    state: str
    figures: list[Figure] = field(default_factory=list)
    seconds: float = 0.0
    reason: str = ""
    log: str = ""


def run_part(name: str, part: Part, limit: float, check: Check) -> Outcome:
    """Run a part in a process of its own and print its figures as they come."""
    lines, log = check.folder / f"part-{name}.jsonl", check.folder / f"part-{name}.log"
    lines.touch()
    log.touch()
    setting = json.dumps(asdict(check))
    command = ["benchmarks/gpu_check.py", "--part", part.target, "--setting", setting, "--lines", str(lines)]
    started = time.monotonic()
    child = Child(
        command, log, work=(lambda: child_main(part.target, check, lines)) if check.fork else None, group=True
    )
    outcome, code, read = Outcome(name, "passed"), None, 0
    try:
        while True:
            code = child.poll()
            late = time.monotonic() - started > limit
            whole = lines.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()  # the last may be half written
            for line in whole[read:]:
                outcome.figures.append(Figure(**json.loads(line)))
                print(shown(name, outcome.figures[-1]), flush=True)
            read = len(whole)
            if code is not None or late:
                break
            time.sleep(0.1)
    finally:
        child.kill()
    outcome.seconds = time.monotonic() - started
    wrong = [figure.name for figure in outcome.figures if figure.ok is False]
    if code is None:
        outcome.state, outcome.reason = "stopped", f"at its limit of {limit:.0f} s"
    elif code:
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        outcome.state, outcome.reason = "failed", f"ended with {code}: {' '.join(last)[:300]}"
    elif wrong:
        outcome.state, outcome.reason = "failed", "; ".join(wrong)
    if outcome.state != "passed":
        outcome.log = "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL:])
        print(f"{name}: {outcome.state}: {outcome.reason}\n{outcome.log}", flush=True)
    return outcome


def child_main(target: str, check: Check, lines: Path) -> None:
    """The life of a part's process."""
    module, _, function = target.partition(":")
    with lines.open("a", encoding="utf-8") as file:
        for figure in getattr(importlib.import_module(module), function)(check):
            file.write(json.dumps(asdict(figure)) + "\n")
            file.flush()


def shown(part: str, figure: Figure) -> str:
    """A figure in one line."""
    verdict = {None: "", True: "  ok", False: "  FAILED"}[figure.ok]
    note = f"  ({figure.note})" if figure.note else ""
    return f"{part}: {figure.name}: {figure.text()}{verdict}{note}"


def run_all(
    parts: Mapping[str, Part], check: Check, minutes: float, out: Path, typed: str, patience: float
) -> dict[str, Any]:
    """Run all parts within the time; what is then in `out`, which is written after each."""
    from benchmarks.steps import commit

    started = time.monotonic()
    end = started + 60 * minutes - _RESERVE
    outcomes: list[Outcome] = []
    found: dict[str, Any] = {}
    for name, part in {"prepare": PREPARE, **parts}.items():
        left, limit = end - time.monotonic(), part.seconds * patience
        if left < min(LEAST, limit):
            outcomes.append(Outcome(name, "skipped", reason="no time was left"))
            print(f"{name}: skipped: no time was left", flush=True)
        else:
            print(f"-- {name}: {part.what}; at most {min(limit, left):.0f} s", flush=True)
            try:
                outcomes.append(run_part(name, part, min(limit, left), check))
            except Exception as error:  # of this process; the other parts are to run all the same
                outcomes.append(Outcome(name, "failed", reason=what(error)))
                print(f"{name}: failed: {what(error)}", flush=True)
        os.environ["COLLAB_CACHE"] = str(check.folder / "cache")  # what `prepare` has made
        facts = {figure.name: figure.text() for figure in outcomes[0].figures}
        found = {"machine": facts, "commit": commit(), "command": typed, "rehearsal": check.tiny}
        found |= {"seconds": time.monotonic() - started, "parts": [asdict(outcome) for outcome in outcomes]}
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def table(found: Mapping[str, Any]) -> str:
    """What gpu.json holds, in Markdown."""
    rows = ["| part | figure | value | check |", "|---|---|---:|---|"]
    for part in found["parts"]:
        ended = f"{part['state']}, {part['seconds']:.0f} s"
        rows.append(f"| **{part['name']}** | {part['reason'].replace('|', '/')} | {ended} | |")
        for line in part["figures"]:
            figure = Figure(**line)
            verdict = {None: "", True: "ok", False: "**failed**"}[figure.ok]
            told = "; ".join(text for text in (verdict, figure.note.replace("|", "/")) if text)
            rows.append(f"| | {figure.name} | {figure.text()} | {told} |")
    return "\n".join(rows)


def page(found: Mapping[str, Any]) -> str:
    """docs/results/gpu.md after a run on a GPU."""
    machine = ", ".join(f"{name} {value}" for name, value in found["machine"].items())
    head = f"`{found['command']}`, {found['seconds'] / 60:.1f} minutes. {machine}. Commit {found['commit']}."
    return f"# On a GPU\n\n{head}\n\n{table(found)}\n"


def main(argv: Sequence[str] | None = None, parts: Mapping[str, Part] = PARTS) -> int:
    """Run the check; the exit status."""
    args = _parser(parts).parse_args(argv)
    if args.part:
        child_main(args.part, Check(**json.loads(args.setting)), Path(args.lines))
        return 0
    if args.collect:
        from benchmarks.gpu_wheels import collect

        collect(Path(args.collect))
        return 0
    if args.page:
        PAGE.write_text(page(json.loads(Path(args.page).read_text(encoding="utf-8"))), encoding="utf-8")
        return 0
    chosen = {name: parts[name] for name in args.only} if args.only else parts
    before, scratch = dict(os.environ), Path(tempfile.mkdtemp(prefix="gpu-check-"))
    try:
        site = _use_site(Path(args.site), scratch) if args.site else []
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *site, *filter(None, [os.environ.get("PYTHONPATH")])])
        os.environ |= {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        check = Check(args.device, str(scratch), args.fork)
        if args.fork:
            sys.path[1:1] = site
            importlib.import_module("collab.app.build")
        typed = shlex.join(["python", "benchmarks/gpu_check.py", *(sys.argv[1:] if argv is None else argv)])
        out = args.out or (scratch / "rehearsal.json" if check.tiny else FILE)
        found = run_all(chosen, check, args.minutes, out, typed, args.patience)
    finally:
        os.environ.clear()
        os.environ |= before
        shutil.rmtree(scratch, ignore_errors=True)
    print(table(found))
    return int(any(part["state"] in ("failed", "stopped") for part in found["parts"]))


def _use_site(site: Path, scratch: Path) -> list[str]:
    """Unpack the wheels of `--site`; what goes on PYTHONPATH."""
    from benchmarks.gpu_wheels import TOKENIZER, unpack

    for problem in unpack(site, scratch / "site"):
        print(f"--site: {problem}", flush=True)
    for folder in site.rglob(TOKENIZER):
        os.environ["GPU_CHECK_TOKENIZER"] = str(folder.resolve())
    return [str(scratch / "site")]


def _parser(parts: Mapping[str, Part]) -> argparse.ArgumentParser:
    def names(text: str) -> list[str]:
        if unknown := [name for name in text.split(",") if name not in parts]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: no such part. Parts: {', '.join(parts)}")
        return text.split(",")

    listed = "\n".join(f"  {name:12} {part.what}; at most {part.seconds:.0f} s" for name, part in parts.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nparts:\n{listed}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu is a rehearsal with tiny models")
    parser.add_argument("--only", type=names, metavar="PART,PART", help="run these parts alone")
    patience = "factor of the parts' limits, for a machine that does other work too; 1 if left out"
    parser.add_argument("--patience", type=float, default=1, metavar="X", help=patience)
    parser.add_argument("--minutes", type=float, default=10, help="for all; 10 if left out")
    out = "where the figures go; if left out, benchmarks/gpu.json, and nowhere on a CPU"
    parser.add_argument("--out", type=Path, metavar="FILE", help=out)
    parser.add_argument("--site", metavar="DIR", help="parts that --collect made, for packages that are not installed")
    parser.add_argument("--collect", metavar="DIR", help="gather the wheels that a bare image lacks, and end")
    parser.add_argument("--page", metavar="FILE", help="make docs/results/gpu.md from a gpu.json, and end")
    parser.add_argument("--fork", action="store_true", help="on a CPU: parts are forks, which saves their imports")
    for internal in ("--part", "--setting", "--lines"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that parts are ended and the scratch is removed
    sys.exit(main())
