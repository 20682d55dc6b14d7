"""`benchmarks/table.py`, `ablation.py` and `showcase.py`, their commands and pages, on a tiny model in this process."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from composing import load_config
from omegaconf import OmegaConf

from benchmarks import ablation, showcase, table
from benchmarks.steps import Step
from collab.app.evaluate import evaluate
from collab.app.synthesize import claim_folder, synthesize
from collab.app.train import train
from collab.config.checks import check
from collab.config.schema import Config
from collab.reports.results import validate_results

if TYPE_CHECKING:
    from conftest import Runner

SMALL = (
    "precision=fp32",
    "trainer.accelerator=cpu",
    "task.max_turns=2",
    "task.max_new_tokens=12",
    "sampler.group_size=2",
    "model.lora.r=2",
    "trainer.max_steps=1",
    "trainer.val_every=0",
    "trainer.goals_per_step=2",
    "evaluation.num_conversations=1",
    "algorithm.warmup_steps=0",
)
# The pairs of a random model are worth next to nothing: thresholds that are met for the real one leave nothing.
ANY_PAIR = {"dpo": "algorithm.minimum_gap=0", "sft": "algorithm.minimum_metric=null"}


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each training would draw its own, which takes longer than its one step."""
    monkeypatch.setattr("collab.app.train.training_curves", lambda metrics_csv, output: None)


def config_of(words: Sequence[str]) -> tuple[str, Config]:
    """The program and the checked config of a command."""
    if tuple(words[:2]) == ("-m", "collab"):
        words = words[2:]
    entry = words[0].removesuffix(".py")
    overrides = [word for word in words[1:] if word != "-m" and not word.startswith("hydra.")]
    output = next((word.partition("=")[2] for word in words if word.startswith("output_dir=")), "")
    config = load_config(entry, [word for word in overrides if not word.startswith("output_dir=")], output)
    check(config, entry)
    return entry, config


def play(entry: str, config: Config) -> None:
    os.makedirs(config.output_dir, exist_ok=True)
    if (data := Path(config.algorithm.data or "")).name == "demonstrations.jsonl":  # all of them take long to tokenise
        config.algorithm.data = f"{config.output_dir}/few.jsonl"
        Path(config.algorithm.data).write_text("\n".join(data.read_text(encoding="utf-8").splitlines()[:40]))
    if entry == "synthesize":
        claim_folder(config)
    {"train": train, "evaluate": evaluate, "synthesize": synthesize}[entry](config)


def recorded(steps: Sequence[Step]) -> dict[str, Mapping[str, Any]]:
    """As if each had taken two minutes."""
    return {
        step.name: {"command": step.shown(), "commit": "abc", "threads": 1, "spans": [[120 * i, 120 * i + 120]]}
        for i, step in enumerate(steps)
    }


def play_all(steps: Sequence[Step], folder: Path, jobs: int) -> dict[str, Mapping[str, Any]]:
    """In place of `run_steps`: all steps in this process."""
    for step in steps:
        entry, config = config_of([*step.command, *filter(None, [ANY_PAIR.get(step.name)])])
        play(entry, config)
        OmegaConf.save(OmegaConf.structured(config), f"{config.output_dir}/config.yaml")
    return recorded(steps)


