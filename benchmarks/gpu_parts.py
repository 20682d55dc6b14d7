"""The parts of the GPU check: each is a function that runs in a process of its own and yields figures as it goes."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import csv
import dataclasses
import gc
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import socket
import statistics
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_models import SIZES, Memory, default_model, random_lm
from benchmarks.gpu_process import ROOT, Check, Child, Figure, tried

GPU_TESTS = ("integration/test_graphs.py", "integration/test_attention.py", "integration/test_benchmarks.py")
TEST_SECONDS = 100  # for each file of them
LOSS_TOLERANCE = 2e-3  # relative, fp32 on a CPU and on a GPU after up to three optimizer steps
GRADIENT_TOLERANCE = 1e-3  # relative, of the norm, in fp32
LOGPROB_TOLERANCE = 1e-3  # nats, in fp32
GAP = 0.1  # nats a token between a vLLM server and the policy in bf16
Figures = Iterator[Figure]


# --- what the machine is ---------------------------------------------------------------------------------------------


def prepare(check: Check) -> Figures:
    """Make the default model's folder; say where everything runs."""
    import torch

    site = os.environ.get("GPU_CHECK_TOKENIZER")
    weights = default_model(check.folder / "cache", Path(site) if site else None, check.tiny)
    (check.folder / "weights.txt").write_text(weights, encoding="utf-8")
    yield Figure("default model", weights)
    if check.device == "cuda":
        yield from tried("device", _gpu)
    else:
        yield Figure("device", f"CPU, {torch.get_num_threads()} threads")
    yield Figure("Python", platform.python_version())
    for name in ("torch", "transformers", "lightning", "peft", "tokenizers", "numpy", "trl", "flash-attn", "vllm"):
        yield Figure(name, _version(name) or "not installed")


def _gpu() -> Figures:
    import torch
    from torch.cuda import nccl

    yield Figure("device", torch.cuda.get_device_name())
    yield Figure("memory", torch.cuda.get_device_properties(0).total_memory / 1e9, "GB")
    yield Figure("CUDA", str(torch.version.cuda))
    yield Figure("NCCL", ".".join(map(str, nccl.version())))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment(check: Check) -> Figures:
    """Requirements, imports, how fast memory and matrix products are."""
    import torch

    from benchmarks.gpu_wheels import requirements

    for requirement in requirements():
        found = _version(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            yield Figure(f"requirement {requirement}", found or "not installed", note="not as setup.cfg wants it")
    modules = sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "collab").rglob("*.py"))
    for name in modules:
        if name.endswith(("__main__", "sandbox.worker", "sandbox.supervisor")):  # programs
            continue
        try:
            importlib.import_module(name.removesuffix(".__init__"))
        except Exception as error:
            yield Figure(f"import {name}", None, ok=False, note=f"{type(error).__name__}: {error}")
    yield Figure("modules imported", len(modules))
    yield Figure("copy bandwidth, read and written", copy_bandwidth(check.device) / 1e9, "GB/s")
    size, dtype = (256, torch.float32) if check.tiny else (8192, torch.bfloat16)
    a, b = (torch.randn(size, size, device=check.device, dtype=dtype) for _ in range(2))
    yield Figure("matrix product", 2 * size**3 / _seconds(lambda: a @ b) / 1e12, "TFLOP/s", note=str(dtype))


def copy_bandwidth(device: str) -> float:
    """Bytes a second, read and written, of a copy on the device."""
    import torch

    source = torch.ones((4 if device == "cpu" else 4096) << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source))


def _seconds(work: Any, runs: int = 10) -> float:
    """Of one call, the mean of several after two that do not count."""
    from benchmarks.measure import seconds

    for _ in range(2):
        work()
    return seconds(lambda: [work() for _ in range(runs)]) / runs


