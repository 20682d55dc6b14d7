"""The command line as one types it: help, refusals, runs and sweeps."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import finished
from marks import slow
from program import run

from collab.__main__ import COMMANDS
from collab.__main__ import main as console
from collab.app.cli import main
from collab.app.compose import load_config
from collab.config.schema import Config
from collab.util.errors import BadInput

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests" / "helpers" / "program.py"
HERE = {"PYTHONPATH": str(ROOT)}


def command(*arguments, cwd, program=ROOT / "train.py"):
    typed = [sys.executable, str(program), *arguments]
    return subprocess.run(typed, cwd=cwd, env={**os.environ, **HERE}, capture_output=True, text=True, timeout=240)


@pytest.fixture
def typed(tmp_path, monkeypatch, capsys):
    """`python train.py ARGUMENTS` in this process and an empty folder; with `run` instead of a training."""

    def call(*arguments, run=run):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        code = 0
        try:
            main("train", run)
        except SystemExit as ended:
            code = ended.code
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return call


def ran(folder):
    return [json.loads(line) for line in (folder / "ran.jsonl").read_text().splitlines()]


HEAVY = {"torch", "transformers", "lightning", "datasets", "peft", "numpy"}  # what takes long to import


def imported(done):
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


@pytest.mark.parametrize("arguments", [("--help",), ("sampler.grup_size=4",)])
def test_help_and_a_typo_answer_at_once(arguments, tmp_path):
    done = command("importtime", str(ROOT / "train.py"), *arguments, cwd=tmp_path, program="-X")
    assert done.stdout or "Did you mean sampler.group_size?" in done.stderr
    assert "collab.app.cli" in imported(done) and not imported(done) & HEAVY


def test_help_may_be_cut_short_by_its_reader(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)  # as `| head` does when it has seen enough
    try:
        done = subprocess.run(
            [sys.executable, str(ROOT / "train.py"), "--help"], cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("entry", [slow("train"), "evaluate", slow("synthesize")])
def test_the_console_command_answers_at_once(entry, tmp_path):
    done = command("importtime", "-m", "collab", entry, "--help", cwd=tmp_path, program="-X")
    assert done.returncode == 0, done.stderr
    assert f"collab {entry} experiment=doc_edit" in done.stdout
    assert "collab.app.cli" in imported(done) and not imported(done) & HEAVY


def test_the_console_command_lists_its_commands_and_knows_a_typo(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["collab", "--help"])
    console()
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in COMMANDS)
    monkeypatch.setattr(sys, "argv", ["collab", "trian"])
    with pytest.raises(SystemExit) as ended:
        console()
    assert ended.value.code == 2 and "there is no command trian. Did you mean train?" in capsys.readouterr().err
    done = command("collab", "estimate", "evaluate", "experiment=doc_edit", cwd=tmp_path, program="-m")
    assert done.returncode == 0 and "No hosted model takes part" in done.stdout


@pytest.mark.parametrize(
    "arguments", [(), *((name,) for name in COMMANDS), ("chat", "--web"), ("estimate", "evaluate")]
)
def test_help_of_each_command_fits_a_screen(arguments, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "argv", ["collab", *arguments, "--help"])
    with contextlib.suppress(SystemExit):
        console()
    lines = capsys.readouterr().out.splitlines()
    assert 5 < len(lines) <= 40
    assert max(map(len, lines)) <= 100


def test_help_names_what_one_can_type(typed):
    text = typed("--help").stdout
    assert "paper/doc_edit, " in text and " doc_edit, " in text
    assert "llama31_8b, llama32_1b, qwen25_05b" in text and "online_dpo*" in text and "schema_" not in text
    assert "candidates per context" in text  # a doc line of the schema
    assert "-m seed=1,2,3" in text


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["sampler.grup_size=4"], ["no field sampler.grup_size", "Did you mean sampler.group_size?", "num_samples"]),
        (["group_size=4"], ["no field group_size", "Did you mean sampler.group_size?"]),
        (["modle=smollm2"], ["Did you mean model?", "Groups: algorithm"]),
        (["+foo=1"], ["no field foo. Groups: "]),
        (["policies.x=1"], ["policies.x=1: invalid literal"]),  # OmegaConf's message does not say of what
        (["++sampler.foo=1"], ["no field sampler.foo", "group_size"]),
        (["algorithm.clip_epsilon=0.1"], ["no field algorithm.clip_epsilon", "Fields of algorithm: ", "beta"]),
        (["task.metrics.bleu.options.x=1"], ["To add it, write +task.metrics.bleu.options.x=VALUE"]),
        (
            ["model=smolm2"],
            ["model has no option smolm2. Did you mean smollm2? There are: gemma3_1b, llama31_70b, llama31_8b,"],
        ),
        (
            ["experiment=paper/doc_edt"],
            ["Did you mean paper/doc_edit?", "There are: abg_coqa, ask_or_act, code, code_sft, doc_edit,"],
        ),
        (["endpoint=openai"], ["endpoint=openai: nothing in this config takes it", "with user=llm"]),
        (["judge=llm", "endpoint@user.endpoint=vllm"], ["endpoint@user.endpoint=vllm: nothing in this config takes"]),
        (["+experiment=doc_edit"], ["experiment is there already. Write it without the +"]),
        (["~model"], ["cannot be resolved", "model.name"]),
        (
            ["trainer.max_steps=many"],
            ["trainer.max_steps=many", "trainer.max_steps takes int", "a rollout on new goals", "'many'"],
        ),
        (["policies=base"], ["policies takes list[str]"]),
        (["policies=[a=b]"], ["is not an override", "quotes around"]),
        (["seed"], ["seed is not an override", "key=value"]),
        (["name=${nowhere}"], ["cannot be resolved", "nowhere"]),
        (["task.metrics.blue.weight=1"], ["Did you mean task.metrics.bleu?", "YAML"]),
        (["algorithm=null"], ["algorithm=null: algorithm has no option null.", "online_dpo"]),
        (["model=1"], ["model=1: model has no option 1.", "smollm2"]),
        (["experiment=doc_edit", "~sweep", "judge=null"], ["judge=null: judge has no option null."]),
        (["tasks=poems"], ["tasks=poems: tasks has no option poems. There are: abg_coqa, ask_or_act, code,"]),
        (["~sweep", "sampler.windw=1"], ["Did you mean sampler.window?"]),
    ],
)
def test_an_override_that_does_not_fit_is_told_in_one_message(overrides, said):
    with pytest.raises(BadInput) as error:
        load_config("train", overrides)
    for text in said:
        assert text in str(error.value)
    assert "full_key" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sampler.grup_size=4"], "Did you mean sampler.group_size?"),
        (["seed=1,2"], "Add -m to run one job for each"),
        (["experiment=doc_edit", "sampler.group_size=1", "sampler.window=-1"], "2 problems in the config"),
        (["task.train_file=nowhere.jsonl"], "There is no file nowhere.jsonl"),
        (["-m", "seed=1,2", "model=smollm2,smolm2"], "Did you mean smollm2?"),
        (["-m", "seed=1,2", "push_to_hub=ada/x"], "push_to_hub=ada/x: several jobs would replace each other's policy"),
    ],
)
def test_bad_input_ends_with_one_message_and_leaves_no_folder(arguments, said, typed, tmp_path):
    done = typed(*arguments, run=None)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and said in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert not list(tmp_path.iterdir())


def test_a_run_has_one_folder_with_its_resolved_config(tmp_path):
    done = command("experiment=doc_edit", "seed=7", "algorithm.lr=0.5", cwd=tmp_path, program=PROGRAM)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs" / "doc_edit").iterdir()
    assert folder.name.endswith("-seed7")
    assert ran(tmp_path) == [{"seed": 7, "dir": str(folder), "lr": 0.5}]
    saved = (folder / "config.yaml").read_text()
    assert f"output_dir: {folder}" in saved and "${" not in saved
    assert (folder / ".hydra" / "overrides.yaml").is_file()


@pytest.mark.parametrize("key", ["output_dir", "hydra.run.dir"])
def test_the_folder_can_be_named_either_way(key, typed, tmp_path):
    done = typed("seed=7", f"{key}=mine")
    assert done.returncode == 0, done.stderr
    assert ran(tmp_path)[0]["dir"] == str(tmp_path / "mine")
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("seed", "code", "said"),
    [(2, 1, "error: seed two is refused."), (5, 1, "RuntimeError: a defect"), (6, 130, "Interrupted.")],
)
def test_how_a_run_ends(seed, code, said, typed):
    done = typed(f"seed={seed}")
    assert done.returncode == code
    assert said in done.stderr
    assert ("Traceback" in done.stderr) == (seed == 5)  # a defect keeps its trace


def test_a_sweep_goes_on_past_failed_jobs_and_job_k_is_the_run_that_one_types_alone(typed, tmp_path):
    # flags may stand between overrides; seed 2 is refused, seed 4 is killed
    done = finished(str(PROGRAM), "algorithm.lr=0.5", "-m", "seed=2,4,7", "name=x", cwd=tmp_path, env=HERE)
    assert done.returncode == 1
    assert [job["seed"] for job in ran(tmp_path)] == [2, 4, 7]
    assert len({job["dir"] for job in ran(tmp_path)}) == 3
    assert ran(tmp_path)[2]["lr"] == 0.5
    head, *lines = done.stdout[done.stdout.index("Sweep:") :].splitlines()
    assert head == "Sweep: 1 of 3 jobs finished, 2 failed."
    for line, seed, ending in zip(lines, (2, 4, 7), ("exit status 1", "signal 9", "finished"), strict=True):
        assert f"seed={seed}" in line and ending in line
    assert "error: seed two is refused." in done.stderr and "Traceback" not in done.stderr
    assert typed("algorithm.lr=0.5", "seed=7", "name=x").returncode == 0
    (swept,) = tmp_path.glob("multirun/*/2-x-seed7/config.yaml")
    (alone,) = tmp_path.glob("outputs/x/*-seed7/config.yaml")
    different = set(swept.read_text().splitlines()) ^ set(alone.read_text().splitlines())
    assert {line.split(":")[0] for line in different} == {"output_dir"}


@pytest.mark.parametrize("key", ["output_dir", slow("hydra.run.dir")])
def test_a_sweep_has_its_jobs_in_the_folder_that_is_named(key, tmp_path):
    done = finished(str(PROGRAM), "-m", "seed=7", f"{key}=mine/of_${{name}}", "name=x", cwd=tmp_path, env=HERE)
    assert done.returncode == 0, done.stderr
    assert [job["dir"] for job in ran(tmp_path)] == [str(tmp_path / "mine" / "of_x" / "0-x-seed7")]
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "ran.jsonl"}


@pytest.mark.parametrize("places", [("output_dir=a,b",), ("output_dir=a", "hydra.sweep.dir=b")])
def test_a_sweep_has_one_folder(places, typed, tmp_path):
    done = typed("-m", "seed=7,8", *places)
    assert done.returncode == 1 and f"error: {' '.join(places)}: a sweep has one folder" in done.stderr
    assert not list(tmp_path.iterdir())


def test_hydras_own_flags_work(typed, tmp_path):
    done = typed("--cfg", "job", "--resolve", "seed=7")
    assert done.returncode == 0, done.stderr
    assert "seed: 7" in done.stdout and "-seed7" in done.stdout
    assert not list(tmp_path.iterdir())


def test_load_config_gives_the_schema():
    config = load_config("evaluate", ["experiment=doc_edit", "+task.metrics.bleu.options.x=1"], output_dir="here")
    assert isinstance(config, Config) and config.output_dir == "here"
    assert config.task.metrics["bleu"].options == {"with_notes": True, "finished_only": True, "x": 1}
