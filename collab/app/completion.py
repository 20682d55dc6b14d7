"""Completion of the console command by Hydra's own: `collab --shell-completion install=bash`, zsh or fish.

The script that Hydra prints asks the program at each press of Tab. Hydra knows no commands, so they are completed here,
and the options of groups; all else is completed by Hydra.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterable, Sequence

from collab.app.compose import options
from collab.util.errors import BadInput
from collab.util.paths import config_dir

FLAGS = ("-sc", "--shell-completion")
_SHELLS = ("bash", "zsh", "fish")
_ZSH = "autoload -Uz compinit bashcompinit && compinit && bashcompinit"  # Hydra's script for zsh is that for bash


def complete(arguments: Sequence[str], commands: Iterable[str], with_overrides: Sequence[str]) -> None:
    """Print a script for a shell, or what may stand at the end of the line in `COMP_LINE`.

    Args:
        arguments: After the flag.
        commands: Of the console command.
        with_overrides: Those of them that take overrides.

    Raises:
        BadInput: The arguments are not install=SHELL, uninstall=SHELL or query=SHELL.
    """
    what, _, shell = " ".join(arguments).partition("=")
    if what not in ("install", "uninstall", "query") or shell not in _SHELLS:
        raise BadInput(
            f"--shell-completion {' '.join(arguments)}: write install=SHELL or uninstall=SHELL, SHELL being bash, zsh "
            'or fish, and let the shell read what is printed, as in eval "$(collab --shell-completion install=bash)".'
        )
    if what != "query":
        if shell == "zsh" and what == "install":
            print(_ZSH)
        print(_by_hydra("train", f"{what}={shell}"), end="")
        return
    print("\n".join(_choices(os.environ.get("COMP_LINE", ""), shell, commands, with_overrides)))


def _choices(line: str, shell: str, commands: Iterable[str], with_overrides: Sequence[str]) -> list[str]:
    """What may stand at the end of the line: a command, an option of a group, or else what Hydra says."""
    _, *words = line.split() or [""]
    begun = "" if not words or line[-1] == " " else words.pop()
    if not words:
        return [name for name in commands if name.startswith(begun)]
    if words == ["estimate"] and begun in {name[:n] for name in with_overrides for n in range(1, len(name) + 1)}:
        return [name for name in with_overrides if name.startswith(begun)]
    if words[0] == "estimate":
        words = words[1:] if words[1:2] and words[1] in with_overrides else ["train", *words[1:]]
    if words[0] not in with_overrides:
        return []  # the shell completes files
    group, equals, _ = begun.partition("=")
    # Hydra names neither nested options (paper/doc_edit), nor leaves the nodes of the schema out.
    if equals and (names := options([config_dir()]).get(group.lstrip("+").partition("@")[0])):
        return [word for word in (f"{group}={name}" for name in names) if word.startswith(begun)]
    os.environ["COMP_LINE"] = " ".join(["collab", *words[1:], begun])
    return _by_hydra(words[0], f"query={shell}").split()


def _by_hydra(entry: str, asked: str) -> str:
    from collab.app.cli import main

    sys.argv = ["collab", FLAGS[1], asked]  # the name of the program in the script
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main(entry)
    return printed.getvalue()
