"""What is refused once torch and the model's files are at hand, and before any weight is read."""

import json
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from composing import load_config

from collab.app import build
from collab.app.preflight import check_machine
from collab.config.schema import Config
from collab.config.tasks import further_tasks
from collab.datamodules.conversations import load_groups
from collab.datamodules.goals import load_splits
from collab.lm import checks, device, loading
from collab.sandbox import run
from collab.util.errors import BadInput


@pytest.fixture
def checked(tiny_model, monkeypatch):
    """Composes a config around the tiny model, on a CPU unless told otherwise, and checks it."""
    for module in (loading, build):
        monkeypatch.setattr(module, "load_model", lambda *_, **__: pytest.fail("weights were read"))

    def check(*overrides: str, entry: str = "train") -> Config:
        given = [f"model.path={tiny_model}", "trainer.accelerator=cpu", "precision=fp32", *overrides]
        config = load_config(entry, given)
        data = config.algorithm.data
        groups = [] if data is None else load_groups(data, config.task.system_prompt)
        check_machine(config, load_splits(config.task), entry, groups)
        return config

    return check


def refusal(checked, *overrides: str, entry: str = "train") -> str:
    with pytest.raises(BadInput) as caught:
        checked(*overrides, entry=entry)
    return str(caught.value)


def test_what_is_right_passes_and_says_what_the_template_does(checked, capsys):
    with warnings.catch_warnings(record=True) as caught:
        checked("task.max_new_tokens=100")  # the tiny tokenizer makes more tokens of a text
    assert [str(warning.message) for warning in caught] == []
    assert re.fullmatch(r"chat template: .*; (\d+) tokens of \1\n", capsys.readouterr().out)
    checked("trainer.devices=2", "strategy=ddp")
    checked(entry="evaluate")


def test_the_tokenizer_is_read_for_the_first_task_alone(tiny_model, monkeypatch, capsys):
    given = ["experiment=transfer", f"model.path={tiny_model}", "trainer.accelerator=cpu", "task.max_new_tokens=400"]
    config = load_config("evaluate", [*given, "evaluation.tasks.math.max_new_tokens=300"])
    read, load = [], loading.load_tokenizer
    for module in (loading, checks):
        monkeypatch.setattr(module, "load_tokenizer", lambda model: read.append(model) or load(model))
    format = check_machine(config, load_splits(config.task), "evaluate")
    first = len(read)
    assert first and "chat template: " in capsys.readouterr().out
    one = further_tasks(config)["math"]
    assert check_machine(one, load_splits(one.task), "evaluate", further="math", format=format) is format
    assert len(read) == first and "chat template" not in capsys.readouterr().out
    few = replace(one, task=replace(one.task, max_turns=10**6))
    with pytest.raises(BadInput, match="positions for the whole conversation"):
        check_machine(few, load_splits(one.task), "evaluate", further="math", format=format)


def test_training_goals_whose_user_tells_the_reference_are_counted(checked, tmp_path, capsys):
    goal = {"id": "tea", "single_turn_prompt": "A sign.", "single_turn_completion": "Tea at noon."}
    file = tmp_path / "goals.jsonl"
    file.write_text(f"{json.dumps(goal)}\n{json.dumps(goal | {'id': 'jam', 'single_turn_prompt': 'A label.'})}\n")
    own = (f"task.train_file={file}", "task.max_new_tokens=100")
    checked(*own)
    assert "2 of the 2 training goals have no notes. There the user tells the reference" in capsys.readouterr().out
    checked(*own, entry="evaluate")
    assert "training goals" not in capsys.readouterr().out


def test_an_adapter_to_a_folder_of_this_machine_is_not_for_the_hub(checked, tiny_model):
    said = refusal(checked, "push_to_hub=ada/x")
    assert f"the policy would be an adapter to {tiny_model}" in said and "Set export.merge=true" in said
    checked("push_to_hub=ada/x", "export.merge=true")


def test_attention_that_cannot_run_here_is_refused(checked):
    assert "the package flash-attn is not installed" in refusal(checked, "model.attention=flash_attention_2")


# --- processes -------------------------------------------------------------------------------------------------------


def launched(monkeypatch, on_each, machines, by="torchrun"):
    """As in a process that a launcher has started."""
    if by == "torchrun":
        found = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": on_each, "WORLD_SIZE": on_each * machines}
    else:
        found = {"SLURM_JOB_NAME": "x", "SLURM_NTASKS": on_each * machines, "SLURM_NNODES": machines}
    for name, value in found.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(
    ("overrides", "processes", "enough"),
    [
        (["trainer.devices=3"], 3, 6),
        (["trainer.devices=5"], 5, 5),
    ],
)
def test_processes_that_cannot_share_a_step_are_refused(overrides, processes, enough, checked):
    message = refusal(checked, *overrides)
    assert "trainer.goals_per_step (4)" in message and f"number of processes ({processes}," in message
    assert f"Set trainer.goals_per_step={enough}." in message
    checked(*overrides, f"trainer.goals_per_step={enough}")
    checked(*overrides, entry="evaluate")  # which has no steps


