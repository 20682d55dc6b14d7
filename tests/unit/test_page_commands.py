"""Every command of the README and of the pages: its arguments are parsed or composed here, or it is in `WHY_NOT`.

Nothing is run, so no model is loaded. What programs print as their own examples, `tests/unit/test_config.py` composes.
"""

import argparse
import importlib
import os
import re
import shlex
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest
from composing import load_config

from collab.__main__ import COMMANDS
from collab.app import chat
from collab.config.checks import check
from collab.study import main as study

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
COMPOSED = ("train", "evaluate", "synthesize", "simulator-report", "judge-report", "estimate")
WHY_NOT = {  # first words of a command -> why it is not tried here
    "PYTHONPATH=. python -m collab": "tests/integration/test_adding.py writes the page's files and runs it",
    "IMAGE_PYTHON=": "it is itself a run of tests, in an environment that the lines before it make",
    "python3.12 -m venv": "makes an environment",
    "image/bin/pip install": "fills that environment",
    "python -c": "tests/integration/test_smollm2.py calls the function",
    "python -m vllm": "vLLM's own program: tests/real_vllm starts it with these arguments",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve": "vLLM's own program: tests/real_vllm starts it",
    "CUDA_VISIBLE_DEVICES=": "two of vLLM's own program on GPUs; tests/real_vllm starts two on a CPU",
    "export VLLM_ALLOW_RUNTIME_LORA_UPDATING": "for those two",
    "flags=": "for those two",
    "mkdir -p": "a standard tool",
    "docker": "it needs Docker's daemon; tests/unit/test_package_files.py reads the Dockerfile",
    "pip download": "fetches the official package, of which the repository has nothing",
    "wandb": "W&B's own program: it needs an account",
    "export OPENAI_API_KEY": "a key that is not there",
    "head -n": "a standard tool",
    'eval "$(collab --shell-completion': "tests/integration/test_completion.py has bash read it",
    "collab --shell-completion install=fish": "tests/integration/test_completion.py asks for it",
}
# Their commands have launchers and shell variables: tests/integration/test_scaling.py has bash expand them.
SCRIPTS = ROOT / "docs" / "scaling.md"


def commands() -> list[str]:
    """Each command once: the lines of shell blocks, and code within a line that begins as a command does."""
    found: dict[str, None] = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(r"^```(?:sh|bash)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        if page != SCRIPTS:
            lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
            found |= dict.fromkeys(line.strip() for line in lines if line.strip() and not line.startswith("#"))
        prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
        code = (" ".join(inline.split()) for inline in re.findall(r"`([^`]+)`", prose))
        found |= dict.fromkeys(line for line in code if re.match(r"(make|collab|python|torchrun|pip) \S", line))
    return list(found)


class Parsed(Exception):
    """Arguments were parsed; the program itself does not go on."""


@pytest.fixture(autouse=True)
def parsed_only(monkeypatch):
    real = argparse.ArgumentParser.parse_args

    def parse_args(self, *arguments, **named):
        real(self, *arguments, **named)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)


def test_what_is_not_tried_is_on_a_page():
    assert [start for start in WHY_NOT if not any(command.startswith(start) for command in commands())] == []


@pytest.mark.parametrize("command", [one for one in commands() if not one.startswith(tuple(WHY_NOT))])
def test_a_command_is_understood(command, tmp_path, monkeypatch):
    understood(shlex.split(command, comments=True), tmp_path, monkeypatch)


def understood(words, tmp_path, monkeypatch):
    """Parse a command; an error is raised where it does not fit."""
    if "&&" in words:
        place = words.index("&&")
        understood(words[:place], tmp_path, monkeypatch)
        understood(words[place + 1 :], tmp_path, monkeypatch)
        return
    program, *rest = words
    if program == "torchrun":
        return understood(["python", *(word for word in rest if not word.startswith("--"))], tmp_path, monkeypatch)
    if program == "python" and rest[0] == "-m":
        rest = [f"{rest[1].replace('.', '/')}.py", *rest[2:]] if rest[1] != "collab" else rest
        if rest[0] == "-m":
            return understood(["collab", *rest[2:]], tmp_path, monkeypatch)
    if program == "source":
        return None
    if program == "pip":
        return check_pip(rest)
    if program == "make":
        return check_make(rest)
    if program == "collab":
        return check_collab(rest, tmp_path, monkeypatch)
    assert program == "python", f"{program}: check it here, or say in WHY_NOT why not"
    if rest[0] in ("train.py", "evaluate.py"):
        return check_collab([rest[0].removesuffix(".py"), *rest[1:]], tmp_path, monkeypatch)
    return check_script(rest)


