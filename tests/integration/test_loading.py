"""Loading and exporting models: checks, precision, LoRA round trips."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from collab.config.schema import LoraConfig, ModelConfig
from collab.lm import checks, device, loading, smollm2
from collab.modules.export import export_policy
from collab.util.errors import BadInput

CPU = torch.device("cpu")
IDS = torch.tensor([[1, 969, 198, 2683, 359, 253, 5356, 5646, 2, 28]])


def config_of(path, **lora) -> ModelConfig:
    return ModelConfig(name="test", path=str(path), lora=LoraConfig(r=4, **lora))


def load(path, **lora) -> torch.nn.Module:
    torch.manual_seed(0)
    return loading.load_model(config_of(path, **lora), torch.float32, CPU)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(input_ids=IDS).logits


def train_a_little(model) -> None:
    """Moves the trainable weights away from where they started, as an update would."""
    with torch.no_grad():
        for number, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.add_(0.05 * noise)


# --- checks ----------------------------------------------------------------------------------------------------------


def copy_without(folder: Path, target: Path, *names: str) -> Path:
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns(*names))
    return target


def test_a_good_folder_passes(tiny_model):
    checks.check_model(config_of(tiny_model))


def test_paths_that_are_no_model(tiny_model, tmp_path):
    def refused(path, rule: str) -> None:
        with pytest.raises(BadInput, match=rule) as caught:
            checks.check_model(config_of(path))
        assert str(path) in str(caught.value), "the message says what was given"

    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, "neither config.json nor adapter_config.json")
    a_file = tmp_path / "model.bin"
    a_file.write_text("")
    refused(a_file, "neither config.json nor adapter_config.json")
    refused(tmp_path / "missing" / "deep", "neither a model folder nor a Hugging Face id")
    refused("no-such-org/no-such-model", "neither a model folder nor a Hugging Face id")

    refused(copy_without(tiny_model, tmp_path / "no_weights", "*.safetensors"), "holds no weights")
    other_files = copy_without(tiny_model, tmp_path / "other_files", "*.safetensors")
    (other_files / "training_args.bin").write_bytes(b"x")
    refused(other_files, "holds no weights")
    cut = copy_without(tiny_model, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes(b"{}")
    refused(cut, "cannot be read")
    translator = copy_without(tiny_model, tmp_path / "translator", "config.json")
    (translator / "config.json").write_text(json.dumps({"model_type": "t5"}))
    refused(translator, "is a t5 model, which does not write text from left to right")
    mixed = copy_without(tiny_model, tmp_path / "mixed", "config.json")
    types = {"model_type": "lfm2", "layer_types": ["conv", "full_attention"], "num_hidden_layers": 2}
    (mixed / "config.json").write_text(json.dumps(types))
    refused(mixed, "has layers of kind conv, and the candidates")
    half = tmp_path / "half"
    half.mkdir()
    adapter = {"peft_type": "LORA", "base_model_name_or_path": str(tiny_model)}
    (half / "adapter_config.json").write_text(json.dumps(adapter))
    refused(half, "holds no weights .adapter_model.safetensors")
    (half / "adapter_config.json").write_text(json.dumps({**adapter, "base_model_name_or_path": None}))
    refused(half, "base_model_name_or_path is None")
    refused(copy_without(tiny_model, tmp_path / "no_tokenizer", "token*", "chat*"), "no tokenizer could be loaded")
    refused(copy_without(tiny_model, tmp_path / "no_template", "chat*"), "TokenizersBackend .* has no chat template")

    broken = copy_without(tiny_model, tmp_path / "broken", "config.json")
    (broken / "config.json").write_text("{")
    refused(broken, "neither a model folder")
    (broken / "config.json").write_text('{"model_type": "never_heard_of"}')
    refused(broken, "neither a model folder .*never_heard_of")

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{")
    refused(adapter, "neither a model folder")
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "/gone/base"}')
    refused(adapter, "its base is /gone/base")


def refused(path, *rules: str) -> None:
    with pytest.raises(BadInput) as caught:
        checks.check_model(config_of(path))
    assert all(text in str(caught.value) for text in (str(path), *rules)), caught.value


def swap_two_tokens(folder: Path) -> None:
    """As another tokenizer would: a text has other ids."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def test_an_adapter_of_another_base_is_refused(policy, tiny_model, tmp_path):
    folder = tmp_path / "policy"
    export_policy(policy, loading.load_tokenizer(config_of(tiny_model)), folder, merge=False)
    recorded = json.loads((folder / "adapter_config.json").read_text())
    base = copy_without(tiny_model, tmp_path / "base")  # replaced since, by something else
    (folder / "adapter_config.json").write_text(json.dumps({**recorded, "base_model_name_or_path": str(base)}))
    config = json.loads((base / "config.json").read_text())
    for changes, said in (
        ({"hidden_size": 32}, "mlp.down_proj.lora_B.weight is [64, 4] and would be [32, 4]."),
        (
            {"num_hidden_layers": 1},
            "model.layers.1.mlp.down_proj.lora_A.weight is [4, 128] and would be no part of it.",
        ),
        ({"model_type": "gpt2"}, "Target modules"),
    ):
        (base / "config.json").write_text(json.dumps({**config, **changes}))
        refused(folder, f"the adapter does not match its base {base}: ", said, "base_model_name_or_path")