@pytest.mark.parametrize("by", ["torchrun", "SLURM"])
def test_processes_are_those_that_the_launcher_has_started(by, checked, monkeypatch):
    launched(monkeypatch, 3, 2, by)
    assert "number of processes (6, 3 on each of 2 machines)" in refusal(checked)
    checked("trainer.goals_per_step=6", "trainer.devices=3", "trainer.num_nodes=2")
    for override in ("trainer.devices=2", "trainer.num_nodes=3"):
        message = refusal(checked, "trainer.goals_per_step=6", override)
        assert f"contradict {by}, which has started 3 processes on each of 2 machines. Leave both out" in message


def test_several_machines_take_a_launcher(checked):
    message = refusal(checked, "trainer.num_nodes=2")
    assert "this process was started alone" in message and "torchrun --nnodes=2" in message


def test_processes_need_a_way_to_talk(checked, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_gloo_available", lambda: False)
    assert "this torch has no gloo" in refusal(checked, "strategy=fsdp")
    assert "this torch has no gloo" in refusal(checked, "trainer.devices=2")
    checked()


def test_updates_must_share_the_goals_of_a_process(checked):
    overrides = ["trainer.devices=2", "algorithm.num_minibatches=2"]
    message = refusal(checked, *overrides, "trainer.goals_per_step=6")
    assert "algorithm.num_minibatches (2) must divide the 3 goals that each of the 2 processes takes" in message
    assert "Set trainer.goals_per_step=8." in message
    checked(*overrides, "trainer.goals_per_step=8")


def test_a_cpu_has_no_indices(checked):
    message = refusal(checked, "trainer.devices=[0,1]")
    assert "trainer.devices ([0, 1]) lists indices" in message and "Set trainer.devices=2" in message


def test_auto_is_every_cuda_device(checked, monkeypatch):
    monkeypatch.setattr(device, "resolve_device", lambda accelerator: torch.device("cuda"))
    monkeypatch.setattr(device, "has_native_bf16", lambda device: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    assert "number of processes (3," in refusal(checked)
    assert "number of processes (3," in refusal(checked, "trainer.devices=3")
    checked("trainer.devices=[0,2]")
    assert "asks for more than this machine has: 3 CUDA devices" in refusal(checked, "trainer.devices=4")
    assert "asks for more than this machine has: 3 CUDA devices" in refusal(checked, "trainer.devices=[0,3]")


# --- metrics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("+task.metrics.bleu.options.smooth=1", ["task.metrics.bleu.options", "smooth", "collab.rewards.metrics.Bleu"]),
        ("~task.metrics.token_penalty.options.coefficient", ["task.metrics.token_penalty.options ({})", "coefficient"]),
        (
            "task.metrics.token_penalty.options.coefficient=-1",
            ["task.metrics.token_penalty.options", "coefficient (-1) must be a finite number of at least 0"],
        ),
        (
            "task.metrics.interactivity.options.items_per_answer=0",
            ["task.metrics.interactivity.options", "items_per_answer (0) must be a whole number of at least 1"],
        ),
        ("task.metrics.interactivity.options.items_per_answer=abc", ["items_per_answer ('abc') must be"]),
        (
            "task=code task.metrics.pass_rate.options.sandbox=never",
            ["task.metrics.pass_rate.options", "sandbox ('never') must be auto or strict"],
        ),
    ],
)
def test_options_that_a_metric_does_not_take_are_told(override, said, checked):
    message = refusal(checked, *override.split())
    assert all(text in message for text in said), message


# --- models ----------------------------------------------------------------------------------------------------------


def test_conversations_longer_than_the_model_are_refused(checked):
    checked("task.max_turns=4", "task.max_new_tokens=512")  # 2048, as many as it has
    message = refusal(checked, "task.max_turns=4", "task.max_new_tokens=513")
    for text in ("task.max_turns (4)", "task.max_new_tokens (513)", "is 2052 tokens", "model.path", "2048 positions"):
        assert text in message
    assert "Set task.max_new_tokens=256 or less" in message


@pytest.mark.parametrize("targets", ["[no_such_layer]", "'['"])
def test_an_adapter_that_does_not_fit_is_refused_before_weights_are_read(targets, checked):
    message = refusal(checked, f"model.lora.target_modules={targets}")
    assert "model.lora cannot be put on" in message and "Choose model.lora.target_modules" in message
    checked(f"model.lora.target_modules={targets}", "model.lora.enabled=false")
    checked(f"model.lora.target_modules={targets}", entry="evaluate")  # which adds no adapter


def test_a_target_has_to_be_a_class(checked):
    for key in ("user.target", "task.target"):
        assert "collab.parsing.english.words is no class" in refusal(checked, f"{key}=collab.parsing.english.words")


