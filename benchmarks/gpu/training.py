"""Parts of the GPU check that start train.py: the quick start in small, DDP and FSDP, and a vLLM server."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import socket
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.models import llama_config
from benchmarks.gpu.process import Check, Child, Figure, Figures, last_lines, tried

RELATIVE_TOLERANCE = 2e-3  # of losses, MR and gradient norms in fp32, after up to four optimizer steps
GAP = 0.1  # nats a token between a vLLM server and the policy in bf16
_SHORT = (
    *("callbacks=quiet", "logger=csv", "trainer.val_every=0"),
    *("task.num_test=1", "evaluation.num_conversations=1"),
)
# A reward in which random models differ: the share of some letters.
_LETTERS = (
    "task.metrics.bleu.target=benchmarks.gpu.models.Letters",
    "~task.metrics.bleu.options.finished_only",
    "~task.metrics.bleu.options.with_notes",
)


class Training:
    """A run of train.py beside this process.

    Args:
        check: Where.
        name: Of its folder.
        overrides: As typed; with `resume=...` alone the run in that folder goes on.
    """

    def __init__(self, check: Check, name: str, overrides: Sequence[str]) -> None:
        self.folder, self.log = check.folder / name, check.folder / f"{name}.log"
        resumed = any(word.startswith("resume=") for word in overrides)
        typed = [*overrides] if resumed else [*_SHORT, *overrides, f"output_dir={self.folder}"]
        variables = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # what trainer.deterministic needs
        self.child = Child(["train.py", *typed], self.log, variables, check.fork)

    def has_done(self, step: int) -> bool:
        """Whether a step is in a checkpoint and in metrics.csv."""
        metrics = self.folder / "csv" / "metrics.csv"
        saved = (self.folder / "checkpoints" / f"step-{step:06d}.ckpt").exists()
        return saved and metrics.exists() and len(metrics.read_text().splitlines()) > step

    def rows(self) -> list[dict[str, str]]:
        """Of metrics.csv, one for each step.

        Raises:
            RuntimeError: The run has failed.
        """
        if code := self.child.wait():
            print(last_lines(self.log, 60))
            raise RuntimeError(f"train.py ended with {code}: {last_lines(self.log)[:250]}")
        with (self.folder / "csv" / "metrics.csv").open() as file:
            return [row for row in csv.DictReader(file) if row.get("train/loss")]


def _short_goals(check: Check) -> list[str]:
    """Overrides for goals whose references have a few words, so that replies may be short."""
    files = []
    for split, titles in (("train", ("kiln", "ferry", "pear")), ("val", ("choir",)), ("test", ("bakery",))):
        file = check.folder / f"goals-{split}.jsonl"
        records = [
            {
                "id": f"{split}-{title}",
                "single_turn_prompt": f"Write a notice about the {title}.",
                "single_turn_completion": f"The {title} is here.",
                "single_turn_metadata": {
                    "title": f"the {title}",
                    "form": "notice",
                    "preferences": {"tone": "friendly"},
                },
            }
            for title in titles
        ]
        file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        files.append(f"task.{split}_file={file}")
    return files


# --- the quick start -------------------------------------------------------------------------------------------------


def train(check: Check) -> Figures:
    """The quick start in small, in bf16; three steps of SFT in fp32 here and on the CPU."""
    import torch

    from collab.lm.device import has_native_bf16

    precision = f"precision={'bf16' if has_native_bf16(torch.device(check.device)) else 'fp32'}"
    steps = ["trainer.max_steps=3", f"trainer.goals_per_step={2 if check.tiny else 4}"]
    if check.tiny:
        steps += ["task.max_turns=2", "task.max_new_tokens=12", "sampler.group_size=3", *_short_goals(check)]
    grpo = ["experiment=doc_edit", *steps, precision, f"trainer.accelerator={check.device}"]
    grpo += _LETTERS if check.random_weights() else ()
    sft = ("experiment=doc_edit_sft", *steps, "precision=fp32", "trainer.deterministic=true")
    runs = {
        "LoRA": Training(check, "lora", grpo),
        "all weights": Training(check, "full", (*grpo, "model.lora.enabled=false", "algorithm.lr=1e-5")),
    }
    theirs = Training(check, "sft-cpu", (*sft, "trainer.accelerator=cpu"))
    ours = theirs if check.tiny else Training(check, "sft-here", (*sft, f"trainer.accelerator={check.device}"))
    for name, run in runs.items():
        yield from tried(name, partial(_learnt, f"{name}, {precision}", run))
    yield from tried("SFT in fp32", lambda: _same_losses(ours, theirs))


def _learnt(name: str, run: Training) -> Figures:
    """What three steps of GRPO have logged."""
    rows = run.rows()
    rewards = [float(row["train/mr"]) for row in rows]
    losses, norms = ([float(row[f"train/{key}"]) for row in rows] for key in ("loss", "grad_norm"))
    finite = len(rows) == 3 and all(map(math.isfinite, [*rewards, *losses, *norms]))
    yield Figure(f"{name}: MR of step 3", rewards[-1], ok=finite, note="3 steps, all finite")
    yield Figure(f"{name}: largest gradient norm", max(norms), ok=max(norms) > 0, note="there was a gradient")
    gaps = [float(row["train/logprob_gap"]) for row in rows if row["train/logprob_gap"] not in ("", "nan")]
    yield Figure(f"{name}: largest log-prob gap, engine to update", max(gaps, default=None), "nats a token")


def _same_losses(ours: Training, theirs: Training) -> Figures:
    """The losses of SFT here beside those on the CPU."""
    here, there = ([float(row["train/loss"]) for row in run.rows()] for run in (ours, theirs))
    worst = max(abs(a - b) / abs(b) for a, b in zip(here, there, strict=True))
    told = f"at most {RELATIVE_TOLERANCE}; losses {', '.join(f'{loss:.5g}' for loss in there)}"
    told += "; in a rehearsal the same run" if ours is theirs else ""
    ok = len(there) == 3 and worst <= RELATIVE_TOLERANCE
    yield Figure("SFT in fp32: losses of 3 steps, relative difference to the CPU's", worst, ok=ok, note=told)


# --- strategies ------------------------------------------------------------------------------------------------------


class _Chain:
    """A run, and another one with the same overrides that is killed after step 2 and goes on."""

    def __init__(self, check: Check, name: str, overrides: Sequence[str]) -> None:
        self.check, self.name, self.overrides = check, name, overrides
        self.killed = False
        self.error: Exception | None = None

    def run(self) -> None:
        """Never raises; `compared` does."""
        try:
            self.whole = Training(self.check, f"{self.name}-whole", self.overrides)
            self.cut = Training(self.check, f"{self.name}-cut", self.overrides)
            while self.cut.child.poll() is None and not self.cut.has_done(2):
                time.sleep(0.005)
            self.killed = self.cut.child.poll() is None
            self.cut.child.kill()
            if self.killed:
                self.cut = Training(self.check, f"{self.name}-cut", (f"resume={self.cut.folder}",))
        except Exception as error:
            self.error = error

    def compared(self) -> Figures:
        if self.error is not None:
            raise self.error
        theirs, ours = self.whole.rows(), self.cut.rows()
        resumed = self.killed and "going on from" in self.cut.log.read_text(errors="replace")
        yield Figure(f"{self.name}: killed after step 2, resumed", str(resumed).lower(), ok=resumed)
        keys = ("train/mr", "train/grad_norm")  # the loss is 0 up to rounding
        pairs = [(float(a[key]), float(b[key])) for a, b in zip(ours, theirs, strict=True) for key in keys]
        worst = max(abs(a - b) / abs(b) for a, b in pairs)
        told = f"{len(theirs)} steps, at most {RELATIVE_TOLERANCE}"
        good = len(theirs) == 4 and worst <= RELATIVE_TOLERANCE
        yield Figure(f"{self.name}: MR and gradient norms apart, relative", worst, ok=good, note=told)
        said = [sorted((run.folder / "transcripts.jsonl").read_text().splitlines()) for run in (self.whole, self.cut)]
        yield Figure(
            f"{self.name}: conversations", "the same" if said[0] == said[1] else "differ", ok=said[0] == said[1]
        )


def strategies(check: Check) -> Figures:
    """DDP and FSDP with one process: a run that is killed and goes on ends as one that is not."""
    model = check.folder / "tiny"
    _save_tiny(model)
    common = (
        *("experiment=doc_edit", f"model.path={model}", f"trainer.accelerator={check.device}", "trainer.devices=1"),
        *("precision=fp32", "algorithm=grpo", "engine.deterministic=true", "trainer.deterministic=true"),
        *("task.max_turns=2", "task.max_new_tokens=12", "sampler.group_size=3", "engine.max_batch=8"),
        *("trainer.max_steps=4", "trainer.goals_per_step=1", "checkpoint.every_n_steps=1", "algorithm.warmup_steps=0"),
        *("algorithm.lr=0.005", *_LETTERS, *_short_goals(check)),
    )
    chains = [_Chain(check, "fsdp", (*common, "strategy=fsdp", "model.lora.enabled=false"))]
    if check.tiny:
        yield Figure("ddp", "not in a rehearsal", note="tests/e2e/test_processes.py trains with it on a CPU")
    else:
        chains.append(_Chain(check, "ddp", (*common, "strategy=ddp")))
    if check.fork:  # a fork must not happen beside threads
        for chain in chains:
            chain.run()
    else:
        threads = [threading.Thread(target=chain.run) for chain in chains]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for chain in chains:
        yield from tried(chain.name, chain.compared)


def _save_tiny(folder: Path) -> None:
    """Write a tiny random model with SmolLM2's tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from collab.lm.smollm2 import smollm2_folder

    torch.manual_seed(0)
    lm: Any = AutoModelForCausalLM.from_config(llama_config("tiny"), dtype=torch.float32)
    lm.save_pretrained(folder)
    AutoTokenizer.from_pretrained(smollm2_folder()).save_pretrained(folder)