def test_a_tokenizer_of_another_base_is_refused(policy, tiny_model, tmp_path):
    folder = tmp_path / "policy"
    export_policy(policy, loading.load_tokenizer(config_of(tiny_model)), folder, merge=False)
    swap_two_tokens(folder)
    refused(folder, f"its tokenizer is not that of its base {tiny_model}: 2 tokens have other ids")
    for file in folder.glob("*token*"):
        file.unlink()
    checks.check_model(config_of(folder))  # the base's own

    small = copy_without(tiny_model, tmp_path / "small")
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    refused(small, "has ids up to 8191, and the model", "has 100 tokens")


def test_flash_attention_is_refused_where_it_cannot_run(tiny_model, monkeypatch):
    config = config_of(tiny_model)
    config.attention = "flash_attention_2"
    cuda = torch.device("cuda")
    with pytest.raises(BadInput, match="the package flash-attn is not installed"):
        loading.load_model(config, torch.float32, CPU)

    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(BadInput, match="the model would be on cpu"):
        device.resolve_attention("flash_attention_2", torch.bfloat16, CPU)
    with pytest.raises(BadInput, match="the precision is float32"):
        device.resolve_attention("flash_attention_2", torch.float32, cuda)
    assert device.resolve_attention("flash_attention_2", torch.bfloat16, cuda) == "flash_attention_2"
    assert device.resolve_attention("auto", torch.bfloat16, cuda) == "flash_attention_2"
    assert device.resolve_attention("auto", torch.float32, cuda) is None
    assert device.resolve_attention("auto", torch.bfloat16, CPU) is None


def test_attention_names(tiny_model):
    config = config_of(tiny_model)
    for asked, used in (("auto", "sdpa"), ("sdpa", "sdpa"), ("eager", "eager")):
        config.attention = asked
        assert loading.load_model(config, torch.float32, CPU).config._attn_implementation == used


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.resolve_device("auto") == device.resolve_device("cpu") == CPU
    with pytest.raises(BadInput, match="no CUDA device"):
        device.resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device.resolve_device("auto") == device.resolve_device("cuda") == torch.device("cuda")
    assert device.resolve_device("cpu") == CPU


@pytest.mark.parametrize(
    "flags, native",
    [
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": True}, True),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, True),
        ({"architecture": "aarch64", "neon": True, "bf16": True}, True),
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"architecture": "aarch64", "neon": True}, False),
    ],
)
def test_cpu_precision(monkeypatch, flags, native):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    assert device.resolve_dtype("auto", CPU) == (torch.bfloat16 if native else torch.float32)
    assert device.resolve_dtype("fp32", CPU) == torch.float32
    if native:
        assert device.resolve_dtype("bf16", CPU) == torch.bfloat16
    else:
        with pytest.raises(BadInput, match="precision=bf16, and this cpu has no bf16 instructions"):
            device.resolve_dtype("bf16", CPU)


