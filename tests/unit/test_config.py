"""Every shipped config composes and passes its checks; every rule refuses what breaks it, in words."""

import functools
import itertools
import shlex
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
from composing import load_config
from marks import slow

from collab.app import compose
from collab.app.compose import options
from collab.app.help import EXAMPLES
from collab.app.preflight import load_target, targets
from collab.config import algorithms, schema
from collab.config.algorithms import GRPOConfig
from collab.config.checks import check
from collab.config.docs import field_docs
from collab.config.policies import named_policies, policy_model, policy_problems
from collab.config.schema import Config, UserConfig
from collab.util.errors import BadInput
from collab.util.paths import config_dir

OPTIONS = [
    f"{'endpoint@user.endpoint' if group == 'endpoint' else group}={name}"
    for group, names in options([config_dir()]).items()
    for name in names
]
# Groups whose options get in no other's way: one config holds an option of each. The options of the others stand alone.
TOGETHER = (
    *(
        "algorithm",
        "budget",
        "callbacks",
        "cluster",
        "definitions",
        "engine",
        "evaluator",
        "judge",
        "logger",
        "model",
        "sampler",
    ),
    *("strategy", "sweep", "trainer", "user", "users"),
)
_ROWS = itertools.zip_longest(*([text for text in OPTIONS if text.split("=")[0] == group] for group in TOGETHER))
COMBINED = [
    *(tuple(option for option in row if option is not None) for row in _ROWS),
    *((option,) for option in OPTIONS if option.split("=")[0] not in TOGETHER),
]


def completed(override: str) -> list[str]:
    """An option, with what it leaves to its user."""
    missing = {
        **dict.fromkeys(("algorithm=sft", "algorithm=dpo"), "algorithm.data=conversations.jsonl"),
        "evaluator=local": "evaluator.endpoint.model=somebody/else",
        "evaluator=pairwise": "evaluator.endpoint.base_url=http://127.0.0.1:8000/v1",
        "user=llm": "user.endpoint.base_url=http://127.0.0.1:8000/v1",
        **dict.fromkeys(("judge=llm", "judge=helpfulness"), "judge.endpoint.base_url=http://127.0.0.1:8000/v1"),
    }
    named = "user=llm" if override.startswith("endpoint@") else missing.get(override.removesuffix("_small"))
    return [override, *([named] if named else [])]


@functools.cache
def composed(entry: str, *options: str) -> Config:
    return load_config(entry, [text for option in options for text in completed(option)])


@pytest.mark.parametrize(
    ("entry", "overrides"),
    [
        ("train", []),
        ("train", ["algorithm=grpo", "algorithm.kl_coef=0.1", "policies=[base,'a:b=c']"]),
        (
            "evaluate",
            ["experiment=paper/doc_edit", "user=mix", "seed=3", "definitions.tasks.doc_edit.metrics.bleu.weight=2"],
        ),
        ("synthesize", ["judge=local", "judge.endpoint.model=x", "sampler.window=0", "name=${seed}"]),
    ],
)
def test_what_tests_compose_is_what_programs_compose(entry, overrides):
    assert load_config(entry, overrides, "here") == compose.load_config(entry, overrides, "here")


@pytest.mark.slow
@pytest.mark.parametrize("entry", ["evaluate", "synthesize"])
@pytest.mark.parametrize("override", OPTIONS)
def test_an_option_means_the_same_to_every_program(entry, override):
    overrides = completed(override)
    assert compose.load_config(entry, overrides) == compose.load_config("train", overrides)