def test_every_algorithm_from_synthesis_to_the_table(
    runner: Runner, letters_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(table, "run_steps", play_all)
    differs = (  # a random model's texts are all worth the same otherwise
        "task.metrics.pertinent.target=commands.Early",
        "task.metrics.pertinent.weight=1",
        "~task.metrics.pertinent.options.items_per_answer",
    )
    overrides = [*SMALL, *runner.files, f"model.path={letters_model}", *differs]
    assert table.main(["--output", str(tmp_path / "out"), *overrides]) == 0
    results = json.loads((tmp_path / "out/table.json").read_text())
    validate_results(results)
    assert list(results["policies"]) == ["base", "proactive", *table.TRAINED]
    assert list(results["difference"]) == ["base", *table.TRAINED]  # the proactive base is what they are held against
    assert results["seconds"] == {**{step: 120.0 for step in results["seconds"]}, "total": 7 * 120.0}
    page, said = (tmp_path / "out/table.md").read_text(), capsys.readouterr().out
    assert table.table(results) in page and table.table(results) in said
    assert "| official BLEU |" in page and "paper: " not in page
    assert page.count("in R\\* |") == 5 and "14 min 0 s of wall time" in page and "\nCPU with" in page
    assert page.count(" | abc | 2 min 0 s | 1 | `python ") == len(results["seconds"]) - 1
    # Policies start where the paper's do.
    starts = {
        name: json.loads((tmp_path / "out" / name / "results.json").read_text())["config"]["model"]["path"]
        for name in table.TRAINED
    }
    assert {starts[name] for name in ("dpo", "ppo", "grpo")} == {str(tmp_path / "out/sft/policy")}
    assert starts["online_dpo"].endswith("out/dpo/policy") and starts["sft"] == str(letters_model)


def test_what_was_wanted_is_judged_by_the_numbers() -> None:
    gaps = {"sft": 0.5, "dpo": 0.05, "ppo": -0.2, "online_dpo": 0.5, "grpo": None}
    found = {name: {"mean": gap, "ci95": gap and [gap - 0.1, gap + 0.1], "n": 4} for name, gap in gaps.items()}
    lines = table.verdicts({"difference": {name: {"reward": gap} for name, gap in found.items()}}).splitlines()[2:]
    told = [line.split("|")[3].strip() for line in lines]
    assert told == ["met", "met, but the interval reaches 0", "**missed**", "met", "**not measured**"]


def test_settings_are_trained_on_their_reward_and_measured_by_the_whole(
    runner: Runner, letters_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablation, "SEEDS", (2,))
    configs: dict[str, Config] = {}

    def run_all(steps: Sequence[Step], folder: Path, jobs: int) -> dict[str, Mapping[str, Any]]:
        first: Path | None = None
        for step in steps:
            if step.sweep is None:
                play(*config_of(step.command))
                continue
            key, values = step.sweep
            for value in values:
                run = folder / step.name / str(value)
                entry, config = config_of([*step.command, f"{key}={value}", f"output_dir={run}"])
                configs[f"{step.name}/{value}"] = config
                if first is None:  # one is trained; the others are its copies
                    play(entry, config)
                    first = run
                else:
                    shutil.copytree(first / "policy", run / "policy")
        return recorded(steps)

    monkeypatch.setattr(ablation, "run_steps", run_all)
    overrides = [*SMALL, *runner.files, f"model.path={letters_model}"]
    assert ablation.main(["--output", str(tmp_path / "out"), *overrides]) == 0
    assert {name: (c.sampler.window, c.seed) for name, c in configs.items()} == {
        **{f"windows-seed2/{window}": (window, 2) for window in (0, 1, 2, 3)},
        **{f"{part}/2": (1, 2) for part in ("extrinsic", "intrinsic")},
    }
    weights = {name: {m: c.task.metrics[m].weight for m in c.task.metrics} for name, c in configs.items()}
    whole = weights["windows-seed2/0"]
    assert [name for name, weight in whole.items() if not weight] == ["pertinent", "official_bleu"]
    assert weights["extrinsic/2"] == {**whole, "token_penalty": 0, "interactivity": 0}
    assert weights["intrinsic/2"] == {**whole, "bleu": 0, "coverage": 0, "copied": 0, "repetition": 0, "unsupported": 0}
    assert "coverage" in ablation.COLUMNS
    results = json.loads((tmp_path / "out/ablation.json").read_text())
    validate_results(results)
    assert list(results["policies"]) == ["base", "sft", *ablation.SETTINGS]
    assert {name: m["weight"] for name, m in results["config"]["task"]["metrics"].items()} == whole
    gaps = {name: found["reward"]["mean"] for name, found in results["difference"].items()}
    assert {name for name, gap in gaps.items() if gap == 0} >= {*ablation.SETTINGS[1:]}  # all are the same policy
    assert results["policies"]["window 0"]["reward"]["n"] == 2  # goals of one seed
    assert "w = 0 is not shown" in (tmp_path / "out/ablation.md").read_text()
    assert (tmp_path / "out/ablation.png").read_bytes().startswith(b"\x89PNG")


def test_seeds_and_goals_are_both_drawn_and_pairs_are_kept() -> None:
    goals = np.linspace(0, 1, 20)
    values = {
        name: {metric: np.stack([goals, goals + shift]) for metric in ablation.COLUMNS}
        for name, shift in zip(ablation.SETTINGS, (0.0, 0.1, 0.1, 0.1, -0.1, 0.0), strict=True)
    }
    values["base"] = {metric: goals[None] - 0.2 for metric in ablation.COLUMNS}
    found = ablation.summarise(values, 500)
    assert found["policies"]["window 0"]["reward"]["mean"] == pytest.approx(0.5)
    low, high = found["policies"]["window 0"]["reward"]["ci95"]
    assert 0.3 < low < 0.45 < 0.55 < high < 0.7  # by the goals
    claim = found["claim"]["reward"]  # one seed gains 0.1 with every goal, the other nothing: draws may miss it
    assert claim["mean"] == pytest.approx(0.05) and claim["ci95"] == pytest.approx([0.0, 0.1]) and claim["n"] == 40
    assert found["difference"]["extrinsic"]["reward"]["mean"] == pytest.approx(-0.05)
    assert found["policies"]["base"]["reward"]["n"] == 20 and found["difference"]["base"]["reward"]["n"] == 40
    assert "is not shown" in ablation.verdict(found)
    for gain, told in ((0.3, "holds"), (-0.3, "is contradicted")):
        moved = {
            name: {m: v + gain * name.startswith("window") * (name != "window 0") for m, v in metrics.items()}
            for name, metrics in values.items()
        }
        assert f"w = 0 {told}**" in ablation.verdict(ablation.summarise(moved, 500))


@pytest.mark.parametrize("script", [table, ablation])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["output_dir=here"], "output_dir=here: the script sets this itself"),
        (["trainer.max_step=2"], "There is no field trainer.max_step. Did you mean trainer.max_steps?"),
        (["--output", "a=b"], "must have nothing but letters, digits"),
    ],
)
def test_wrong_input_is_told_before_anything_runs(script: Any, arguments: list[str], said: str, capsys: Any) -> None:
    assert script.main(["--dry-run", *arguments]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("script", [table, ablation])
def test_a_dry_run_lists_commands_that_compose(script: Any, tmp_path: Path, capsys: Any) -> None:
    assert script.main(["--dry-run", "--output", str(tmp_path / "out"), "task.max_new_tokens=60"]) == 0
    said = capsys.readouterr().out
    assert not (tmp_path / "out").exists() and said.count("to be run") == len(said.splitlines()) / 2
    commands = [line for line in said.splitlines() if line.startswith("python")]
    assert all(command.count("task.max_new_tokens=60") == 1 for command in commands)


def test_the_showcase_goes_from_sft_through_grpo_to_the_page(
    runner: Runner, letters_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(showcase, "run_steps", play_all)
    overrides = [*SMALL, *runner.files, "task.num_test=2", "notes=[a small trial]"]
    assert showcase.main(["--output", str(tmp_path / "out"), "--seeds", "2", str(letters_model), *overrides]) == 0
    results = json.loads((tmp_path / "out/showcase.json").read_text())
    assert list(results) == ["2"] and list(results["2"]) == ["base", "proactive", "trained"]
    assert results["2"]["trained"]["reward"].keys() >= {"mean", "ci95"}
    start = json.loads((tmp_path / "out/grpo-2/results.json").read_text())["config"]["model"]["path"]
    assert start.endswith("out/sft/policy")
    page = (tmp_path / "out/showcase.md").read_text()
    assert (
        page.count("| base, R\\* ") == 2 and "SFT took 2 min 0 s, GRPO 2 min 0 s" in page
    )  # both test goals are shown
    assert page.count("- `sft`, `grpo-2`, `evaluation`: a small trial\n") == 1
    played = json.loads((tmp_path / "out/evaluation/results.json").read_text())
    assert list(played["policies"]) == ["base", "proactive", "sft", "grpo-2"]
    assert showcase.verdicts(played, [2]) in page and "| grpo, seed 2 − base |" in page
    gain = played["policies"]["grpo-2"]["reward"]["mean"] - played["policies"]["sft"]["reward"]["mean"]
    (over_sft,) = re.findall(r"GRPO over SFT, paired by goal: (\S+) \[", page)
    assert float(over_sft) == pytest.approx(gain, abs=0.0011)
    assert (tmp_path / "out/showcase.png").read_bytes().startswith(b"\x89PNG")
    whole = (tmp_path / "out/conversations.md").read_text()
    assert whole.count("## sft\n") == whole.count("## grpo, seed 2\n") == 1 and whole.count("### ") == 2 * 2
    said = capsys.readouterr().out
    assert showcase.table(played) in page and showcase.table(played) in said and showcase.verdicts(played, [2]) in said


def test_what_the_showcase_wanted_is_judged_by_the_numbers_of_each_seed() -> None:
    def found(reward: float, interactivity: float, pertinent: float, coverage: float, tokens: float) -> tuple[Any, Any]:
        def entry(mean: float) -> dict[str, Any]:
            return {"mean": mean, "ci95": [mean - 0.1, mean + 0.1], "n": 4}

        base = {"interactivity": 0.1, "pertinent": 0.5, "coverage": 0.1, "assistant_tokens": 100.0}
        trained = {
            "interactivity": interactivity, "pertinent": pertinent, "coverage": coverage, "assistant_tokens": tokens
        }  # fmt: skip
        rows = {"base": base, "proactive": {**base, "coverage": 0.2}, "trained": trained}
        policies = {name: {metric: entry(mean) for metric, mean in metrics.items()} for name, metrics in rows.items()}
        return policies, entry(reward)

    def results(*seeds: tuple[Any, Any]) -> dict[str, Any]:
        rows = {f"grpo-{number}": policies["trained"] for number, (policies, _) in enumerate(seeds, 1)}
        gains = {f"grpo-{number}": {"reward": reward} for number, (_, reward) in enumerate(seeds, 1)}
        return {"policies": {**seeds[0][0], **rows}, "difference": gains}

    good, bad = found(0.2, 0.51, 0.8, 0.31, 70.0), found(0.05, 0.49, 0.79, 0.29, 71.0)
    lines = showcase.verdicts(results(good, good), [1, 2]).splitlines()[2:]
    assert len(lines) == 5 and all(line.endswith("| met |") for line in lines)
    lines = showcase.verdicts(results(good, bad), [1, 2]).splitlines()[2:]
    assert all(line.endswith("| **missed** (met with 1 of 2 seeds) |") for line in lines)


def test_a_conversation_cannot_break_the_page(tmp_path: Path) -> None:
    said = [{"role": "system", "content": "Ask."}, {"role": "user", "content": "a | b\n<script>"}]
    rows = [{"policy": name, "goal": "g", "messages": said, "reward": 1.0} for name in ("base", "grpo-1")]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    told = showcase.conversations(tmp_path / "t.jsonl", "grpo-1")
    assert "| **User:** a \\| b<br>&lt;script> | **User:** a \\| b<br>&lt;script> |" in told and "Ask." not in told


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name the model first"),
        (["trainer.max_steps=3"], "name the model first"),
        (["some/model", "--seeds", "1;2"], "--seeds 1;2"),
        (["qwen25_coder_5b", "--dry-run"], "qwen25_coder_5b: there is no such preset and no such folder"),
        (["./nowhere", "--dry-run"], "./nowhere: there is no such preset and no such folder"),
    ],
)
def test_the_showcase_wants_a_model_and_seeds(words: list[str], said: str, capsys: Any) -> None:
    assert showcase.main(words) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and ("--dry-run" not in words or "Presets: gemma3_1b" in error)


def test_the_showcase_takes_presets_folders_and_hub_ids(tmp_path: Path) -> None:
    for model in ("qwen25_coder_05b", "Qwen/Qwen2.5-0.5B-Instruct", str(tmp_path)):
        showcase.check_name(model)