@pytest.mark.parametrize("capability, native", [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_cuda_precision(monkeypatch, capability, native):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    cuda = torch.device("cuda")
    assert device.resolve_dtype("auto", cuda) == (torch.bfloat16 if native else torch.float32)
    if not native:
        with pytest.raises(BadInput, match="capability 8.0"):
            device.resolve_dtype("bf16", cuda)


# --- LoRA and full fine-tuning ---------------------------------------------------------------------------------------


def test_a_fresh_adapter_changes_nothing_and_repeats(tiny_model):
    model = load(tiny_model)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert torch.equal(logits(model), logits(base))
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable and all("lora_" in name for name in trainable)
    assert not any("embed" in name or "lm_head" in name for name in trainable)
    assert not model.training and not any(m.training for m in model.modules()), "dropout is off"

    again = load(tiny_model).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())
    torch.manual_seed(1)
    other = loading.load_model(config_of(tiny_model), torch.float32, CPU).state_dict()
    assert any(not torch.equal(value, other[name]) for name, value in model.state_dict().items())


def test_the_adapter_is_fp32_over_a_bf16_base(tiny_model):
    model = loading.load_model(config_of(tiny_model), torch.bfloat16, CPU)
    dtypes = {("lora_" in name): p.dtype for name, p in model.named_parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    assert torch.isfinite(logits(model)).all()


def test_without_lora_every_weight_is_trained(tiny_model):
    model = load(tiny_model, enabled=False)
    assert not isinstance(model, peft.PeftModel) and all(p.requires_grad for p in model.parameters())
    bare = loading.load_model(config_of(tiny_model), torch.float32, CPU, adapter=False)
    assert not isinstance(bare, peft.PeftModel)


def test_targets_that_do_not_exist_are_refused(tiny_model):
    with pytest.raises(BadInput, match="model.lora cannot be put on .*no_such_layer"):
        load(tiny_model, target_modules=["no_such_layer"])


def test_chosen_targets(tiny_model):
    model = load(tiny_model, target_modules=["q_proj"])
    assert all("q_proj" in name for name, p in model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("enabled", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(tiny_model, enabled):
    gradients = []
    for checkpointing in (False, True):
        config = config_of(tiny_model, dropout=0.0, enabled=enabled)
        config.gradient_checkpointing = checkpointing
        torch.manual_seed(0)
        model = loading.load_model(config, torch.float32, CPU).train()
        train_a_little(model)
        model(input_ids=IDS, labels=IDS).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
        layer = next(m for m in model.modules() if hasattr(m, "gradient_checkpointing") and hasattr(m, "self_attn"))
        assert layer.gradient_checkpointing == checkpointing
    plain, recomputed = gradients
    assert all(grad is not None and grad.abs().sum() > 0 for grad in recomputed.values())
    assert all(torch.equal(grad, recomputed[name]) for name, grad in plain.items())


# --- export ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def policy(tiny_model) -> torch.nn.Module:
    model = load(tiny_model)
    train_a_little(model)
    return model


def test_adapter_round_trip(policy, tiny_model, tmp_path):
    expected = logits(policy)
    assert not torch.equal(expected, logits(load(tiny_model))), "the adapter must do something"
    folder = tmp_path / "run" / "policy"
    export_policy(policy, loading.load_tokenizer(config_of(tiny_model)), folder, merge=False)
    assert (folder / "adapter_model.safetensors").is_file() and not (folder / "model.safetensors").exists()
    assert list(folder.parent.iterdir()) == [folder]

    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder)), expected)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    base_logits = logits(base)
    assert torch.equal(logits(peft.PeftModel.from_pretrained(base, folder)), expected)  # changes `base` in place

    checks.check_model(config_of(folder))
    again = loading.load_model(config_of(folder), torch.float32, CPU, adapter=False)
    assert torch.equal(logits(again), expected)
    assert all(p.requires_grad == ("lora_" in name) for name, p in again.named_parameters()), "it can be trained on"
    with again.disable_adapter():
        assert torch.equal(logits(again), base_logits)
    merged = load(folder, enabled=False)
    assert not isinstance(merged, peft.PeftModel) and all(p.requires_grad for p in merged.parameters())
    torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=0)