def gpu_tests(check: Check) -> Figures:
    """The tests that are marked `gpu`, a process for each file; a rehearsal only collects them."""
    files = [GPU_TESTS] if check.tiny else [(name,) for name in GPU_TESTS]
    running = []
    for number, names in enumerate(files):
        report = check.folder / f"tests{number}.xml"
        options = ["--collect-only"] if check.tiny else [f"--junitxml={report}", f"--timeout={TEST_SECONDS}"]
        places = [f"tests/{name}" for name in names]
        # A deprecation in an image's versions must not hide what a test says.
        common = ["-m", "gpu", "-q", "-p", "no:cacheprovider", "-W", "default::FutureWarning"]
        command = ["-m", "pytest", *common, *options, *places]
        log = check.folder / f"tests{number}.log"
        running.append((names, report, log, Child(command, log)))
    for names, report, log, child in running:
        code = child.wait(TEST_SECONDS + 30)
        child.kill()
        if check.tiny:
            found = [name for name in names if f"tests/{name}::" in log.read_text()]
            yield Figure("files with marked tests", len(found), ok=code == 0 and len(found) == len(names))
            continue
        cases = list(ElementTree.parse(report).iter("testcase")) if report.is_file() else []
        for case in cases:
            wrong = [child for child in case if child.tag in ("failure", "error")]
            told = (wrong[0].get("message") or "").strip().splitlines()[:1] if wrong else []
            result = "failed" if wrong else "skipped" if case.find("skipped") is not None else "passed"
            yield Figure(str(case.get("name")), result, ok=result == "passed", note=" ".join(told)[:200])
        if not cases or code:
            tail = log.read_text(errors="replace").strip().splitlines()[-1:]
            print(log.read_text(errors="replace")[-4000:])
            yield Figure(names[0], None, ok=False, note=f"pytest ended with {code}: {' '.join(tail)[:200]}")


# --- training --------------------------------------------------------------------------------------------------------

_SHORT = (
    "callbacks=quiet",
    "logger=csv",
    "trainer.val_every=0",
    "task.num_test=1",
    "evaluation.num_conversations=1",
)
# A reward in which random models differ: the share of some letters.
_LETTERS = (
    "task.metrics.bleu.target=benchmarks.gpu_models.Letters",
    "~task.metrics.bleu.options.finished_only",
    "~task.metrics.bleu.options.with_notes",
)


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
                "single_turn_metadata": {"title": f"the {title}", "form": "notice", "tone": "friendly"},
            }
            for title in titles
        ]
        file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        files.append(f"task.{split}_file={file}")
    return files


class Training:
    """A run of train.py beside this process.

    Args:
        check: Where.
        name: Of its folder.
        overrides: As typed; with `resume=...` alone the run in that folder goes on.
    """

    def __init__(self, check: Check, name: str, overrides: Sequence[str]) -> None:
        self.folder, self.log = check.folder / name, check.folder / f"{name}.log"
        self.started = time.monotonic()
        resumed = any(word.startswith("resume=") for word in overrides)
        typed = [*overrides] if resumed else [*_SHORT, *overrides, f"output_dir={self.folder}"]
        variables = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # what trainer.deterministic needs

        def work() -> None:
            from collab.app.cli import main

            sys.argv = ["train.py", *typed]
            main("train")

        self.child = Child(["train.py", *typed], self.log, variables, work if check.fork else None)

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
        code = self.child.wait()
        text = self.log.read_text(errors="replace")
        if code:
            print(text[-6000:])
            last = text.strip().splitlines()[-1:] or [""]
            raise RuntimeError(f"train.py ended with {code}: {last[0][:250]}")
        with (self.folder / "csv" / "metrics.csv").open() as file:
            return [row for row in csv.DictReader(file) if row.get("train/loss")]


def _precision(check: Check, wanted: str) -> str:
    import torch

    from collab.lm.device import has_native_bf16

    return wanted if has_native_bf16(torch.device(check.device)) else "fp32"


