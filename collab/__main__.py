"""The console command: `collab COMMAND ...`; `COMMANDS` has all commands."""

from __future__ import annotations

import difflib
import os
import sys

from collab.app.completion import FLAGS, complete
from collab.util.errors import BadInput

COMMANDS = {
    "train": "train a policy and compare it with its base",
    "evaluate": "compare policies on the same goals",
    "synthesize": "make conversations to learn from",
    "chat": "talk to a policy in the terminal, or with --web to two in the browser",
    "study": "people write with assistants, blind, and rate them: collab study serve FILE",
    "report": "write one page about a run: collab report RUN [RUN2]",
    "workspace": "save a W&B workspace for these metrics: collab workspace ENTITY/PROJECT",
    "merge": "put several seeds in one table",
    "simulator-report": "say how human simulated users are",
    "judge-report": "say how far judges agree, and what moves their scores",
    "estimate": "say what hosted models cost, or a step on a cluster: collab estimate COMMAND ...",
}
_HYDRA = ("train", "evaluate", "synthesize", "simulator-report", "judge-report")
_AGAIN = "COLLAB_COMMAND"  # the command, for processes that Lightning starts for further devices with overrides only
USAGE = "\n".join(
    (
        "Train language models to collaborate over many turns.",
        "",
        "  collab COMMAND [experiment=NAME] [group=option ...] [field=value ...]",
        "",
        *(f"  {name:<16} {what}" for name, what in COMMANDS.items()),
        "",
        "`collab COMMAND --help` lists the options of a command.",
        'Completion by the Tab key: eval "$(collab --shell-completion install=bash)"; also zsh, fish.',
    )
)


def main() -> None:
    """Run the command that `sys.argv` names; leaves the process by SystemExit."""
    again = os.environ.get(_AGAIN)
    if again and "LOCAL_RANK" in os.environ and (sys.argv[1:2] or [""])[0] not in COMMANDS:
        sys.argv.insert(1, again)
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h") or (name == "estimate" and {"--help", "-h"} & set(rest)):
        print(USAGE)
        return
    if name in FLAGS:
        try:
            complete(rest, COMMANDS, _HYDRA)
        except BadInput as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        return
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        print(f"error: there is no command {name}.{hint} Commands: {', '.join(COMMANDS)}.", file=sys.stderr)
        sys.exit(2)
    if name == "study":
        from collab.study.main import main as study

        sys.exit(study(rest))
    if name == "chat" and "--web" in rest:
        from collab.study.main import chat as web

        sys.exit(web([argument for argument in rest if argument != "--web"]))
    if name == "chat":
        from collab.app.chat import main as chat

        sys.exit(chat(rest))
    if name == "report":
        from collab.reports.report import main as report

        sys.exit(report(rest))
    if name == "workspace":
        from collab.app.workspace import main as workspace

        sys.exit(workspace(rest))
    if name == "merge":
        from collab.reports.merge import main as merge

        sys.exit(merge(rest))
    if name == "estimate":
        name, rest = (rest[0], rest[1:]) if rest and rest[0] in _HYDRA else ("train", rest)
        rest = [*rest, "dry_run=true"]
    os.environ[_AGAIN] = name
    sys.argv[1:] = rest
    from collab.app.cli import main as run

    run(name)


if __name__ == "__main__":
    main()