def test_merged_export(policy, tiny_model, tmp_path):
    expected = logits(policy)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    export_policy(policy, loading.load_tokenizer(config_of(tiny_model)), tmp_path / "merged", merge=True)
    after = policy.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())
    assert torch.equal(logits(policy), expected)

    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(whole), expected, atol=1e-4, rtol=0)
    checks.check_model(config_of(tmp_path / "merged"))


@pytest.mark.parametrize("merge", [False, True])
def test_full_fine_tuning_exports_the_whole_model(tiny_model, tmp_path, merge):
    model = load(tiny_model, enabled=False)
    train_a_little(model)
    export_policy(model, loading.load_tokenizer(config_of(tiny_model)), tmp_path / "full", merge=merge)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "full")), logits(model))
    assert AutoTokenizer.from_pretrained(tmp_path / "full").chat_template


def test_an_export_replaces_the_earlier_one(policy, tiny_model, tmp_path, monkeypatch):
    tokenizer = loading.load_tokenizer(config_of(tiny_model))
    folder = tmp_path / "policy"
    export_policy(policy, tokenizer, folder, merge=True)
    export_policy(policy, tokenizer, folder, merge=False)
    assert not (folder / "model.safetensors").exists(), "nothing of the earlier export remains"
    assert list(tmp_path.iterdir()) == [folder]

    kept = {file.name: file.read_bytes() for file in folder.iterdir()}
    train_a_little(policy)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(tokenizer, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        export_policy(policy, tokenizer, folder, merge=False)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == kept
    assert list(tmp_path.iterdir()) == [folder]


def test_an_adapter_of_the_wheels_model_finds_its_base_elsewhere(policy, tiny_model, tmp_path, monkeypatch):
    """Trained on a machine whose cache lies elsewhere: the recorded folder does not exist here."""
    monkeypatch.setenv("COLLAB_CACHE", str(tmp_path / "cache"))
    shutil.copytree(tiny_model, smollm2.cached_folder())
    folder = tmp_path / "policy"
    export_policy(policy, loading.load_tokenizer(config_of(tiny_model)), folder, merge=False)
    recorded = json.loads((folder / "adapter_config.json").read_text())
    assert recorded["base_model_name_or_path"] == str(tiny_model)
    recorded["base_model_name_or_path"] = f"/another/machine/{smollm2.cached_folder().name}"
    (folder / "adapter_config.json").write_text(json.dumps(recorded))

    checks.check_model(config_of(folder))
    model = load(folder)
    assert torch.equal(logits(model), logits(policy))
    export_policy(model, loading.load_tokenizer(config_of(folder)), tmp_path / "second", merge=False)
    second = json.loads((tmp_path / "second" / "adapter_config.json").read_text())
    assert second["base_model_name_or_path"] == str(smollm2.cached_folder()), "a new export names where it is now"


def test_a_relative_base_is_recorded_absolutely(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_model.parent)
    model = load(tiny_model.name)
    export_policy(model, loading.load_tokenizer(config_of(tiny_model)), tmp_path / "policy", merge=False)
    monkeypatch.chdir(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "policy")), logits(model))


def test_the_configs_of_an_export_are_plain(tiny_model, tmp_path):
    """Settings of the run (attention, dtype of loading) must not force themselves on who loads the export."""
    model = load(tiny_model, enabled=False)
    export_policy(model, loading.load_tokenizer(config_of(tiny_model)), tmp_path / "full", merge=False)
    config = json.loads((tmp_path / "full" / "config.json").read_text())
    assert not any("attn_implementation" in key for key in config)
    assert AutoConfig.from_pretrained(tmp_path / "full").vocab_size == model.config.vocab_size