# --- vLLM ------------------------------------------------------------------------------------------------------------


def vllm(check: Check) -> Figures:
    """A vLLM server on this GPU: an adapter after each update, and the log-prob gap to the policy."""
    from collab.lm.smollm2 import smollm2_folder

    if importlib.util.find_spec("vllm") is None:
        yield Figure("vLLM", "not installed")
        return
    if check.tiny:
        yield Figure("vLLM", "not in a rehearsal")
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(smollm2_folder()), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--dtype", "bfloat16", "--max-model-len", "2048", "--enable-lora"]
    command += ["--max-lora-rank", "32", "--logprobs-mode", "processed_logprobs", "--gpu-memory-utilization", "0.3"]
    log, url = check.folder / "vllm.log", f"http://127.0.0.1:{port}/v1"
    variables = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_NO_USAGE_STATS": "1"}
    started, server = time.monotonic(), Child(command, log, variables)
    try:
        while not _answers(f"{url}/models"):
            if server.poll() is not None:
                print(last_lines(log, 60))
                raise RuntimeError(f"the vLLM server ended with {server.poll()}")
            time.sleep(1)
        yield Figure("server started", time.monotonic() - started, "s")
        overrides = ("experiment=doc_edit", "engine=vllm", f"engine.base_url={url}", "trainer.max_steps=2")
        overrides += ("trainer.goals_per_step=2", "task.max_turns=2", *(_LETTERS if check.random_weights() else ()))
        rows = Training(check, "vllm", overrides).rows()
        gaps = [float(row["train/logprob_gap"]) for row in rows if row["train/logprob_gap"]]
        ok = len(gaps) == 2 and max(gaps) < GAP
        yield Figure("log-prob gap, server to policy", max(gaps, default=None), "nats a token", ok, f"below {GAP}")
        loads = log.read_text(errors="replace").count("Loaded new LoRA adapter")
        yield Figure("adapters loaded", loads, ok=loads >= 3)
    finally:
        server.kill()


def _answers(url: str) -> bool:
    import httpx

    try:
        return httpx.get(url, trust_env=False).is_success
    except httpx.HTTPError:
        return False