@pytest.mark.parametrize("entry", ["train", "evaluate"])
@pytest.mark.parametrize(
    "options",
    [(), *COMBINED, *(slow((option,)) for option in OPTIONS if (option,) not in COMBINED)],
    ids=lambda options: " ".join(options) or "nothing",
)
def test_every_option_composes_and_passes(entry, options):
    config = composed(entry, *options)
    if entry == "train" and config.task.evaluation_only:
        name = config.task.name
        with pytest.raises(
            BadInput, match=rf"task {name} is for evaluation only .* Run `python evaluate.py task={name}"
        ):
            check(config, entry)
    elif (further := config.evaluation.tasks) and (entry == "train" or config.task.name in further):
        with pytest.raises(
            BadInput, match="played by evaluate.py alone" if entry == "train" else "is the task already"
        ):
            check(config, entry)
    elif options[:1] != ("teacher=none",) and any(option.startswith("teacher=") for option in options):
        check(config, "synthesize")
        with pytest.raises(BadInput, match="teacher plays the assistant of `collab synthesize`, and nothing here"):
            check(config, entry)
    else:
        check(config, entry)
    assert isinstance(config, Config)
    assert isinstance(config.user, UserConfig) and type(config.user) is not UserConfig  # the schema's class, not a bag


def test_nothing_is_synthesised_from_goals_for_evaluation_alone():
    with pytest.raises(BadInput, match="task abg_coqa is for evaluation only"):
        check(composed("synthesize", "task=abg_coqa"), "synthesize")


def test_there_are_options_to_compose():
    assert {"experiment=doc_edit", "experiment=paper/doc_edit", "algorithm=grpo", "strategy=ddp"} <= set(OPTIONS)
    assert sorted(option for options in COMBINED for option in options) == sorted(OPTIONS)


def test_rloo_and_online_dpo_are_made_of_other_algorithms():
    rloo, online, offline = (composed("train", f"algorithm={name}").algorithm for name in ("rloo", "online_dpo", "dpo"))
    assert isinstance(rloo, GRPOConfig) and (rloo.leave_one_out, rloo.scale_by_std, rloo.loss_aggregation) == (
        True,
        False,
        "sums",
    )
    assert isinstance(online, type(offline)) and online.target == offline.target
    assert (online.name, online.offline, offline.name, offline.offline) == ("online_dpo", False, "dpo", True)


@pytest.mark.parametrize("short", ["user=openai", "user=local", "judge=claude", "judge=qwen3", "evaluator=openai"])
def test_a_short_form_takes_an_option_of_the_group_endpoint(short):
    group, name = short.split("=")
    whole = f"{group}={'pairwise' if group == 'evaluator' else 'llm'}"
    more = ["user.form=transcript", "user.retries=5", "user.temperature=0.7"] if short == "user=local" else []
    assert load_config("train", [short]) == load_config("train", [whole, f"endpoint@{group}.endpoint={name}", *more])


def test_an_endpoint_takes_the_place_of_another():
    config = load_config("train", ["experiment=paper/doc_edit", "endpoint@judge.endpoint=vllm"])
    assert (config.user.endpoint.key_env, config.judge.endpoint.key_env) == ("OPENAI_API_KEY", None)
    assert not config.judge.endpoint.omit  # Claude's
    mix = load_config("train", ["user=mix", "endpoint@user.users.llm.endpoint=vllm"])
    assert mix.user.users["llm"].endpoint.base_url == "http://127.0.0.1:8000/v1"
    two = load_config("train", ["judge=openai", "+endpoint@judge.extractor=vllm"])
    assert (two.judge.endpoint.model, two.judge.extractor.model) == ("gpt-6-luna", None)


def test_an_endpoint_has_the_types_of_its_schema():
    with pytest.raises(BadInput, match="judge.endpoint.max_retries"):
        load_config("train", ["judge=llm", "endpoint@judge.endpoint=claude", "judge.endpoint.max_retries=many"])
    with pytest.raises(BadInput, match="has no option .*. Did you mean openai?"):
        load_config("train", ["judge=llm", "endpoint@judge.endpoint=opnai"])


@pytest.mark.parametrize("options", COMBINED, ids=" ".join)
def test_every_class_that_an_option_names_can_be_imported(options):
    for key, target in targets(composed("train", *options)).items():
        assert callable(load_target(target, key))


