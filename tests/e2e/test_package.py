"""The package: `python -m build` makes an sdist, and of that a wheel, which trains where nothing else of this is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

import collab

ROOT = Path(__file__).parents[2]
FILES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE")
PACKAGES = ("collab", "conf")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(*command: object, cwd: Path) -> str:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of a copy, since setuptools leaves files beside what it builds."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("source")
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "build", "--no-isolation", cwd=folder)
    assert (folder / "dist" / f"collab_llm-{collab.__version__}.tar.gz").is_file()
    (made,) = (folder / "dist").glob("*.whl")
    return made


def test_the_wheel_has_every_file_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        packed = {name for name in file.namelist() if ".dist-info/" not in name}
    there = {path.relative_to(ROOT) for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file()}
    wanted = {path.as_posix() for path in there if "__pycache__" not in path.parts}
    assert packed == {f"collab/{name}" if name.startswith("conf/") else name for name in wanted}


def test_the_wheel_trains_in_an_empty_environment(wheel: Path, letters_model: Path, tmp_path: Path) -> None:
    """Empty but for the dependencies: those of this environment, whose own `collab` comes later on the path."""
    venv.create(tmp_path / "empty", with_pip=False)
    python, elsewhere = tmp_path / "empty" / "bin" / "python", tmp_path / "elsewhere"
    elsewhere.mkdir()
    installed = ("install", "-q", "--no-deps", "--no-index", wheel)
    run(sys.executable, "-m", "pip", "--python", python, *installed, cwd=elsewhere)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])", cwd=elsewhere).strip())
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    found = run(python, "-c", "import collab; print(collab.__file__)", cwd=elsewhere).strip()
    assert Path(found) == site / "collab" / "__init__.py"
    typed = (
        *("experiment=doc_edit", f"model.path={letters_model}", "output_dir=run", "precision=fp32", "logger=csv"),
        *("task.num_test=1", "evaluation.num_conversations=1", "task.max_turns=2"),
        *("trainer.max_steps=1", "trainer.goals_per_step=2", "sampler.group_size=2", "callbacks=quiet"),
    )
    run(tmp_path / "empty" / "bin" / "collab", "train", *typed, cwd=elsewhere)
    assert (elsewhere / "run" / "results.json").is_file()
    card = ModelCard.load(elsewhere / "run" / "policy" / "README.md")
    assert "collab train experiment=doc_edit" in card.text and card.data.eval_results