def train(check: Check) -> Figures:
    """The quick start in small, in bf16; three steps of SFT in fp32 here and on the CPU."""
    if check.fork:
        import collab.app.build  # noqa: F401  so that no fork has to import it
    precision = f"precision={_precision(check, 'bf16')}"
    steps = ("trainer.max_steps=3", f"trainer.goals_per_step={2 if check.tiny else 4}")
    small: tuple[str, ...] = ()
    if check.tiny:
        small = ("task.max_turns=2", "task.max_new_tokens=12", "sampler.group_size=3", *_short_goals(check))
    grpo = ("experiment=doc_edit", *steps, *small, precision, f"trainer.accelerator={check.device}")
    grpo += _LETTERS if check.random_weights() else ()
    sft = ("experiment=doc_edit_sft", *steps, *small, "precision=fp32", "trainer.deterministic=true")
    runs = {
        "LoRA": Training(check, "lora", grpo),
        "all weights": Training(check, "full", (*grpo, "model.lora.enabled=false", "algorithm.lr=1e-5")),
    }
    devices = {name: Training(check, f"sft-{name}", (*sft, f"trainer.accelerator={name}")) for name in {"cpu", "cuda"}
               if name == "cpu" or not check.tiny}  # fmt: skip
    if check.tiny:
        devices["cuda"] = Training(check, "sft-again", (*sft, "trainer.accelerator=cpu"))

    def learnt(name: str, run: Training) -> Figures:
        rows = run.rows()
        rewards = [float(row["train/mr"]) for row in rows]
        losses, norms = ([float(row[f"train/{key}"]) for row in rows] for key in ("loss", "grad_norm"))
        finite = len(rows) == 3 and all(map(math.isfinite, [*rewards, *losses, *norms]))
        yield Figure(f"{name}, {precision}: MR of step 3", rewards[-1], ok=finite, note="3 steps, all finite")
        yield Figure(f"{name}: largest gradient norm", max(norms), ok=max(norms) > 0, note="weights were updated")
        rates = [float(row["train/rollout_tokens_per_s"]) for row in rows]
        yield Figure(f"{name}: rollout of step 3", rates[-1], "tokens/s")
        gaps = [float(row["train/logprob_gap"]) for row in rows if row["train/logprob_gap"] not in ("", "nan")]
        yield Figure(f"{name}: largest log-prob gap, engine to update", max(gaps, default=math.nan), "nats a token")

    def same() -> Figures:
        ours, theirs = ([float(row["train/loss"]) for row in devices[name].rows()] for name in ("cuda", "cpu"))
        worst = max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))
        told = f"at most {LOSS_TOLERANCE}; losses {', '.join(f'{loss:.5g}' for loss in theirs)}"
        ok = len(theirs) == 3 and worst <= LOSS_TOLERANCE
        yield Figure("SFT in fp32: losses of 3 steps, relative difference to the CPU's", worst, ok=ok, note=told)

    for name, run in runs.items():
        yield from tried(name, lambda name=name, run=run: learnt(name, run))
    yield from tried("SFT in fp32", same)


def losses(check: Check) -> Figures:
    """GRPO's loss and gradient on fixed replies, in fp32: here by blocks and under the dense mask, and on the CPU."""
    import torch

    from collab.config.schema import ModelConfig
    from collab.lm.loading import load_model

    config = ModelConfig(name="check")

    def on(device: str, dtype: Any, blocks: bool, sampled: Any = None) -> tuple[float, float, Any]:
        torch.manual_seed(0)
        lm = load_model(config, dtype, torch.device(device))
        with torch.no_grad():
            for name, parameter in lm.named_parameters():
                if "lora_B" in name:  # so that the adapter's first half has a gradient too
                    noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
                    parameter.copy_(1e-3 * noise)
        history, candidates, tokens = (20, 3, 8) if check.tiny else (256, 4, 64)
        return grpo_loss(lm, history, candidates, tokens, blocks, sampled)

    loss, norm, logprobs = on("cpu", torch.float32, True)
    yield Figure("GRPO on the CPU in fp32: loss", loss)
    cases = {"by blocks": (torch.float32, True), "dense mask": (torch.float32, False), "bf16": (torch.bfloat16, True)}

    def compared(name: str, dtype: Any, blocks: bool) -> Figures:
        found = on(check.device, dtype, blocks, logprobs)
        exact = dtype == torch.float32
        apart = float((found[2] - logprobs).abs().max())
        ok = (apart <= LOGPROB_TOLERANCE, abs(found[0] - loss) <= LOSS_TOLERANCE, None)
        relative = abs(found[1] - norm) / norm
        told = "against the CPU in fp32"
        yield Figure(f"{name}: log-probs apart, largest", apart, "nats", ok[0] if exact else None, told)
        yield Figure(f"{name}: loss apart", abs(found[0] - loss), ok=ok[1] if exact else None, note=told)
        fine = relative <= GRADIENT_TOLERANCE if exact else None
        yield Figure(f"{name}: gradient norm apart, relative", relative, ok=fine, note=told)

    for name, (dtype, blocks) in cases.items():
        if dtype == torch.float32 or not check.tiny:
            yield from tried(name, lambda name=name, d=dtype, b=blocks: compared(name, d, b))