@pytest.mark.parametrize("name", options([config_dir()])["experiment"])
def test_an_experiment_says_its_command(name):
    lines = (config_dir() / "experiment" / f"{name}.yaml").read_text().splitlines()
    config = composed("evaluate", f"experiment={name}")
    program = "evaluate" if config.task.evaluation_only or config.evaluation.tasks else "train"
    assert lines[:2] == ["# @package _global_", f"# python {program}.py experiment={name}"]


@pytest.mark.parametrize(("entry", "line"), [(entry, line) for entry in EXAMPLES for line, _ in EXAMPLES[entry]])
def test_the_examples_of_help_compose_and_pass(entry, line):
    typed = [text for text in shlex.split(line) if "=" in text and "RUN" not in text]
    for job in itertools.product(*([f"{key}={one}" for one in value.split(",")] for key, value in map(split, typed))):
        check(load_config(entry, list(job)), entry)


def split(override: str) -> list[str]:
    return override.split("=", 1)


def test_the_command_line_wins_over_the_experiment():
    paper = load_config("train", ["experiment=paper/doc_edit"])
    assert (paper.model.path, paper.sampler.window, paper.sampler.num_samples) == (
        "meta-llama/Llama-3.1-8B-Instruct",
        2,
        3,
    )
    assert (paper.model.lora.r, paper.model.lora.alpha, paper.model.lora.dropout) == (32, 16, 0.1)
    assert (paper.algorithm.lr, paper.trainer.goals_per_step) == (5e-6, 32)
    assert any("judge" in note for note in paper.notes) and any("user" in note for note in paper.notes)
    other = load_config("train", ["experiment=paper/doc_edit", "algorithm=grpo", "sampler.window=0"])
    assert isinstance(other.algorithm, GRPOConfig) and other.sampler.window == 0


def test_evaluate_writes_beside_training_not_into_it():
    # output_dir itself is named at the start of a run; what differs is in the file
    assert "evaluate" in (config_dir() / "evaluate.yaml").read_text().split("output_dir:")[1].splitlines()[0]


