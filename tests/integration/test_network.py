"""Whether a server can be reached is known soon, and a hub that cannot be reached is not waited for."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import datasets
import pytest
from huggingface_hub import constants

from collab.config.schema import ModelConfig
from collab.datamodules.conversations import load_groups
from collab.lm.loading import load_tokenizer
from collab.util.errors import BadInput
from collab.util.hub import look_for
from collab.util.network import unreachable, within


@pytest.fixture
def deaf() -> Iterator[str]:
    """The address of a server that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nobody had said that this machine is offline."""
    look_for.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def test_a_server_that_says_nothing_is_waited_for_as_long_as_said(deaf: str) -> None:
    began = time.monotonic()
    assert unreachable(deaf, 0.3)
    assert time.monotonic() - began < 3
    assert unreachable("http://127.0.0.1:9", 5) == "ConnectError"


def test_work_that_takes_too_long_is_not_waited_for() -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        within(0.2, lambda: time.sleep(30))
    assert time.monotonic() - began < 3
    assert within(5, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 / 0)


def test_a_hub_that_says_nothing_is_given_up_within_seconds(deaf: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", deaf)
    began = time.monotonic()
    look_for("someone/goals")
    assert 4 < time.monotonic() - began < 10
    assert "cannot be reached" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["conversations", "model"])
def test_a_wrong_name_without_the_network_is_told_at_once(what: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(BadInput, match="someone/wrong"):
        if what == "model":
            load_tokenizer(ModelConfig(name="x", path="someone/wrong"))
        else:
            load_groups("someone/wrong", "")
    said, *more = capsys.readouterr().out.splitlines()
    assert said == "note: someone/wrong is no path on this machine: looking for it on the Hugging Face hub."
    assert more == ["note: http://127.0.0.1:9 cannot be reached (ConnectError): only earlier downloads are used."]
    assert time.monotonic() - began < 10


def test_a_machine_that_is_said_to_be_offline_asks_nobody(monkeypatch, capsys) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    look_for("someone/goals")
    said = capsys.readouterr().out
    assert said.endswith("looking for an earlier download from the Hugging Face hub.\n") and len(said.splitlines()) == 1


def test_a_proxy_that_cannot_be_used_is_named_before_the_hub_is_asked(monkeypatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    with pytest.raises(BadInput, match="ALL_PROXY"):
        load_groups("someone/wrong", "")
