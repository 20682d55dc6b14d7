"""Which device, precision and attention this machine can run a model with."""

from __future__ import annotations

import importlib.util

import torch

from collab.util.errors import BadInput


def resolve_attention(attention: str, dtype: torch.dtype, device: torch.device) -> str | None:
    """The `attn_implementation` for transformers.

    `auto` is flash_attention_2 if flash-attn is installed and can run, or else None: transformers then chooses sdpa, or
    eager for an architecture without it.

    Args:
        attention: As `ModelConfig.attention`.
        dtype: That attention is computed in.
        device: Of the model.

    Raises:
        BadInput: `attention` is flash_attention_2 and cannot run. Without this check transformers would try to fetch a
            kernel from the hub.
    """
    if attention not in ("auto", "flash_attention_2"):
        return attention
    obstacle = ""
    if importlib.util.find_spec("flash_attn") is None:
        obstacle = "the package flash-attn is not installed"
    elif device.type != "cuda":
        obstacle = f"it runs on CUDA devices and the model would be on {device.type}"
    elif dtype not in (torch.bfloat16, torch.float16):
        obstacle = f"it computes in 16 bits and the precision is {str(dtype).removeprefix('torch.')}"
    if not obstacle:
        return "flash_attention_2"
    if attention == "auto":
        return None
    raise BadInput(f"model.attention=flash_attention_2 cannot run: {obstacle}. Set model.attention=auto or sdpa.")


def resolve_device(accelerator: str) -> torch.device:
    """The device for `accelerator` (auto, cpu or cuda); `auto` is CUDA if there is a device, or else the CPU.

    Raises:
        BadInput: `accelerator` is cuda and there is no device.
    """
    available = torch.cuda.is_available()
    if accelerator == "cuda" and not available:
        raise BadInput(
            "trainer.accelerator=cuda, and torch sees no CUDA device. Set trainer.accelerator=auto or cpu, or install "
            "a torch built for CUDA and check that `nvidia-smi` lists a device."
        )
    return torch.device("cuda" if available and accelerator != "cpu" else "cpu")


def resolve_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype for `precision` (auto, bf16 or fp32); `auto` is bfloat16 if `device` computes in it, or else float32.

    Raises:
        BadInput: `precision` is bf16 and the device would only emulate it.
    """
    native = has_native_bf16(device)
    if precision == "bf16" and not native:
        raise BadInput(
            f"precision=bf16, and this {device.type} has no bf16 instructions (CUDA needs capability 8.0, x86 needs "
            "avx512_bf16 or amx_bf16, ARM needs bf16): it would be emulated and slow. Set precision=auto or fp32."
        )
    return torch.bfloat16 if native and precision != "fp32" else torch.float32


def has_native_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bf16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # torch.ops.mkldnn._is_mkldnn_bf16_supported also says yes to plain AVX-512, where bf16 is emulated.
    flags = torch.cpu.get_capabilities()
    return any(flags.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
