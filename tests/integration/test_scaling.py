"""docs/scaling.md: its scripts are bash, and every command in them composes, as SLURM and torchrun would start it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from composing import load_config
from hydra._internal.utils import get_args_parser
from omegaconf import OmegaConf

from collab.app import build
from collab.app.cli import check_sweep, stamp
from collab.config.register import register

TEXT = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
# Whoever starts a program says how; whatever else a block calls does nothing, and it can write nowhere.
STAND_INS = """
PATH=/nowhere
for name in python srun torchrun collab; do eval "$name() { printf '%s\\0' \\"\\$@\\"; printf '\\n'; }"; done
source() { :; }
cd() { :; }
cat() { printf HOST; }
command_not_found_handle() { :; }
set -r
"""


def commands() -> list[tuple[str, ...]]:
    """Program and arguments of every command in the text; what bash expands is expanded."""
    found = {}
    for block in BLOCKS:
        done = subprocess.run(
            ["bash", "-c", STAND_INS + block],
            env={"USER": "me", "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert not re.sub(r".*hostname.*|.*: restricted: cannot redirect output\n", "", done.stderr), done.stderr
        for line in done.stdout.splitlines():
            words = line.split("\0")[:-1]
            for place, word in enumerate(words):
                if program := re.fullmatch(r"(?:collab\.)?(train|evaluate|synthesize)(?:\.py)?", word):
                    found[program[1], *words[place + 1 :]] = None
                    break
    return list(found)


COMMANDS = commands()


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_a_script_is_bash(block):
    done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_there_are_scripts_and_commands_of_every_kind():
    scripts = [block for block in BLOCKS if block.startswith("#!/bin/bash\n#SBATCH")]
    assert len(scripts) >= 3
    whole = [re.sub(r"\\\n\s*", "", block) for block in BLOCKS]
    for launcher in (r"srun \S+ python", r"srun \S+ torchrun", "torchrun", "python"):
        assert any(re.search(rf"^{launcher} .*\btrain\.py ", block, re.MULTILINE) for block in whole), launcher
    entries = [entry for entry, *_ in COMMANDS]
    assert {"train", "evaluate"} <= set(entries) and entries.count("train") >= 10
    begins = r"(?:train|evaluate)\.py |\bcollab (?:estimate )?(?:train|evaluate|synthesize) "
    written = len(re.findall(begins, "".join(BLOCKS)))
    assert written >= len(COMMANDS) > written - 5  # none is overlooked; the same one may be written twice


@pytest.mark.parametrize(
    ("entry", "arguments"), [(entry, rest) for entry, *rest in COMMANDS], ids=[" ".join(found) for found in COMMANDS]
)
def test_a_command_composes(entry, arguments, monkeypatch):
    if "-m" not in arguments:
        load_config(entry, arguments)
        return
    monkeypatch.setattr(sys, "argv", [f"{entry}.py", *arguments])
    register()
    OmegaConf.register_new_resolver("stamp", stamp, replace=True)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert check_sweep(entry, get_args_parser().parse_intermixed_args()).num_jobs > 1


def test_within_slurm_torchrun_has_the_say(monkeypatch):
    for name, value in {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_NAME": "collab"}.items():
        monkeypatch.setenv(name, value)
    assert len(build.slurm_environment()) == 1  # else Lightning takes every process for the one that SLURM has started
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    assert build.slurm_environment() == []


def figures(row):
    """The figures of a row of the table of names, for 8B and 70B."""
    (cells,) = re.findall(rf"^\| {row} \|.*\| ([\d,]+) \| ([\d,]+) \|$", TEXT, re.MULTILINE)
    return [int(cell.replace(",", "")) for cell in cells]


@pytest.mark.parametrize(
    ("column", "width", "inner", "layers", "heads"), [(0, 4096, 14336, 32, 32), (1, 8192, 28672, 80, 64)]
)
def test_parameters_are_those_of_the_models(column, width, inner, layers, heads):
    import peft
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        lm = LlamaForCausalLM(config)
        one = sum(parameter.numel() for parameter in lm.model.layers[0].parameters())
        rest = sum(parameter.numel() for parameter in lm.parameters()) - one
        adapted = peft.get_peft_model(lm, peft.LoraConfig(r=32, target_modules="all-linear"))
    adapter = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert figures("P")[column] == layers * one + rest
    assert figures("A")[column] == layers * adapter
    assert figures("k")[column] == 2 * layers * 8 * config.head_dim * 2