def test_every_field_has_a_doc_line():
    groups = {name for name, kind in get_type_hints(Config).items() if is_dataclass(kind)}
    for cls in [found for module in (schema, algorithms) for found in vars(module).values() if is_dataclass(found)]:
        undocumented = {field.name for field in fields(cls)} - set(field_docs(cls))
        assert undocumented <= (groups if cls is Config else {"lora"}), cls.__name__


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "sampler.group_size=1",
            "group_size (1) must be at least 2 for online_dpo: it compares candidates. Set sampler.",
        ),
        ("sampler.window=-1", "sampler.window (-1) must be at least 0"),
        ("sampler.num_samples=0", "sampler.num_samples (0) must be at least 1"),
        ("sampler.temperature=0", "must be above 0 for online_dpo"),
        ("sampler.temperature=nan", "sampler.temperature (nan) must be at least 0"),
        ("sampler.top_p=0.9", "Set sampler.top_p=1 sampler.top_k=0"),
        ("sampler.top_k=50", "sampler.top_k=50"),
        ("sampler.top_p=1.5", "sampler.top_p (1.5) must be above 0 and at most 1"),
        ("task.max_turns=0", "task.max_turns (0) must be at least 1"),
        ("task.num_test=0", "task.num_test (0) must be at least 1"),
        ("task.data=articles.csv", "task.num_val is not set. Set it to a number"),
        ("task.data=articles.csv", "task.num_test is not set. Set it to a number"),
        ("+task.aggregates.bleu=somewhere.f", "task.aggregates and task.metrics both have bleu"),
        ("task.metrics.bleu.weight=inf", "task.metrics.bleu.weight (inf) must be a finite number"),
        ("algorithm.lr=0", "algorithm.lr (0.0) must be above 0"),
        ("algorithm.num_minibatches=0", "algorithm.num_minibatches (0) must be at least 1"),
        (
            "algorithm.num_minibatches=3",
            "algorithm.num_minibatches (3) must divide trainer.goals_per_step (4), since the groups are split "
            "evenly. Set trainer.goals_per_step=6.",
        ),
        ("algorithm.warmup_steps=25", "warmup_steps (25) must be at most the 24 optimizer steps of the run"),
        ("algorithm.epochs=0", "algorithm.epochs (0) must be at least 1"),
        (
            "trainer.val_every=7",
            "trainer.val_every (7) must divide trainer.max_steps (24) or be at least as much: what is learned after "
            "the last validation could never be the best policy. Set trainer.val_every=6, or trainer.max_steps=28.",
        ),
        ("algorithm.schedule=cosin", "must be one of constant, cosine, linear"),
        ("algorithm.minimum_gap=-0.1", "algorithm.minimum_gap (-0.1) must be at least 0"),
        ("precision=fp16", "precision (fp16) must be one of auto, bf16, fp32"),
        ("model.attention=flash", "model.attention (flash) must be one of"),
        ("strategy.name=deepspeed", "strategy.name (deepspeed) must be one of auto, ddp, fsdp"),
        ("strategy.sharded_checkpoints=true", "strategy.sharded_checkpoints=true needs strategy=fsdp"),
        ("trainer.accelerator=tpu", "must be one of auto, cpu, cuda"),
        ("trainer.devices=0", "trainer.devices (0) must be auto"),
        ("trainer.devices=[0,0]", "different indices"),
        ("trainer.max_steps=0", "trainer.max_steps (0) must be at least 1"),
        ("trainer.goals_per_step=0", "trainer.goals_per_step (0) must be at least 1"),
        ("evaluation.num_conversations=0", "evaluation.num_conversations (0) must be at least 1"),
        ("engine.max_batch=0", "engine.max_batch (0) must be at least 1"),
        ("seed=-1", "seed (-1) must be at least 0 and at most 4294967295: random seed"),
        ("user.satisfied_at=0", "user.satisfied_at (0.0) must be above 0 and at most 1"),
        ("model.lora.dropout=1", "model.lora.dropout (1.0) must be at least 0 and below 1"),
        ("model.lora.target_modules=[]", "model.lora.target_modules ([])"),
        ("model.path=./nowhere", "model.path=./nowhere is not there"),
        ("+model.chat_template_kwargs.a-b=1", "model.chat_template_kwargs has 'a-b', which no chat template can name"),
        ("task.proactive_prompt=''", "task.proactive_prompt is empty"),
        ("policies=[]", "policies is empty"),
        ("policies=[base,base]", "base is there twice"),
        ("policies=[base,mine:nowhere]", "nowhere is not a folder"),
        ("policies=[proactive:nowhere]", "would be called proactive"),
    ],
)
def test_a_broken_rule_is_told(override, said):
    with pytest.raises(BadInput) as error:
        check(load_config("train", [override]))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("algorithm", "override", "said"),
    [
        (
            "dpo",
            "algorithm.beta=0.2",
            "algorithm.data is null, and dpo learns from stored conversations",
        ),
        ("sft", "algorithm.minimum_metric=bleu", "algorithm.data is null, and sft learns from"),
        ("sft", "algorithm.minimum_value=nan", "algorithm.minimum_value (nan) must be a finite number"),
        ("ppo", "algorithm.gamma=0", "algorithm.gamma (0.0) must be above 0 and at most 1"),
        ("ppo", "algorithm.gae_lambda=1.1", "algorithm.gae_lambda (1.1) must be at least 0 and at most 1"),
        ("ppo", "algorithm.value_clip=0", "algorithm.value_clip (0.0) must be above 0"),
        ("ppo", "algorithm.value_coef=-1", "algorithm.value_coef (-1.0) must be at least 0"),
        ("ppo", "algorithm.warmup_steps=97", "warmup_steps (97) must be at most the 96 optimizer steps of the run"),
        (
            "grpo",
            "algorithm.loss_aggregation=token",
            "algorithm.loss_aggregation (token) must be one of tokens, sequences, sums",
        ),
        ("rloo", "sampler.group_size=1", "group_size (1) must be at least 2 for rloo"),
    ],
)
def test_a_broken_rule_of_an_algorithm_is_told(algorithm, override, said):
    with pytest.raises(BadInput) as error:
        check(load_config("train", [f"algorithm={algorithm}", override]))
    assert said in str(error.value)