def grpo_loss(
    lm: Any, history: int, candidates: int, tokens: int, blocks: bool, sampled: Any = None
) -> tuple[float, float, Any]:
    """GRPO's loss on replies that are always the same, the norm of its gradient, and the log-probs on the CPU.

    The log-probs at sampling time are near `sampled`, or near the model's own if that is None.
    """
    import torch

    policy, module, group, packed = _grpo(lm, history, candidates, tokens)
    if sampled is None:
        with torch.no_grad():
            sampled = policy(packed).logprobs
    noise = 0.1 * torch.randn(len(packed.targets), generator=torch.Generator().manual_seed(3))
    packed = dataclasses.replace(packed, sampled_logprobs=(sampled.float().cpu() + noise).to(lm.device))
    with _dense(not blocks):
        output = policy(packed)
        loss = module.loss([group], packed, output, None) / module.units(group)
        loss.backward()
    grads = [parameter.grad.float().norm() for parameter in policy.parameters() if parameter.grad is not None]
    return float(loss), float(torch.stack(grads).norm()), output.logprobs.detach().float().cpu()


def _grpo(lm: Any, history: int, candidates: int, tokens: int) -> tuple[Any, Any, Any, Any]:
    """A GRPO policy in training mode, its module, and one group of made-up replies, packed."""
    import torch

    from collab.config.algorithms import GRPOConfig
    from collab.conversation import Reply
    from collab.modules.base import Example
    from collab.modules.grpo import GRPO
    from collab.modules.packing import pack

    module = GRPO(GRPOConfig(), lambda: lm, None, 0.7, max_steps=1)
    module.configure_model()
    policy = module.policy
    assert policy is not None
    policy.train()
    draw = torch.Generator().manual_seed(2)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(5, 49_000, (count,), generator=draw).tolist())

    prompt = ids(history)
    replies = tuple(Reply("", ids(tokens), (-10.8,) * tokens, "length", prompt) for _ in range(candidates))
    weights = tuple(1.0 - 2.0 * (n % 2) + 0.25 * n for n in range(candidates))
    return policy, module, Example(replies, weights), pack([replies], 0.7).to(lm.device)


@contextlib.contextmanager
def _dense(wanted: bool) -> Iterator[None]:
    """In this context, if `wanted`, packed groups on a GPU are computed under the dense mask."""
    from collab.modules import policy

    kept = policy.takes_blocks
    if wanted:
        policy.takes_blocks = lambda lm, device: False
    try:
        yield
    finally:
        policy.takes_blocks = kept


# --- the engine ------------------------------------------------------------------------------------------------------


def engine_135m(check: Check) -> Figures:
    yield from _engine(check, "135m")


def engine_05b(check: Check) -> Figures:
    yield from _engine(check, "0.5b")


def engine_15b(check: Check) -> Figures:
    yield from _engine(check, "1.5b")


def engine_8b(check: Check) -> Figures:
    yield from _engine(check, "8b")


def _dtype(check: Check) -> Any:
    import torch

    return torch.float32 if check.tiny else torch.bfloat16