class Silent:
    """No user: it cannot respond."""


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "user.target=test_preflight.Silent",
            "user.target=test_preflight.Silent has no method respond, and a run calls it. Write it, as "
            "docs/new-user.md shows",
        ),
        ("user.target=test_preflight.Silent user=mix", "user.users.agenda.target=test_preflight.Silent has no method"),
        ("engine.target=collab.simulation.agenda.AgendaUser", "has no method complete and no clear_cache"),
        ("algorithm.target=collab.modules.base.PolicyModule", "has no method examples and no units and no loss"),
        ("+user.options.mood=bad", "user.options ({'mood': 'bad'}) do not fit collab.simulation.agenda.AgendaUser"),
        ("+engine.options.speed=9", "got an unexpected keyword argument 'speed'. Set engine.options to what the class"),
        ("+algorithm.options.depth=2", "algorithm.options ({'depth': 2}) do not fit collab.modules.dpo.DPO"),
        ("algorithm=sft +algorithm.options.depth=2", "got an unexpected keyword argument 'depth'"),
    ],
)
def test_a_class_has_the_methods_of_its_kind_and_takes_its_options(override, said, checked):
    overrides = override.replace("user.target", "user.users.agenda.target" if "mix" in override else "user.target")
    assert said in refusal(checked, *overrides.split())


def test_an_unknown_metric_is_named_with_those_that_are_there(checked):
    message = refusal(checked, "task.metrics.bleu.target=collab.rewards.metrics.Blue")
    assert "task.metrics.bleu.target=collab.rewards.metrics.Blue cannot be imported" in message
    assert "collab.rewards.metrics has:" in message and " Bleu, CharacterBleu, Accuracy, PassRate," in message


def test_a_metric_of_another_tasks_goals_is_refused(checked):
    message = refusal(checked, "task=math", "task.metrics.accuracy.target=collab.rewards.metrics.PassRate")
    assert "task.metrics.accuracy (collab.rewards.metrics.PassRate) needs entry_point and tests in" in message
    assert "of task math has" in message and "Take a metric that fits" in message


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (
            ["+task.aggregates.f1=collab.reports.aggregates.macro_f1"],
            [
                "task.aggregates.f1=collab",
                "needs the metric 'asks_on_ambiguous', and there are reward, coverage, bleu,",
            ],
        ),
        (["+task.aggregates.f1=collab.reports.aggregates.f1"], ["has: macro_accuracy, macro_f1, ask_f1, act_f1."]),
        (["+task.aggregates.f1=collab.rewards.metrics.Bleu"], ["collab.rewards.metrics.Bleu is no function"]),
    ],
)
def test_an_aggregate_that_cannot_be_had_is_refused(overrides, parts, checked):
    message = refusal(checked, *overrides)
    for part in parts:
        assert part in message


def test_a_model_that_does_not_say_its_positions_is_let_through(checked, tiny_model, monkeypatch):
    monkeypatch.setattr(loading, "num_positions", lambda config: None)
    checked("task.max_turns=4", "task.max_new_tokens=5130")


def test_every_policy_of_an_evaluation_is_looked_at_first(checked, tiny_model, tmp_path):
    good, empty, short = (Path(shutil.copytree(tiny_model, tmp_path / name)) for name in ("good", "empty", "short"))
    for weights in empty.glob("*.safetensors"):
        weights.unlink()
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 100}))
    checked(f"policies=[base,good:{good}]", entry="evaluate")
    message = refusal(checked, f"policies=[base,good:{good},bad:{empty}]", entry="evaluate")
    assert message.startswith("policies: bad cannot be played.") and "holds no weights" in message
    assert f"policies ({short}) has 100 positions" in refusal(checked, f"policies=[{short}]", entry="evaluate")
    checked(f"policies=[bad:{empty}]")  # training names its own


def test_stored_responses_that_are_too_long_count_for_nothing(checked, tmp_path):
    goal = {"single_turn_prompt": "Write a notice.", "single_turn_completion": "We bake.", "single_turn_metadata": {}}
    history = [{"role": "user", "content": "Write a notice for us."}]

    def written(name: str, *responses: tuple[str, float]) -> str:
        rows = [{**goal, "conv_id": "c", "prompt": history, "completion": said, "score": mr} for said, mr in responses]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return f"algorithm.data={tmp_path / name}"

    short, better, long = ("We bake.", 0.1), ("We bake bread.", 0.6), ("rye " * 3000, 0.9)
    with warnings.catch_warnings(record=True) as caught:
        checked("algorithm=dpo", written("most.jsonl", short, better, long))
    assert "1 of 3 responses are left out" in str(caught[0].message)
    with pytest.warns(UserWarning, match="1 of 2 responses are left out"):
        assert "none has two candidates with a score" in refusal(
            checked, "algorithm=dpo", written("one.jsonl", short, long)
        )
    assert "no response and its history fit the 2048 positions" in refusal(
        checked, "algorithm=dpo", written("none.jsonl", long)
    )


def test_a_strict_sandbox_that_cannot_be_had_is_refused(checked, monkeypatch):
    async def without_namespaces(request):
        assert request["strict"]
        return {"refused": "it cannot be given a pid namespace of its own here"}

    monkeypatch.setattr(run, "supervised", without_namespaces)
    checked("experiment=doc_edit")
    with pytest.raises(BadInput, match="pid namespace.*sandbox=auto"):
        checked("experiment=doc_edit", "sandbox=strict")
