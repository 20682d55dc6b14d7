"""`model.path` as a GGUF file: converted once, then as good as the folder that it was made from."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import templates
import torch
from gguf_writer import TOKENS, write_qwen2
from models import tiny_lm
from transformers import AutoModelForCausalLM

from collab.chat.base import Sampling
from collab.config.schema import LoraConfig, ModelConfig
from collab.conversation import Message
from collab.generation.engine import LocalEngine
from collab.lm import checks, gguf_files, loading
from collab.modules.export import export_policy
from collab.randomness import RngKey
from collab.util.errors import BadInput

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 99, 230, 7, 256, 64]])


@pytest.fixture(scope="module")
def lm() -> Any:
    return tiny_lm(len(TOKENS), "Qwen2", bias=0.2, tie_word_embeddings=True, rms_norm_eps=1e-6)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path: Path, lm: Any, cache: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    write_qwen2(path, lm, templates.CHATML)
    return path


def config_of(path: Path) -> ModelConfig:
    return ModelConfig(name="test", path=str(path), lora=LoraConfig(r=4))


def load(path: Path) -> Any:
    torch.manual_seed(0)
    return loading.load_model(config_of(path), torch.float32, CPU)


@torch.no_grad()
def logits(lm: Any) -> torch.Tensor:
    found: torch.Tensor = lm(input_ids=IDS).logits
    return found


def test_a_file_is_converted_once_to_the_model_that_it_was_made_from(
    file: Path, lm: Any, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "replies end with <|im_end|>" in checks.check_model(config_of(file))
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err.count("Converting tiny.gguf") == 1
    (folder,) = cache.iterdir()
    assert loading.locate(config_of(file)) == (str(folder), None)
    assert torch.equal(logits(load(file)), logits(lm))
    assert loading.num_positions(config_of(file)) == 128
    assert "Converting" not in capfd.readouterr().err

    tokenizer: Any = loading.load_tokenizer(config_of(file))
    assert tokenizer.convert_ids_to_tokens(range(len(TOKENS))) == TOKENS
    assert tokenizer.tokenize("the 12\n\nx") == ["the", "\u0120", "1", "2", "\u010a\u010a", "x"]
    chat = [{"role": "user", "content": "the"}]
    ids = tokenizer.apply_chat_template(chat, tokenize=True, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert tokenizer.decode(ids) == "<|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\n"
    assert ids.count(tokenizer.eos_token_id) == 1


def test_it_speaks_and_learns_and_the_adapter_finds_its_base(file: Path, tmp_path: Path) -> None:
    policy, tokenizer = load(file), loading.load_tokenizer(config_of(file))
    engine = LocalEngine(policy, tokenizer)
    reply = asyncio.run(engine.complete([Message("user", "the")], Sampling(8), RngKey(1)))
    assert 1 <= len(reply.token_ids) <= 8

    ids = torch.tensor([[*reply.prompt_ids, *reply.token_ids]])
    labels = ids.clone()
    labels[:, : len(reply.prompt_ids)] = -100
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    before = policy(input_ids=ids, labels=labels).loss
    before.backward()
    optimizer.step()
    assert policy(input_ids=ids, labels=labels).loss < before

    export_policy(policy, tokenizer, tmp_path / "policy", merge=False)
    checks.check_model(config_of(tmp_path / "policy"))
    assert torch.allclose(logits(load(tmp_path / "policy")), logits(policy), atol=1e-5)
    export_policy(policy, tokenizer, tmp_path / "merged", merge=True)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(merged), logits(policy), atol=1e-5)


def test_half_precision_stays_half(tmp_path: Path, lm: Any, cache: Path) -> None:
    path = tmp_path / "half.gguf"
    write_qwen2(path, lm, templates.CHATML, dtype=np.float16)
    assert gguf_files.check_gguf(path) == torch.float16
    half = AutoModelForCausalLM.from_pretrained(gguf_files.gguf_folder(path), dtype=torch.float32)
    assert torch.equal(half.model.embed_tokens.weight, lm.model.embed_tokens.weight.half().float())


def test_the_positions_of_llama_3_are_read(tmp_path: Path, cache: Path) -> None:
    """Its file has a factor for each frequency; long waves are slowed down, short ones are not."""
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 8192}
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16384}
    lm = tiny_lm(len(TOKENS), "Qwen2", tie_word_embeddings=True, rms_norm_eps=1e-6, rope_parameters=rope, **sizes)
    plain = 5e5 ** -(np.arange(16) / 16)
    waves = 2 * np.pi / plain
    smooth = np.clip((8192 / waves - 1) / 3, 0, 1)
    factors = 1 / ((1 - smooth) / 32 + smooth)
    assert set(np.round(factors, 3)) > {1.0, 32.0}
    path = tmp_path / "long.gguf"
    write_qwen2(path, lm, templates.CHATML, extra={"rope_freqs.weight": factors.astype(np.float32)})
    checks.check_model(config_of(path))
    ids, read = torch.arange(600)[None] % len(TOKENS), load(path)
    with torch.no_grad():
        assert torch.allclose(read(input_ids=ids).logits, lm(input_ids=ids).logits, atol=1e-4)
        read.config.rope_parameters["rope_type"] = "default"
        unscaled = type(lm)(read.config)
        unscaled.load_state_dict(lm.state_dict())
        assert not torch.allclose(unscaled.eval()(input_ids=ids).logits, lm(input_ids=ids).logits, atol=0.05)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"template": None}, "it has no chat template to render conversations with. Take an instruct model."),
        ({"architecture": "rwkv6"}, "does not read GGUF files of the architecture 'rwkv6'"),
        ({"pre": "exotic"}, r"does not know how its tokenizer splits text \('exotic'\). Take the model's Hugging"),
        ({"split__count": 3}, "one of several parts. Join them with `llama-gguf-split --merge`."),
        ({"qwen2__rope__scaling__type": "yarn"}, "scales the frequencies of its positions"),
        ({"extra": {"rope_freqs.weight": np.float32([1, 2, 3, 5])}}, "scales the frequencies of its positions"),
    ],
)
def test_a_file_that_would_be_read_wrongly_is_refused_before_it_is_read(
    tmp_path: Path, lm: Any, cache: Path, changes: dict[str, Any], said: str
) -> None:
    path = tmp_path / "odd.gguf"
    write_qwen2(path, lm, **{"template": templates.CHATML, **changes})
    with pytest.raises(BadInput, match=f"model.path='{path}': .*{said}"):
        checks.check_model(config_of(path))
    assert not cache.exists()


def test_a_file_of_another_kind_and_a_missing_package_are_refused(
    file: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.gguf").write_text("no model, and longer than a header: " * 3)
    with pytest.raises(BadInput, match="text.gguf': it cannot be read as GGUF"):
        checks.check_model(config_of(tmp_path / "text.gguf"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    with pytest.raises(BadInput, match="the package gguf, which is not installed. Run `pip install gguf`."):
        checks.check_model(config_of(file))
    assert not cache.exists()