@pytest.mark.parametrize("algorithm", ["online_dpo", "ppo", "grpo"])
def test_an_algorithm_that_draws_candidates_takes_goals_and_contexts_from_data(algorithm):
    config = load_config("train", [f"algorithm={algorithm}", "algorithm.data=talks.jsonl"])
    check(config)
    assert (config.algorithm.data, config.sampler.contexts, config.task.train_file) == (None, *["talks.jsonl"] * 2)
    assert any("algorithm.data=talks.jsonl" in note and "draws its own candidates" in note for note in config.notes)
    own = ["sampler.contexts=contexts.jsonl", "task.train_file=goals.jsonl"]
    config = load_config("train", [f"algorithm={algorithm}", "algorithm.data=talks.jsonl", *own])
    assert (config.sampler.contexts, config.task.train_file) == ("contexts.jsonl", "goals.jsonl")
    cut = load_config("train", [f"algorithm={algorithm}", "algorithm.data=talks.jsonl", "task.data=goals.csv"])
    assert (cut.task.data, cut.task.train_file) == (
        "goals.csv",
        "talks.jsonl",
    )  # which validation and test are cut from
    stored = load_config("train", ["algorithm=dpo", "algorithm.data=talks.jsonl"])
    assert (stored.algorithm.data, stored.sampler.contexts, stored.task.train_file) == ("talks.jsonl", None, None)


def test_a_row_of_the_table_may_be_on_the_hub():
    rows = named_policies(["base", "hub:collabllm/sft-math", "mine:hub:someone/sft.math-2"])
    assert rows == {"base": None, "sft-math": Path("collabllm/sft-math"), "mine": Path("someone/sft.math-2")}
    config = load_config("evaluate", ["policies=[base,'hub:collabllm/sft-math']"])
    check(config, "evaluate")
    assert policy_model(config, rows["sft-math"]).path == "collabllm/sft-math"
    with pytest.raises(BadInput, match="a policy on the hub, as hub:OWNER/NAME"):
        check(load_config("evaluate", ["policies=[base,'collabllm/sft-math']"]), "evaluate")


def test_what_does_not_sample_is_free_of_the_rules_of_sampling():
    stored = ["algorithm=dpo", "algorithm.data=talks.jsonl", "sampler.group_size=1", "sampler.top_p=0.9"]
    check(load_config("train", stored))
    check(load_config("train", ["algorithm=ppo", "sampler.group_size=1"]))  # a value head compares with itself
    check(load_config("evaluate", ["algorithm=dpo"]), "evaluate")


@pytest.mark.parametrize("every", [0, 1, 12, 24, 25])
def test_the_last_step_is_validated_or_none_is_before_it(every):
    check(load_config("train", [f"trainer.val_every={every}"]))


def test_training_needs_a_proactive_prompt_whatever_policies_says():
    overrides = ["task.proactive_prompt=' '", "policies=[base]"]
    with pytest.raises(BadInput, match="training compares base, proactive and trained"):
        check(load_config("train", overrides))
    check(load_config("evaluate", overrides), "evaluate")
    with pytest.raises(BadInput, match="policies has proactive"):
        check(load_config("evaluate", overrides[:1]), "evaluate")


