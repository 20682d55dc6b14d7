"""The configuration is found in a clone and in an installed wheel, and every room is packaged."""

import configparser
from pathlib import Path

import pytest

from collab.util import paths
from collab.util.errors import BadInput

REPO = Path(__file__).resolve().parents[2]


def lay_out(root: Path, *folders: str) -> None:
    for folder in folders:
        (root / folder).mkdir(parents=True)
        (root / folder / "train.yaml").touch()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for site-packages, with the package in it."""
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "collab" / "util" / "paths.py"))
    return tmp_path


def test_this_clone() -> None:
    assert paths.config_dir() == REPO / "conf"


def test_wheel_prefers_its_own_conf_to_a_neighbour(site: Path) -> None:
    lay_out(site, "collab/conf", "conf")
    assert paths.config_dir() == site / "collab" / "conf"


def test_neighbour_without_our_files_is_not_taken(site: Path) -> None:
    (site / "conf").mkdir()
    with pytest.raises(BadInput, match="train.yaml"):
        paths.config_dir()


def test_every_room_is_packaged() -> None:
    setup = configparser.ConfigParser()
    setup.read(REPO / "setup.cfg")
    rooms = {".".join(found.parent.relative_to(REPO).parts) for found in (REPO / "collab").rglob("__init__.py")}
    assert set(setup["options"]["packages"].split()) == rooms | {"collab.conf"}
