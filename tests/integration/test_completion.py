"""Completion of the console command: what is offered for a line, and the script for bash in a real bash."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from collab.__main__ import COMMANDS, main


def offered(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setattr(sys, "argv", ["collab", "-sc", "query=bash"])
    main()
    return capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("collab ", list(COMMANDS)),
        ("collab tr", ["train"]),
        ("collab nothing ", []),
        ("collab report ", []),  # the shell names files
        ("collab train experiment=paper/d", ["experiment=paper/doc_edit"]),
        ("collab train algorithm=gr", ["algorithm=grpo", "algorithm=grpo_small"]),
        ("collab evaluate seed=2 user=op", ["user=openai"]),
        ("collab evaluate +user@evaluation.users.llm=op", ["+user@evaluation.users.llm=openai"]),
        ("collab estimate eva", ["evaluate"]),
        ("collab estimate evaluate judge=cl", ["judge=claude"]),
        ("collab estimate judge=cl", ["judge=claude"]),
        ("collab train experiment=doc_edit sampler.w", ["sampler.window="]),
        ("collab judge-report judge=openai report.num", ["report.num_conversations="]),
    ],
)
def test_what_may_end_a_line(line, expected, monkeypatch, capsys):
    assert offered(line, monkeypatch, capsys) == expected


@pytest.mark.parametrize("arguments", [[], ["install"], ["install=tcsh"], ["install=bash", "twice"]])
def test_another_shell_is_refused(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["collab", "--shell-completion", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1 and "bash, zsh or fish" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("shell", "said"),
    [("zsh", "bashcompinit"), ("fish", "complete -c collab -x -a '(hydra_fish_completion)'")],
)
def test_the_script_of_another_shell(shell, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["collab", "-sc", f"install={shell}"])
    main()
    assert said in capsys.readouterr().out


_TAB = """
eval "$(collab --shell-completion install=bash)"
complete -p collab
tab() {
    COMP_LINE="$1" COMP_POINT=${#1}
    COMP_WORDS=($1) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    hydra_bash_completion
    echo "${COMPREPLY[@]}"
}
tab "collab eval"
tab "collab train experiment=doc_edit model=smol"
tab "collab train trainer.max_s"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes(tmp_path):
    program = tmp_path / "collab"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m collab "$@"\n')
    program.chmod(0o755)
    script = f'PATH="{tmp_path}:$PATH"\n{_TAB}'
    done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == [
        "complete -o default -o nospace -F hydra_bash_completion collab",
        "evaluate",
        "model=smollm2 model=smollm2_360m",
        "trainer.max_steps=",
    ], done.stderr