def _engine(check: Check, size: str) -> Figures:
    """Tokens a second of the engine by streams, with and without graphs, beside peers and the bandwidth's limit."""
    import torch

    from benchmarks.decoding import decode_vs_continuous_batching, decode_vs_generate, engine_rate
    from benchmarks.measure import Setting, in_turn
    from collab.config.schema import ModelConfig
    from collab.lm.attention import FLASH_WHERE_UNMASKED
    from collab.lm.loading import load_tokenizer

    runs, tokens, streams = (1, 3, (1, 3)) if check.tiny else (2, 128, (1, 32, 128, 512))
    key, device = check.size(size), torch.device(check.device)
    lm = random_lm(key, _dtype(check), device)
    setting = Setting("", device, _dtype(check), runs=runs, tokens=tokens)
    setting.lm, setting.stock_lm = lm, copy.deepcopy(lm)
    setting.tokenizer = load_tokenizer(ModelConfig(name="check"))
    read = sum(parameter.nbytes for parameter in lm.parameters())
    if not SIZES[key]["tied"]:
        read -= lm.get_input_embeddings().weight.nbytes  # a few of its rows are read
    bandwidth = copy_bandwidth(check.device)

    def rate(engine: Any = None) -> float:
        return statistics.median(in_turn(runs, engine_rate(setting, engine))[0])

    def alone(count: int) -> Figures:
        setting.requests = count
        found = rate()
        limit = count * bandwidth / read
        told = f"{found / limit:.1%} of the limit of {limit:.4g}, all weights read once a token"
        yield Figure(f"{count} streams", found, "tokens/s", note=told)

    def without_graphs() -> Figures:
        engine = setting.engine()
        engine.graphs.works = False
        yield Figure(f"{setting.requests} streams, no CUDA graphs", rate(engine), "tokens/s")

    def attention(name: str, streams: int) -> Figures:
        lm.set_attn_implementation(name)
        try:
            yield Figure(f"{streams} streams, {name}", rate(), "tokens/s")
        finally:
            lm.set_attn_implementation("sdpa")

    def against(peer: str, compare: Any) -> Figures:
        figures = compare(setting)
        told = f"ours {figures.ours:.4g}, peer {figures.peer:.4g} tokens/s"
        yield Figure(f"{setting.requests} streams, ours / {peer}", figures.ratio, note=told)

    for count in streams:
        yield from tried(f"{count} streams", lambda count=count: alone(count))
    setting.requests = streams[1]
    yield from tried("no CUDA graphs", without_graphs)
    yield from tried("generate", lambda: against("generate", decode_vs_generate))
    if check.device == "cuda":
        cb = lambda: against("continuous batching", decode_vs_continuous_batching)  # noqa: E731
        yield from tried("continuous batching", cb)
    yield from tried("eager", lambda: attention("eager", setting.requests))
    if check.device == "cuda" and importlib.util.find_spec("flash_attn"):
        yield from tried("flash_attention_2", lambda: attention(FLASH_WHERE_UNMASKED, setting.requests))


# --- the update ------------------------------------------------------------------------------------------------------


def update_05b(check: Check) -> Figures:
    yield from _update(check, "0.5b")


def update_8b(check: Check) -> Figures:
    yield from _update(check, "8b")


def _update(check: Check, size: str) -> Figures:
    """Candidate tokens a second and peak memory of a LoRA update: by blocks, under the dense mask, and TRL's."""
    import torch

    sys.path.insert(0, str(ROOT / "benchmarks" / "peers"))
    from update_ours import update_of
    from update_sides import measured

    shape = dict(history=20, candidates=2, tokens=6) if check.tiny else dict(history=512, candidates=8, tokens=64)
    runs, key = (1, check.size(size)) if check.tiny else (3, size)
    norms: dict[str, float] = {}

    def figures(name: str, update: Any, trained: Any) -> Figures:
        measured(update, trained, check.device)  # does not count
        found = [measured(update, trained, check.device) for _ in range(runs)]
        seconds = statistics.median(one["seconds"] for one in found)
        norms[name] = found[-1]["gradient_norm"]
        yield Figure(f"{name}: update", shape["candidates"] * shape["tokens"] / seconds, "candidate tokens/s")
        peak = max(one["peak_bytes"] for one in found) / 1e9
        yield Figure(f"{name}: peak above weights", peak, "GB")
        yield Figure(f"{name}: gradient norm", norms[name], ok=norms[name] > 0)

    def ours(name: str, dense: bool) -> Figures:
        with _dense(dense):
            yield from figures(name, *update_of(random_lm(key, _dtype(check), check.device, lora=True), **shape))

    def trl() -> Figures:
        from transformers import AutoTokenizer
        from update_trl import update_of as trl_update_of

        from collab.config.schema import LoraConfig
        from collab.lm.smollm2 import smollm2_folder

        lm = random_lm(key, _dtype(check), check.device)
        tokenizer = AutoTokenizer.from_pretrained(smollm2_folder())
        lora = LoraConfig()
        yield from figures(
            "TRL", *trl_update_of(lm, tokenizer, **shape, rank=lora.r, alpha=lora.alpha, device=check.device)
        )

    yield from tried("ours", lambda: ours("ours by blocks", False))
    gc.collect()
    if check.device == "cuda":
        torch.cuda.empty_cache()
        yield from tried("ours", lambda: ours("ours, dense mask", True))
        gc.collect()
        torch.cuda.empty_cache()
    if importlib.util.find_spec("trl") is None:
        yield Figure("TRL", "not installed")
    elif not (check.tiny and check.fork):
        yield from tried("TRL", trl)


