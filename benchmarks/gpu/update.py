"""Parts of the GPU check on the update: GRPO's loss against the CPU's, and speed and memory beside TRL."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib.util
import statistics
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.gpu.models import random_lm
from benchmarks.gpu.process import ROOT, Check, Figure, Figures, tried

sys.path.insert(0, str(ROOT / "benchmarks" / "peers"))  # what is there imports its neighbours by their bare names

LOSS_TOLERANCE = 2e-3  # absolute, in fp32
GRADIENT_TOLERANCE = 1e-3  # relative, of the norm, in fp32
LOGPROB_TOLERANCE = 1e-3  # nats, in fp32


@contextlib.contextmanager
def mask(blocks: bool, device: str) -> Iterator[None]:
    """In this context packed groups on a GPU are computed by blocks (FlexAttention), or else under the dense mask.

    Raises:
        RuntimeError: On a GPU something was computed in the other way, or nothing at all.
    """
    from collab.modules import policy

    kept = policy.takes_blocks
    taken: list[bool] = []

    def takes_blocks(lm: Any, device: Any) -> bool:
        taken.append(blocks and kept(lm, device))
        return taken[-1]

    policy.takes_blocks = takes_blocks
    try:
        yield
    finally:
        policy.takes_blocks = kept
    if device == "cuda" and set(taken) != {blocks}:
        raise RuntimeError(f"not all was computed {'by blocks' if blocks else 'under the dense mask'}: {taken}")


# --- the loss --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Step:
    """What a GRPO update computes: its loss, the norm of its gradient, and log-probs [tokens] on the CPU."""

    loss: float
    norm: float
    logprobs: Any


def losses(check: Check) -> Figures:
    """GRPO's loss, gradient norm and log-probs on fixed replies, on this device against the CPU in fp32.

    In fp32 by blocks and under the dense mask, in bf16 by blocks. A CPU knows the dense mask alone.
    """
    import torch

    reference = _step_on(check, "cpu", torch.float32, blocks=True)
    yield Figure("GRPO on the CPU in fp32: loss", reference.loss)
    cases = {"by blocks": (torch.float32, True), "dense mask": (torch.float32, False)}
    if not check.tiny:
        cases["bf16"] = (torch.bfloat16, True)

    def compared(name: str, dtype: Any, blocks: bool) -> Figures:
        found = _step_on(check, check.device, dtype, blocks, reference.logprobs)
        distances = (
            ("log-probs apart, largest", (found.logprobs - reference.logprobs).abs().max(), LOGPROB_TOLERANCE, "nats"),
            ("loss apart", abs(found.loss - reference.loss), LOSS_TOLERANCE, ""),
            (
                "gradient norm apart, relative",
                abs(found.norm - reference.norm) / reference.norm,
                GRADIENT_TOLERANCE,
                "",
            ),
        )
        for what, distance, tolerance, unit in distances:
            ok = float(distance) <= tolerance if dtype == torch.float32 else None
            yield Figure(f"{name}: {what}", float(distance), unit, ok, "against the CPU in fp32")

    for name, (dtype, blocks) in cases.items():
        yield from tried(name, partial(compared, name, dtype, blocks))


def _step_on(check: Check, device: str, dtype: Any, blocks: bool, sampled: Any = None) -> Step:
    """`grpo_step` of the default model with an adapter that is the same on all devices."""
    import torch

    from collab.config.schema import ModelConfig
    from collab.lm.loading import load_model

    torch.manual_seed(0)
    lm = load_model(ModelConfig(name="check"), dtype, torch.device(device))
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if "lora_B" in name:  # so that the adapter's first half has a gradient too
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
                parameter.copy_(1e-3 * noise)
    shape = (20, 3, 8) if check.tiny else (256, 4, 64)
    with mask(blocks, device):
        return grpo_step(lm, *shape, sampled)


def grpo_step(lm: Any, history: int, candidates: int, tokens: int, sampled: Any = None) -> Step:
    """GRPO on replies that are always the same.

    The log-probs at sampling time are near `sampled` [tokens], or near the model's own if that is None.
    """
    import torch
    from update_ours import group_of
    from update_sides import TEMPERATURE

    from collab.modules.packing import pack

    module, group = group_of(lm, history, candidates, tokens)
    group = dataclasses.replace(group, weights=tuple(1.0 - 2.0 * (n % 2) + 0.25 * n for n in range(candidates)))
    packed = pack([group.replies], TEMPERATURE).to(lm.device)
    if sampled is None:
        with torch.no_grad():
            sampled = module.policy(packed).logprobs
    noise = 0.1 * torch.randn(len(packed.targets), generator=torch.Generator().manual_seed(3))
    packed = dataclasses.replace(packed, sampled_logprobs=(sampled.float().cpu() + noise).to(lm.device))
    output = module.policy(packed)
    loss = module.loss([group], packed, output, None) / module.units(group)
    loss.backward()
    grads = [parameter.grad.float().norm() for parameter in module.policy.parameters() if parameter.grad is not None]
    return Step(float(loss), float(torch.stack(grads).norm()), output.logprobs.detach().float().cpu())


# --- speed and memory ------------------------------------------------------------------------------------------------


def update(check: Check, size: str) -> Figures:
    """Candidate tokens a second and peak memory of a LoRA update: by blocks, under the dense mask, and TRL's."""
    from update_ours import update_of

    shape = dict(history=20, candidates=2, tokens=6) if check.tiny else dict(history=512, candidates=8, tokens=64)
    key, norms = check.size(size), dict[str, float]()

    def ours(name: str, blocks: bool) -> Figures:
        with mask(blocks, check.device):
            lm = random_lm(key, check.dtype, check.device, lora=True)
            yield from _measured(check, name, shape, norms, *update_of(lm, **shape))

    def trl() -> Figures:
        from transformers import AutoTokenizer
        from update_trl import update_of as trl_update_of

        from collab.config.schema import LoraConfig
        from collab.lm.smollm2 import smollm2_folder

        lm, lora = random_lm(key, check.dtype, check.device), LoraConfig()
        tokenizer = AutoTokenizer.from_pretrained(smollm2_folder())
        side = trl_update_of(lm, tokenizer, **shape, rank=lora.r, alpha=lora.alpha, device=check.device)
        yield from _measured(check, "TRL", shape, norms, *side)

    yield from tried("ours by blocks", lambda: ours("ours by blocks", True))
    free(check.device)
    if check.device == "cuda":
        yield from tried("ours, dense mask", lambda: ours("ours, dense mask", False))
        free(check.device)
    if importlib.util.find_spec("trl") is None:
        yield Figure("TRL", "not installed")
    elif check.fork:
        yield Figure("TRL", "not in forks", note="they are there to save imports, and TRL's take longest")
    else:
        yield from tried("TRL", trl)


