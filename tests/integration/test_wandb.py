"""Whether a run is logged to W&B online: what the config, W&B's own settings, the key and the server say.

And what needs no training: alerts, the lineage of a policy, the workspace, the sweep.
"""

from __future__ import annotations

import http.server
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import wandb
import yaml
from composing import load_config
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args
from wandb_file import read

from collab.app.cli import main
from collab.app.loggers import _estimates, check_loggers, log_inputs, loggers
from collab.app.resume import RunState
from collab.app.wandb_mode import wandb_mode
from collab.app.workspace import main as workspace
from collab.callbacks.wandb_logger import alert
from collab.config.checks import check
from collab.datamodules.goals import load_splits
from collab.reports.sections import SECTIONS
from collab.util.errors import BadInput

KEY = "k" * 40


class WandbServer:
    """A server that takes every key, or refuses every one."""

    def __init__(self, status: int) -> None:
        asked, sent = self.asked, self.sent = list[str](), list[str]()
        answers = {
            "viewer": {"id": "me", "username": "me", "teams": {"edges": []}},
            "upsertView": {"view": {"id": "id", "name": "nw-abc-v"}, "inserted": True},
        }

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                asked.append(self.path)
                sent.append(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())
                data = json.dumps({"data": answers}).encode()
                self.send_response(status if self.path == "/graphql" else 200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command == "POST":
                    self.wfile.write(data)

            do_HEAD = do_POST = answer

            def log_message(self, *details: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> WandbServer:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *details: object) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A home without settings and keys; W&B reads both once for each process."""
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    for name in ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    wandb.teardown()
    wandb_mode.cache_clear()
    yield
    wandb.teardown()
    wandb_mode.cache_clear()


def save_key(url: str) -> None:
    """As `wandb login` writes it."""
    Path(os.environ["NETRC"]).write_text(f"machine {urlsplit(url).netloc}\n  login user\n  password {KEY}\n")


def test_a_key_that_wandb_login_has_saved_is_found_whichever_server_it_is_for(monkeypatch) -> None:
    with WandbServer(200) as server:
        save_key(server.url)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        assert wandb_mode("auto") == wandb_mode("online") == ("online", "")
        assert "/graphql" in server.asked


def test_the_server_is_known_from_the_settings_of_wandb_too() -> None:
    with WandbServer(200) as server:
        save_key(server.url)
        Path("wandb").mkdir()
        Path("wandb/settings").write_text(f"[default]\nbase_url = {server.url}\n")
        assert wandb_mode("auto") == ("online", "")


def test_without_a_key_nobody_is_asked(monkeypatch) -> None:
    with WandbServer(200) as server:
        save_key("https://another.server")
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        assert wandb_mode("auto") == ("offline", "")
        with pytest.raises(BadInput, match=rf"logger.wandb=online needs a key that {server.url} takes: there is none"):
            wandb_mode("online")
        assert not server.asked


@pytest.mark.parametrize("wanted", ["auto", "online"])
def test_without_the_network_a_run_with_a_key_is_offline(wanted: str, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert wandb_mode(wanted) == ("offline", "http://127.0.0.1:9 cannot be reached: ConnectError")


def test_a_proxy_that_cannot_be_used_is_named_and_the_run_is_offline(monkeypatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("ALL_PROXY", "socks5://me:password@127.0.0.1:9")
    mode, why = wandb_mode("auto")
    assert mode == "offline" and "ALL_PROXY (socks5://...) cannot be used for https://" in why and "word" not in why


def test_a_server_that_says_nothing_is_waited_for_for_ten_seconds_at_most(monkeypatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listening.getsockname()[1]}")
        began = time.monotonic()
        mode, why = wandb_mode("auto")
        assert (mode, "cannot be reached" in why) == ("offline", True) and time.monotonic() - began < 10.5


@pytest.mark.parametrize(("key", "said"), [(KEY, "401"), ("short", "API key must have")])
def test_a_key_that_is_refused_is_told_before_the_run(key: str, said: str, monkeypatch) -> None:
    with WandbServer(401) as server:
        monkeypatch.setenv("WANDB_API_KEY", key)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        mode, why = wandb_mode("auto")
        assert mode == "offline" and why.startswith(f"{server.url} does not take the key: ") and said in why
        with pytest.raises(BadInput, match=f"logger.wandb=online needs a key .*{said}.* Run `wandb login`"):
            wandb_mode("online")


@pytest.mark.parametrize("wanted", ["auto", "online", "offline"])
@pytest.mark.parametrize(
    ("mode", "expected"), [("disabled", "disabled"), ("offline", "offline"), ("dryrun", "offline")]
)
def test_the_mode_of_wandb_may_restrict_the_config(mode: str, expected: str, wanted: str, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert wandb_mode(wanted) == ("disabled" if mode == "disabled" else "offline", "")


def test_the_command_wandb_disabled_counts_too() -> None:
    Path("wandb").mkdir()
    Path("wandb/settings").write_text("[default]\nmode = disabled\n")
    assert wandb_mode("auto") == ("disabled", "")


def test_a_mode_that_there_is_not_is_refused(monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "of")
    with pytest.raises(BadInput, match="W&B refuses its own settings: .*mode Input should be 'online'"):
        wandb_mode("auto")
    assert wandb_mode("disabled") == ("disabled", "")


def test_a_run_that_is_disabled_writes_no_folder_of_wandb(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for logger in loggers(load_config("train", ["experiment=doc_edit"], str(tmp_path / "run")), "id", 0):
        logger.log_metrics({"a": 1.0}, 0)
        logger.finalize("success")
    assert not list(tmp_path.rglob("*-run-*"))


def test_without_a_key_a_run_is_written_offline(tmp_path: Path) -> None:
    assert wandb_mode("auto") == ("offline", "")  # W&B reads its environment here, once
    for logger in loggers(load_config("train", ["experiment=doc_edit"], str(tmp_path / "run")), "id", 0):
        logger.log_metrics({"a": 1.0}, 0)
        logger.finalize("success")
    wandb.finish()
    assert [path.stat().st_size > 0 for path in tmp_path.rglob("offline-run-*/run-id.wandb")] == [True]


def test_contexts_that_cannot_be_read_are_told_before_the_server_is_asked(
    tiny_model: Path, monkeypatch, capsys
) -> None:
    with WandbServer(200) as server:
        save_key(server.url)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        given = [f"model.path={tiny_model}", "trainer.accelerator=cpu", "sampler.contexts=nowhere", "logger.wandb=auto"]
        given.append("task.max_new_tokens=200")  # the tiny model splits words more finely
        monkeypatch.setattr(sys, "argv", ["train.py", "experiment=doc_edit", *given])
        with pytest.raises(SystemExit):
            main("train")
        assert "sampler.contexts" in capsys.readouterr().err and not server.asked


# --- a run, without training -----------------------------------------------------------------------------------------


def test_alerts_and_the_policy_of_an_earlier_run_are_in_the_file(tmp_path: Path) -> None:
    earlier = RunState(tmp_path / "earlier", "train", id="earlier1")
    (earlier.folder / "policy").mkdir(parents=True)
    (earlier.folder / "policy" / "adapter.bin").write_bytes(b"weights")
    earlier.write()
    (tmp_path / "stored.jsonl").write_text("{}\n")
    given = [f"model.path={earlier.folder / 'policy'}", f"algorithm.data={tmp_path / 'stored.jsonl'}"]
    config = load_config("train", ["experiment=doc_edit_sft", *given], str(tmp_path / "run"))
    made = loggers(config, "id", 0)
    alert(made, "Collapse", "the policy has collapsed")
    log_inputs(config, made, load_splits(config.task))
    wandb.finish()
    run = read(tmp_path / "run")
    assert run.alerts == [("Collapse", "the policy has collapsed")]
    assert run.config["model"]["path"] == str(earlier.folder / "policy")
    found = {one.name: (one.type, one.use_after_commit) for one in run.artifacts}
    assert found == {
        "goals-doc_edit": ("dataset", True),
        "conversations-stored.jsonl": ("dataset", True),
        "policy-earlier1": ("model", True),
    }


def test_without_artifacts_nothing_is_read_or_sent(tmp_path: Path) -> None:
    config = load_config("train", ["experiment=doc_edit", "logger.artifacts=false"], str(tmp_path / "run"))
    made = loggers(config, "id", 0)
    log_inputs(config, made, load_splits(config.task))
    alert(made, "so that", "there is a run")
    wandb.finish()
    assert read(tmp_path / "run").artifacts == []


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboard"), ("mlflow", "mlflow")])
def test_a_logger_that_is_not_installed_is_told_with_its_extra(name: str, package: str, monkeypatch) -> None:
    config = load_config("train", [f"logger={name}"])
    check_loggers(config)
    monkeypatch.setattr("collab.app.loggers.find_spec", lambda asked: None if asked == package else asked)
    with pytest.raises(BadInput, match=rf"logger.{name}=true needs the package {package}.*collab-llm\[{name}\]"):
        check_loggers(config)


# --- workspace and sweep ---------------------------------------------------------------------------------------------


def test_a_workspace_is_saved_with_every_section(monkeypatch, capsys) -> None:
    with WandbServer(200) as server:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        assert workspace(["team/project"]) == 0
        assert capsys.readouterr().out.startswith(f"workspace: {server.url}/team/project?nw=abc")
        (sent,) = [json.loads(text)["variables"] for text in server.sent if "upsertView" in text]
    assert (sent["entityName"], sent["projectName"], sent["displayName"]) == ("team", "project", "collab")
    bank = json.loads(sent["spec"])["section"]["panelBankConfig"]
    sections = {section["name"]: section["panels"] for section in bank["sections"] if section["panels"]}
    assert sections.keys() == {*SECTIONS, "conversations"}
    for name in SECTIONS:
        for panel in sections[name]:
            metrics = panel["config"]["metrics"]
            assert metrics and all(metric.startswith(f"{name}/") for metric in metrics)
            assert panel["config"]["xAxis"] == "trainer/global_step"
    assert len(sections["conversations"]) == 3


@pytest.mark.parametrize(
    ("project", "environment", "said"),
    [
        ("project", {}, "project must be ENTITY/PROJECT"),
        ("a/b/c", {}, "a/b/c must be ENTITY/PROJECT"),
        ("team/project", {}, "needs a key"),
        ("team/project", {"WANDB_MODE": "offline"}, "W&B is offline, by WANDB_MODE"),
        ("team/project", {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"}, "cannot be reached"),
    ],
)
def test_a_workspace_that_cannot_be_saved_is_told(
    project: str, environment: dict[str, str], said: str, monkeypatch, capsys
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert workspace([project]) == 1
    assert said in capsys.readouterr().err


def test_the_sweep_starts_runs_that_the_programs_take() -> None:
    sweep = yaml.safe_load((Path(__file__).parents[2] / "benchmarks" / "wandb_sweep.yaml").read_text())
    command = create_sweep_command(sweep["command"])
    assert command[:3] == ["${env}", "${interpreter}", "${program}"] and command[-1] == "${args_no_hyphens}"
    assert sweep["metric"] == {"name": "reward/val/reward", "goal": "maximize"}
    for end in (0, -1):  # the first and the last value of each parameter
        values = {
            name: given.get("values", [given.get("min"), given.get("max")])
            for name, given in sweep["parameters"].items()
        }
        args = create_sweep_command_args({"args": {name: {"value": listed[end]} for name, listed in values.items()}})
        config = load_config(sweep["program"].removesuffix(".py"), [*command[3:-1], *args["args_no_hyphens"]])
        check(config)
        assert (config.logger.wandb, config.seed) == ("online", values["seed"][end])
        assert config.algorithm.lr == values["algorithm.lr"][end]


def test_a_difference_names_the_row_that_it_is_compared_with():
    one = {"reward": {"mean": 0.5, "ci95": [0.0, 1.0], "n": 2}, "bleu": {"mean": None, "ci95": [None, None], "n": 0}}
    rows = ["base", "mine", "base@insistent", "mine@insistent"]
    results = {"policies": dict.fromkeys(rows, one), "difference": {"mine": one, "mine@insistent": one}}
    assert list(_estimates(results)) == [
        (name, "reward", 0.5, 0.0, 1.0, 2) for name in (*rows, "mine − base", "mine@insistent − base@insistent")
    ]