# --- a rollout -------------------------------------------------------------------------------------------------------


class Busy(threading.Thread):
    """The share of the time that a GPU is busy, as NVML tells it, while this context is entered."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._values: list[int] = []
        self._over = threading.Event()

    def run(self) -> None:
        import torch

        with contextlib.suppress(Exception):  # no NVML: then there is no value
            while not self._over.wait(0.1):
                self._values.append(torch.cuda.utilization())

    def __enter__(self) -> Busy:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self.join()

    @property
    def share(self) -> float | None:
        return statistics.fmean(self._values) / 100 if self._values else None


def rollout(check: Check) -> Figures:
    """One rollout of doc_edit with an 8B policy and the agenda user, by stages."""
    import torch

    from collab.app import build
    from collab.app.compose import load_config
    from collab.chat.endpoints import Endpoints
    from collab.config.schema import ModelConfig
    from collab.datamodules.goals import load_splits
    from collab.generation.engine import LocalEngine
    from collab.lm.loading import load_tokenizer
    from collab.randomness import RngKey
    from collab.simulation.conversation_loop import draw_context, sample_candidates
    from collab.simulation.schedule import context_turn

    small = ["task.max_turns=2", "task.max_new_tokens=6", "sampler.group_size=2"] if check.tiny else []
    config = load_config("train", ["experiment=doc_edit", *small], str(check.folder / "rollout"))
    goals = load_splits(config.task).train[: 2 if check.tiny else 32]
    lm = random_lm(check.size("8b"), _dtype(check), torch.device(check.device), lora=True)
    engine = LocalEngine(lm, load_tokenizer(ModelConfig(name="check")), max_batch=256)
    simulation = build.simulation(config, Endpoints(config), lambda: None)
    players, key = simulation.players(engine), RngKey(config.seed, split="train")
    found: dict[str, Any] = {}

    def stage(name: str, work: Any) -> Figures:
        async def everyone() -> list[Any]:
            return list(await asyncio.gather(*work()))

        before, started = engine.new_tokens, time.monotonic()
        with Busy() as busy:
            found[name] = asyncio.run(everyone())
        seconds = time.monotonic() - started
        tokens = engine.new_tokens - before
        share = "" if busy.share is None else f"GPU busy {busy.share:.0%} of the time; "
        yield Figure(f"{name}", seconds, "s", note=f"{share}{tokens} tokens, {tokens / seconds:.4g} tokens/s")

    turns = [context_turn(config.seed, n, simulation.turns) for n in range(len(goals))]
    prompt = config.task.system_prompt
    yield from stage(
        f"contexts of {len(goals)} goals",
        lambda: [
            draw_context(players, goal, prompt, turn, key.at(goal=goal.id, split=f"context/{n}"))
            for n, (goal, turn) in enumerate(zip(goals, turns, strict=True))
        ],
    )
    (contexts,) = found.values()
    drawn = [(context, key.at(goal=context.goal.id)) for context in contexts if context.pending is not None]
    yield from stage(
        "candidates",
        lambda: [sample_candidates(players, c, simulation.candidates_at(c.turn), k) for c, k in drawn],
    )
    replies = found["candidates"]
    yield from stage(
        "futures and rewards",
        lambda: [simulation.scored(players, c, r, k) for (c, k), r in zip(drawn, replies, strict=True)],
    )
    scored = [candidate for group in found["futures and rewards"] for candidate in group]
    finite = all(candidate.mr is not None and math.isfinite(candidate.mr) for candidate in scored)
    yield Figure("candidates with a finite MR", len(scored), ok=bool(scored) and finite)


# --- memory ----------------------------------------------------------------------------------------------------------


def memory(check: Check) -> Figures:
    """Memory of an 8B LoRA policy against the arithmetic of docs/scaling.md; the largest batches that fit."""
    import torch

    cuda = check.device == "cuda"
    key, length, tokens = (check.size("8b"), 64, 128) if check.tiny else ("8b", 4096, 8192)
    lm = random_lm(key, _dtype(check), check.device, lora=True, checkpointing=True)
    adapter = sum(p.numel() for p in lm.parameters() if p.requires_grad)
    base = sum(p.numel() for p in lm.parameters()) - adapter
    expected = Memory.of(lm.config, base, adapter, rows=32, length=length, tokens=tokens)

    def allocated(peak: bool = False) -> int:
        if not cuda:
            return 0
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()

    def fresh() -> None:
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def compared(name: str, found: int, wanted: int) -> Figure:
        told = f"arithmetic {wanted / 1e9:.4g} GB; at most 15% more"
        return Figure(name, found / 1e9, "GB", found <= 1.15 * wanted if cuda else None, told)

    def learn(width: int) -> float:
        """One update on packed tokens: a history, and eight candidates."""
        history = min(512, width // 2)
        policy, module, group, packed = _grpo(lm, history, 8, (width - history) // 8)
        started = time.monotonic()
        (module.loss([group], packed, policy(packed), None) / module.units(group)).backward()
        allocated()
        policy.eval()
        return time.monotonic() - started

    def update() -> Figures:
        optimizer = torch.optim.AdamW([p for p in lm.parameters() if p.requires_grad], lr=1e-5)
        learn(64)
        optimizer.step()
        fresh()
        yield compared("between rollouts", allocated(), expected.between)
        fresh()
        seconds = learn(tokens)
        yield compared(f"update on {tokens} tokens", allocated(peak=True), expected.update)
        yield Figure(f"update on {tokens} tokens", seconds, "s")
        optimizer.zero_grad()

    def decode(rows: int) -> None:
        _decode(lm, rows, length)

    def rolled() -> Figures:
        lm.zero_grad()
        fresh()
        before = allocated()
        _decode(lm, 32 if cuda else 2, length // 2, length)
        taken = allocated(peak=True) - before
        yield compared(f"rollout of 32 rows of {length} tokens", taken, expected.rollout - expected.between)

    def fits(work: Any, count: int) -> bool:
        fresh()
        try:
            work(count)
        except torch.OutOfMemoryError:
            return False
        return True

    def largest(name: str, work: Any, start: int, end: int, unit: str) -> Figures:
        good, bad = 0, start
        while bad <= end and fits(work, bad):
            good, bad = bad, 2 * bad
        told = f"{bad} were not tried" if bad > end else f"{bad} do not fit"
        if good and bad <= end:
            middle = (good + bad) // 2
            good, told = (middle, told) if fits(work, middle) else (good, f"{middle} do not fit")
        fresh()
        yield Figure(name, good, unit, ok=good > 0, note=told)

    yield from tried("update", update)
    yield from tried("rollout", rolled)
    rows, widest = ((32, 1024), 131_072) if cuda else ((1, 2), 256)
    yield from tried("rows", lambda: largest(f"most rows of {length} tokens", decode, *rows, "rows"))
    yield from tried("tokens", lambda: largest("longest update", learn, tokens, widest, "tokens"))


def _decode(lm: Any, rows: int, *lengths: int) -> None:
    """Decode 4 tokens in each of `rows` conversations of these lengths with one prompt, which is read once."""
    from collab.chat.base import Sampling
    from collab.config.schema import ModelConfig
    from collab.conversation import Message
    from collab.generation.engine import LocalEngine
    from collab.lm.loading import load_tokenizer
    from collab.randomness import RngKey

    engine = LocalEngine(lm, load_tokenizer(ModelConfig(name="check")), max_batch=rows)

    async def everyone(chat: list[Message]) -> None:
        sampling = Sampling(4, 0.7, ignore_eos=True)
        await asyncio.gather(*(engine.complete(chat, sampling, RngKey(1, sample=n)) for n in range(rows)))

    for length in lengths:
        empty = len(engine.format.encode([Message("user", "")])[0])
        asyncio.run(everyone([Message("user", " a" * (length - 4 - empty))]))
    engine.clear_cache(weights=True)


# --- strategies ------------------------------------------------------------------------------------------------------


def strategies(check: Check) -> Figures:
    """DDP and FSDP with one process: a run that is killed and goes on ends as one that is not."""
    model = check.folder / "tiny"
    _save_tiny(model)
    if check.fork:
        import collab.app.build  # noqa: F401  so that no fork has to import it
    common = (
        *("experiment=doc_edit", f"model.path={model}", f"trainer.accelerator={check.device}", "trainer.devices=1"),
        *("precision=fp32", "algorithm=grpo", "engine.deterministic=true", "trainer.deterministic=true"),
        *(
            "task.max_turns=2",
            "task.max_new_tokens=12",
            "sampler.group_size=3",
            "engine.max_batch=8",
            *_short_goals(check),
        ),
        *("trainer.max_steps=4", "trainer.goals_per_step=1", "checkpoint.every_n_steps=1", "algorithm.warmup_steps=0"),
        *("algorithm.lr=0.005", *_LETTERS, *_short_goals(check)),
    )
    each = {"ddp": ("strategy=ddp",), "fsdp": ("strategy=fsdp", "model.lora.enabled=false")}

    def chain(name: str, results: dict[str, Any]) -> None:
        with contextlib.suppress(BaseException):  # what is missing in `results` tells
            whole = Training(check, f"{name}-whole", (*common, *each[name]))
            cut = Training(check, f"{name}-cut", (*common, *each[name]))
            while cut.child.poll() is None and not cut.has_done(2):
                time.sleep(0.005)
            results["cut"] = cut.child.poll() is None
            cut.child.kill()
            results["log"] = cut.log
            if results["cut"]:
                cut = Training(check, f"{name}-cut", (f"resume={cut.folder}",))
            results["pair"] = (whole, cut)

    def compared(name: str, results: dict[str, Any]) -> Figures:
        whole, cut = results["pair"]
        theirs, ours = whole.rows(), cut.rows()
        resumed = "going on from" in cut.log.read_text(errors="replace")
        yield Figure(f"{name}: killed after step 2, resumed", str(resumed).lower(), ok=results["cut"] and resumed)
        keys = ("train/mr", "train/grad_norm")  # the loss is 0 up to rounding
        pairs = [(float(a[key]), float(b[key])) for a, b in zip(ours, theirs, strict=True) for key in keys]
        worst = max(abs(a - b) / abs(b) for a, b in pairs)
        told = f"{len(theirs)} steps, at most {LOSS_TOLERANCE}"
        good = len(theirs) == 4 and worst <= LOSS_TOLERANCE
        yield Figure(f"{name}: MR and gradient norms apart, relative", worst, ok=good, note=told)
        said = [sorted((run.folder / "transcripts.jsonl").read_text().splitlines()) for run in (whole, cut)]
        yield Figure(f"{name}: conversations", "the same" if said[0] == said[1] else "differ", ok=said[0] == said[1])

    results: dict[str, dict[str, Any]] = {name: {} for name in each}
    if check.fork:  # a fork must not happen beside threads
        for name in each:
            chain(name, results[name])
    else:
        threads = [threading.Thread(target=chain, args=(name, results[name])) for name in each]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for name in each:
        yield from tried(name, lambda name=name: compared(name, results[name]))


def _save_tiny(folder: Path) -> None:
    """Write a tiny random model with SmolLM2's tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from benchmarks.gpu_models import llama_config
    from collab.lm.smollm2 import smollm2_folder

    torch.manual_seed(0)
    lm: Any = AutoModelForCausalLM.from_config(llama_config("tiny"), dtype=torch.float32)
    lm.save_pretrained(folder)
    AutoTokenizer.from_pretrained(smollm2_folder()).save_pretrained(folder)


# --- vLLM ------------------------------------------------------------------------------------------------------------


def vllm(check: Check) -> Figures:
    """A vLLM server on this GPU: an adapter after each update, and the log-prob gap to the policy."""
    from collab.lm.smollm2 import smollm2_folder

    if importlib.util.find_spec("vllm") is None or check.tiny:
        yield Figure("vLLM", "not installed" if importlib.util.find_spec("vllm") is None else "not in a rehearsal")
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
                print(log.read_text(errors="replace")[-6000:])
                raise RuntimeError(f"the vLLM server ended with {server.poll()}")
            time.sleep(1)
        yield Figure("server started", time.monotonic() - started, "s")
        overrides = ("experiment=doc_edit", "engine=vllm", f"engine.base_url={url}", "trainer.max_steps=2")
        overrides += ("trainer.goals_per_step=2", "task.max_turns=2", *(_LETTERS if check.random_weights() else ()))
        run = Training(check, "vllm", overrides)
        gaps = [float(row["train/logprob_gap"]) for row in run.rows() if row["train/logprob_gap"]]
        ok = len(gaps) == 2 and max(gaps) < GAP
        yield Figure("log-prob gap, server to policy", max(gaps, default=math.nan), "nats a token", ok, f"below {GAP}")
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
