"""`push_to_hub`: what is refused before the work, and what arrives, at a server on loopback in place of the hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import TOKEN, HubServer, use_hub
from huggingface_hub import constants

from collab.util.errors import BadInput
from collab.util.hub import check_push, push


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        use_hub(server, monkeypatch)
        yield server


@pytest.mark.parametrize("private", [True, False])
def test_a_folder_arrives_as_it_is_and_is_private_if_that_is_said(
    hub: HubServer, tmp_path: Path, private: bool
) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "weights.bin").write_bytes(bytes(range(256)))
    (tmp_path / "README.md").write_text("Grüße")
    check_push("lab/policy", "model", private)
    assert hub.repos == {}  # the check makes nothing
    assert push(tmp_path, "lab/policy", "model", private) == f"{hub.url}/lab/policy"
    (repo,) = hub.repos.items()
    assert repo == (
        "models/lab/policy",
        {"private": private, "files": {"inner/weights.bin": bytes(range(256)), "README.md": "Grüße".encode()}},
    )
    check_push("lab/policy", "model", private)  # a second time: the repository is there
    push(tmp_path, "lab/policy", "model", private)


def test_without_a_token_nothing_is_begun(hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(BadInput, match=r"push_to_hub=ada/x: there is no token .* `hf auth login`"):
        check_push("ada/x", "dataset", True)
    assert hub.calls == []


@pytest.mark.parametrize(
    ("repo", "role", "token", "said"),
    [
        ("ada/x", "write", "hf_wrong", "the hub refuses the token"),
        ("ada/x", "read", TOKEN, "the token may only read"),
        ("eve/x", "write", TOKEN, "the token is of ada, who may write to ada, lab. Set push_to_hub=ada/x"),
    ],
)
def test_a_token_that_may_not_write_there_is_refused(repo, role, token, said, monkeypatch) -> None:
    with HubServer(role=role) as server:
        use_hub(server, monkeypatch)
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(BadInput) as caught:
            check_push(repo, "dataset", True)
    assert said in str(caught.value) and token not in str(caught.value)
    assert server.repos == {}


def test_what_is_private_does_not_go_to_a_public_place(hub: HubServer) -> None:
    hub.repos["datasets/ada/x"] = {"private": False, "files": {}}
    with pytest.raises(BadInput, match="this repository is public, and hub_private is true"):
        check_push("ada/x", "dataset", True)
    check_push("ada/x", "dataset", False)
    check_push("ada/x", "model", True)  # another repository of that name


def test_a_hub_that_is_away_is_told_with_what_to_do_later(monkeypatch: pytest.MonkeyPatch) -> None:
    with HubServer() as server:
        use_hub(server, monkeypatch)
    with pytest.raises(
        BadInput, match=r"cannot be reached \(ConnectError\).*hf upload ada/x FOLDER \. --repo-type model"
    ):
        check_push("ada/x", "model", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput, match="HF_HUB_OFFLINE forbids to ask the hub"):
        check_push("ada/x", "model", True)


def test_a_push_that_fails_names_the_command_for_later(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with HubServer(refuse=("/api/models/ada/x/commit/main",)) as server:
        use_hub(server, monkeypatch)
        with pytest.raises(BadInput) as caught:
            push(tmp_path, "ada/x", "model", True)
    assert f"`hf upload ada/x {tmp_path} . --repo-type model --private`" in str(caught.value)
    assert TOKEN not in str(caught.value)
