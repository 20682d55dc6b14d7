"""The presets of `model=`: the memory that their files state is the arithmetic of docs/scaling.md on their shapes."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import transformers
from composing import load_config
from transformers import AutoModelForCausalLM

from benchmarks.gpu.memory import Memory
from collab.util.paths import config_dir

_QWEN25_05B = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
               "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True}  # fmt: skip
_QWEN25_15B = {**_QWEN25_05B, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
               "num_attention_heads": 12}  # fmt: skip
_LLAMA = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
          "num_key_value_heads": 8, "vocab_size": 128256}  # fmt: skip
_SMOLLM = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
           "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True}  # fmt: skip
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {  # as the models' config.json have them
    "smollm2": ("Llama", _SMOLLM),
    "smollm2_360m": ("Llama", {**_SMOLLM, "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32,
                               "num_attention_heads": 15, "num_key_value_heads": 5}),
    "qwen25_05b": ("Qwen2", _QWEN25_05B),
    "qwen25_coder_05b": ("Qwen2", _QWEN25_05B),
    "qwen25_15b": ("Qwen2", _QWEN25_15B),
    "qwen25_coder_15b": ("Qwen2", _QWEN25_15B),
    "qwen3_06b": ("Qwen3", {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
                            "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
                            "vocab_size": 151936, "tie_word_embeddings": True}),
    "llama32_1b": ("Llama", {**_LLAMA, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
                             "tie_word_embeddings": True}),
    "llama31_8b": ("Llama", _LLAMA),
    "llama31_70b": ("Llama", {**_LLAMA, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
                              "num_attention_heads": 64}),
    "gemma3_1b": ("Gemma3Text", {"hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26,
                                 "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
                                 "vocab_size": 262144}),
}  # fmt: skip


def test_every_preset_is_looked_at():
    assert SHAPES.keys() == {file.stem for file in (config_dir() / "model").glob("*.yaml")}


def sizes(name: str, layers: int) -> torch.Tensor:
    """[2]: parameters of a preset with so many layers, and of its adapter."""
    family, shape = SHAPES[name]
    lora = load_config("train", [f"model={name}"]).model.lora
    with torch.device("meta"):
        config = getattr(transformers, f"{family}Config")(**{**shape, "num_hidden_layers": layers})
        model = AutoModelForCausalLM.from_config(config)
        weights = sum(parameter.numel() for parameter in model.parameters())
        model = peft.get_peft_model(model, peft.LoraConfig(r=lora.r, target_modules=lora.target_modules))
    return torch.tensor([weights, sum(p.numel() for key, p in model.named_parameters() if "lora_" in key)])


def whole(name: str) -> list[int]:
    """Parameters of a preset, and of its adapter."""
    one, two = sizes(name, 1), sizes(name, 2)
    counts: list[int] = (one + (two - one) * (SHAPES[name][1]["num_hidden_layers"] - 1)).tolist()
    return counts


def test_what_fits_on_one_gpu_is_the_arithmetic():
    page = (config_dir().parent / "docs" / "scaling.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) GB \| `(\w+)` \| (\d+) \|(.*)\|$", page, re.M)
    assert [(gpu, name) for gpu, name, *_ in rows[-2:]] == [("48", "llama31_8b"), ("80", "llama31_8b")]
    for gpu, name, batch, said in rows:
        shape = SimpleNamespace(**SHAPES[name][1])
        found = Memory.of(shape, *whole(name), rows=int(batch), length=4096, tokens=8192)
        expected = [found.between / 1e9, found.rollout / 1e9, found.update / 1e9]
        assert [float(size) for size in said.split("|")] == pytest.approx(expected, abs=0.06)
        assert max(expected) + 5 < float(gpu)  # with CUDA and fragments
    assert Memory.of(SimpleNamespace(**_LLAMA), *whole("llama31_8b"), rows=1, length=4096, tokens=8192).update > 19e9


@pytest.mark.parametrize("name", SHAPES)
def test_a_preset_states_its_memory(name):
    weights, adapter = whole(name)
    text = (config_dir() / "model" / f"{name}.yaml").read_text()
    stated = [float(number) for number in re.findall(r"([\d.]+) GB", text)]
    expected = [2 * weights, 2 * weights + 16 * adapter, 4 * weights + 16 * adapter, 10 * weights]
    assert stated == pytest.approx([size / 1e9 for size in expected], abs=0.006, rel=0.005)
    assert "r = 32" in text


def test_the_rate_of_sft_falls_with_the_square_of_the_width():
    assert load_config("train", ["algorithm=sft_small", "model=qwen25_coder_05b"]).algorithm.lr == 4e-4
    for name, (_, shape) in SHAPES.items():
        expected = 1e-3 * (SHAPES["smollm2"][1]["hidden_size"] / shape["hidden_size"]) ** 2
        if name == "qwen25_coder_15b":
            expected = 2.5e-4  # measured
        assert load_config("train", [f"model={name}"]).model.sft_lr == pytest.approx(expected, rel=0.05)


def test_a_preset_has_the_arguments_of_its_template():
    given = {name: load_config("train", [f"model={name}"]).model.chat_template_kwargs for name in SHAPES}
    assert {name: arguments for name, arguments in given.items() if arguments} == {
        "qwen3_06b": {"enable_thinking": False},
        "llama32_1b": {"date_string": "26 Jul 2024"},
    }
    model = load_config("train", ["model=qwen3_06b", "model.chat_template_kwargs.enable_thinking=true"]).model
    assert model.chat_template_kwargs == {"enable_thinking": True}