def _measured(
    check: Check, name: str, shape: dict[str, int], norms: dict[str, float], step: Any, trained: Any
) -> Figures:
    """Figures of one side; its gradient's norm is compared with those in `norms`, and put there."""
    from update_sides import measured

    from benchmarks.update import NORM_TOLERANCE

    measured(step, trained, check.device)  # does not count
    found = [measured(step, trained, check.device) for _ in range(1 if check.tiny else 3)]
    seconds = statistics.median(one["seconds"] for one in found)
    yield Figure(f"{name}: update", shape["candidates"] * shape["tokens"] / seconds, "candidate tokens/s")
    yield Figure(f"{name}: peak above weights", max(one["peak_bytes"] for one in found) / 1e9, "GB")
    norm = found[-1]["gradient_norm"]
    yield Figure(f"{name}: gradient norm", norm, ok=norm > 0)
    for other, theirs in norms.items():
        apart = abs(norm - theirs) / theirs
        yield Figure(
            f"{name}: norm apart from {other}, relative",
            apart,
            "",
            None if check.tiny else apart <= NORM_TOLERANCE,  # the adapters' random weights average out in large models
            f"at most {NORM_TOLERANCE}",
        )
    norms[name] = norm


def free(device: str) -> None:
    """Give back the memory of what nobody holds any more."""
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
