"""Where a run starts from: stored conversations, and what another run exported, as the paper chains them."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import load_config
from rich.console import Console
from stepping import fit
from test_modules import KINDS, group, weights
from transformers import AutoTokenizer

from collab.app.cli import main
from collab.app.resume import RunState
from collab.app.train import fit as fit_by_config
from collab.callbacks.progress import Progress
from collab.chat.endpoints import Endpoints
from collab.config.checks import check
from collab.config.schema import LoraConfig, ModelConfig
from collab.lm.loading import load_model
from collab.modules.base import PolicyModule
from collab.modules.export import export_policy
from collab.modules.packing import pack

GROUPS = [group(1, (0.1, 0.9, 0.4)), group(2, (0.8, 0.2))]
BATCH = pack([[candidate.reply for candidate in one.candidates] for one in GROUPS], 0.7)


def module_from(kind: str, path: Path) -> PolicyModule:
    model = ModelConfig(name="test", path=str(path), lora=LoraConfig(r=4))
    target, config = KINDS[kind]

    def load() -> Any:
        torch.manual_seed(0)
        return load_model(model, torch.float32, torch.device("cpu"))

    module = target(config(lr=1e-2, warmup_steps=0), load, None, 0.7, 2)
    module.configure_model()
    return module


@torch.no_grad()
def logprobs(module: PolicyModule, reference: bool = False) -> torch.Tensor:
    assert module.policy is not None
    return module.policy(BATCH, reference=reference).logprobs


@pytest.mark.parametrize(("first", "second", "merge"), [("sft", "ppo", False), ("dpo", "dpo", True)])
def test_a_run_goes_on_from_an_exported_policy(
    first: str, second: str, merge: bool, tiny_model: Path, tmp_path: Path
) -> None:
    start = module_from(first, tiny_model)
    fit(start, GROUPS, steps=2)
    assert start.policy is not None
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    export_policy(start.policy.lm, tokenizer, tmp_path / "policy", merge=merge)

    again = module_from(second, tmp_path / "policy")
    torch.testing.assert_close(logprobs(again), logprobs(start), atol=1e-4, rtol=0)
    assert (logprobs(start) - logprobs(start, reference=True)).abs().max() > 0.01
    # An adapter goes on as it is, over the base that it was trained on; merged, it is the start and the reference.
    held = logprobs(start) if merge else logprobs(start, reference=True)
    torch.testing.assert_close(logprobs(again, reference=True), held, atol=1e-4, rtol=0)

    before = weights(again)
    fit(again, GROUPS)
    changed = {name for name, weight in weights(again).items() if not torch.equal(weight, before[name])}
    assert changed and all("lora_" in name or "value_head" in name for name in changed)
    assert any("lora_A" in name for name in changed) != merge  # a fresh adapter's A moves once its B is not zero

    # What a run leaves has no value head: another one loads it as any policy.
    assert again.policy is not None
    export_policy(again.policy.lm, tokenizer, tmp_path / "second", merge=False)
    assert torch.equal(logprobs(module_from("grpo", tmp_path / "second")), logprobs(again))


# --- by the config, from stored conversations to PPO -----------------------------------------------------------------


def stored(folder: Path, *scores: tuple[float, float]) -> Path:
    """Conversations of one turn each, as JSONL in the nested layout, with two responses to choose from."""
    rows = []
    for number, (first, second) in enumerate(scores):
        prompt = [{"role": "user", "content": f"I need notice number {number}."}]
        responses = [
            {"completion": "What should it say?", "score": first, "rewards": {"bleu": [0.5]}},
            {"completion": "Here it is: a notice.", "score": second, "rewards": {"bleu": [0.1]}},
        ]
        rows.append({"conv_id": number, "turns": [{"prompt": prompt, "responses": responses}]})
    file = folder / "conversations.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def overrides(tiny_model: Path, tmp_path: Path) -> list[str]:
    files = []
    for split, title in (("train", "kiln"), ("val", "pear"), ("test", "choir")):
        goal = {"single_turn_prompt": f"A notice about the {title}.", "single_turn_completion": f"The {title} is here."}
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(goal))
        files.append(f"task.{split}_file={tmp_path / split}.jsonl")
    return [
        *files,
        "experiment=doc_edit",
        f"model.path={tiny_model}",
        "model.lora.r=4",
        "precision=fp32",
        "trainer.accelerator=cpu",
        "algorithm.warmup_steps=0",
        "trainer.max_steps=1",
        "trainer.val_every=1",
        "trainer.goals_per_step=2",
        "task.max_turns=1",
        "task.max_new_tokens=12",
        "sampler.group_size=2",
        "logger=csv",
        "callbacks=quiet",
    ]


def run(folder: Path, *overrides: str) -> tuple[str, dict[str, str]]:
    """What a run prints, and what it logs."""
    config = load_config("train", list(overrides), output_dir=str(folder))
    check(config)
    told = io.StringIO()
    with Progress(animate=False, console=Console(file=told)) as progress, Endpoints(config) as endpoints:
        fit_by_config(config, progress, endpoints, RunState(folder, "train"))
    with (folder / "csv" / "metrics.csv").open() as file:
        logged = {name: value for row in csv.DictReader(file) for name, value in row.items() if value}
    return told.getvalue(), logged


def test_ppo_starts_from_an_sft_policy_that_learned_from_a_file(overrides: list[str], tmp_path: Path) -> None:
    data = stored(tmp_path, (0.9, 0.1), (0.2, 0.6), (0.7, 0.3))
    sft = ["algorithm=sft", f"algorithm.data={data}", "algorithm.minimum_metric=bleu", "algorithm.minimum_value=0.2"]
    told, logged = run(tmp_path / "sft", *overrides, *sft, "seed=3")
    assert f"{data}: 2 replies of 3 groups, 1 filtered by algorithm.minimum_metric" in told
    assert float(logged["train/loss"]) > 1 and "train/filtered_groups" in logged
    assert "train/mr" not in logged and "val/reward" in logged  # nothing is played to train

    policy = f"model.path={tmp_path / 'sft' / 'policy'}"
    told, logged = run(tmp_path / "ppo", *overrides, "algorithm=ppo", policy)
    assert float(logged["train/kl"]) > 1e-6  # SFT has left the base, which is the reference
    assert {"train/mr", "train/values_explained"} <= logged.keys()
    assert (tmp_path / "ppo" / "policy" / "adapter_model.safetensors").is_file()


def test_data_without_a_usable_pair_is_refused_before_anything_is_made(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = stored(tmp_path, (0.8, 0.7), (0.2, 0.3))
    given = ["algorithm=dpo", f"algorithm.data={data}", "algorithm.minimum_gap=0.2", f"output_dir={tmp_path / 'run'}"]
    monkeypatch.setattr(sys, "argv", ["train.py", *overrides, *given])
    with pytest.raises(SystemExit) as ended:
        main("train")
    error = capsys.readouterr().err
    assert ended.value.code == 1 and "Traceback" not in error
    assert f"algorithm.data={data} has no usable pair for dpo in its 2 groups: the largest gap" in error
    assert not (tmp_path / "run").exists()