def test_a_baseline_is_a_row_of_the_table():
    check(load_config("evaluate", ["evaluation.baseline=proactive"]), "evaluate")
    check(load_config("evaluate", ["policies=[proactive]"]), "evaluate")  # nothing is compared
    check(load_config("train", ["evaluation.baseline=trained"]))
    with pytest.raises(BadInput, match=r"evaluation\.baseline \(trained\) must be a row of the table: base, proactive"):
        check(load_config("evaluate", ["evaluation.baseline=trained"]), "evaluate")


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["algorithm=online_dpo"], r"the loss of online_dpo does not weight them .* Set algorithm=grpo, rloo or ppo"),
        (["algorithm=sft", "algorithm.data=a.jsonl"], "sft learns from stored ones: nothing is played"),
        (["algorithm=grpo", "engine=vllm"], "the engine is collab.generation.vllm.VLLMEngine. Set engine=local"),
        (["algorithm=rloo", "strategy=fsdp"], "strategy=fsdp keeps shards. Set strategy=ddp"),
        (["algorithm=ppo", "user=local"], r"user\.endpoint\.kind=local is one model in this process"),
        (["algorithm=ppo", "judge=local"], r"judge\.endpoint\.kind=local is one model in this process"),
        (["algorithm=grpo", "engine.deterministic=true"], "Set threads=1 or engine.deterministic=false"),
        (["algorithm=grpo", "rollout.max_staleness=-1"], r"rollout\.max_staleness \(-1\) must be at least 0"),
    ],
)
def test_overlap_is_refused_where_it_cannot_be(overrides, problem):
    with pytest.raises(BadInput, match=problem):
        check(load_config("train", ["rollout.max_staleness=2", *overrides]))


@pytest.mark.parametrize("overrides", [["algorithm=grpo_small"], ["algorithm=rloo"], ["algorithm=ppo", "strategy=ddp"]])
def test_overlap_goes_with_what_weights_samples(overrides):
    check(load_config("train", ["rollout.max_staleness=2", *overrides]))


def test_all_problems_are_told_at_once():
    with pytest.raises(BadInput, match="3 problems") as error:
        check(load_config("train", ["sampler.window=-1", "sampler.group_size=1", "algorithm.lr=-1"]))
    assert all(key in str(error.value) for key in ("sampler.window", "group_size", "algorithm.lr"))


@pytest.mark.parametrize(
    "override", ["sampler.group_size=1", "sampler.top_p=0.9", "sampler.temperature=0", "trainer.val_every=7"]
)
def test_rules_of_the_update_do_not_bind_an_evaluation(override):
    check(load_config("evaluate", [override]), "evaluate")


def test_a_model_folder_is_told_from_any_other(tmp_path):
    with pytest.raises(BadInput, match=r"neither config\.json nor adapter_config\.json"):
        check(load_config("train", [f"model.path={tmp_path}"]))
    (tmp_path / "adapter_config.json").write_text("{}")
    check(load_config("train", [f"model.path={tmp_path}"]))
    with pytest.raises(BadInput, match="is a file, and a model is a folder"):
        check(load_config("train", [f"model.path={tmp_path}/adapter_config.json"]))
    check(load_config("train", ["model.path=owner/name"]))  # may be on the hub


def test_policies_are_named_by_themselves_or_by_their_run(tmp_path):
    for run in ("run-seed1", "run-seed2"):
        (tmp_path / run / "policy").mkdir(parents=True)
        (tmp_path / run / "policy" / "config.json").write_text("{}")
    first, second = (str(tmp_path / run / "policy") for run in ("run-seed1", "run-seed2"))
    assert named_policies(["base", "proactive", first, f"mine:{second}"]) == {
        "base": None,
        "proactive": None,
        "run-seed1": Path(first),
        "mine": Path(second),
    }
    assert not list(policy_problems(["base", "proactive", first, f"mine:{second}"]))
    assert ["twice" in text for text in policy_problems([first, f"run-seed1:{second}"])] == [True]
    assert ["no config.json" in text for text in policy_problems([str(tmp_path)])] == [True]
    (problem,) = policy_problems([f"base:{first}"])
    assert "would be called base" in problem and f"as in my_base:{first}" in problem
    (tmp_path / "run-seed1").rename(tmp_path / "proactive")
    (problem,) = policy_problems([str(tmp_path / "proactive" / "policy")])
    assert "would be called proactive" in problem