def check_collab(words, tmp_path, monkeypatch):
    command, *rest = words
    assert command in (*COMMANDS, "COMMAND")
    rest = [word for word in rest if word != "--web"]
    if not rest or {"--help", "--cfg"} & set(rest):
        return
    if command in COMPOSED:
        compose(command, rest, tmp_path, monkeypatch)
    elif command == "chat":
        chat.parse(rest)
    elif command == "study":
        study.parse(rest)
    else:
        module = {
            "report": "collab.reports.report",
            "merge": "collab.reports.merge",
            "workspace": "collab.app.workspace",
        }
        with pytest.raises(Parsed):
            importlib.import_module(module[command]).main(rest)


def compose(command, arguments, tmp_path, monkeypatch):
    if "package://" in " ".join(arguments):
        stand_in(tmp_path, monkeypatch)
    if command == "estimate":
        command = arguments.pop(0) if arguments[0] in COMPOSED else "train"
    sweep = "-m" in arguments
    overrides = [text.split(",")[0] if sweep else text for text in arguments if text != "-m"]
    config = load_config(command, overrides)
    if "package://" in " ".join(arguments):
        check(config)
        assert [config.task.system_prompt, config.judge.extract_prompt, config.user.prompt] == list(PROMPTS.values())


def check_script(words):
    """A script of benchmarks/ is there, and has each option, itself or in the file that it takes its parser from."""
    script, *rest = words
    source = (ROOT / script).read_text(encoding="utf-8")
    for module in re.findall(r"^from benchmarks\.(\w+) import .*\bparser\b", source, re.MULTILINE):
        source += (ROOT / "benchmarks" / f"{module}.py").read_text(encoding="utf-8")
    for word in rest:
        assert not word.startswith("--") or f'"{word}"' in source, f"{script} has no {word}"


def check_make(words):
    """The target is there; what it starts is a script with these options."""
    # Not the variables of the make that these tests may run in, such as ARGS.
    environment = {name: value for name, value in os.environ.items() if not re.match(r"MAKE|MFLAGS|ARGS$", name)}
    done = subprocess.run(["make", "--dry-run", *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        if found := re.search(r"\bpython3? (benchmarks/\w+\.py.*)", line):
            check_script(shlex.split(found[1]))


def check_pip(words):
    """The extras that it names are there."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    for extra in re.findall(r"collab-llm\[(\w+)\]", " ".join(words)):
        assert extra in setup["options.extras_require"]


PROMPTS = {  # file of the official package -> our words
    "system_prompt.txt": "Help and ask.",
    "extract_multiturn_completion.txt": "Find the {extract_type} in {chat_history}.",
    "user_simulator.txt": "You want {single_turn_prompt}, and this was said: {chat_history}",
}


def stand_in(folder, monkeypatch):
    """A package of the official one's name, first on the path."""
    prompts = folder / "collabllm" / "prompts"
    prompts.mkdir(parents=True)
    (folder / "collabllm" / "__init__.py").touch()
    for name, text in PROMPTS.items():
        (prompts / name).write_text(text)
    monkeypatch.syspath_prepend(folder)


def test_no_reason_is_left_over():
    assert [start for start in WHY_NOT if not any(line.startswith(start) for line in commands())] == []


@pytest.mark.parametrize(
    "command",
    [
        "python train.py experiment=doc_edit sampler.windw=2",
        "collab simulator-report report.chat=chats.jsonl",
        "collab chat policy=base temprature=0",
        "collab study serv study.yaml",
        "collab report RUN --out page.html --to page.html",
        "make tables",
        "make showcase MODEL=m ARGS='--sedes 1'",
        "python benchmarks/table.py --dryrun",
        "python benchmarks/tabel.py",
        "pip install 'collab-llm[stduy]'",
        "collab trian experiment=doc_edit",
    ],
)
def test_a_wrong_command_is_noticed(command, tmp_path, monkeypatch):
    with pytest.raises((AssertionError, ValueError, OSError, SystemExit)):
        understood(shlex.split(command), tmp_path, monkeypatch)
