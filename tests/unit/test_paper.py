"""`experiment=paper/...` composes the paper's figures for each of its algorithms."""

from __future__ import annotations

from pathlib import Path

import pytest
from composing import load_config
from marks import slow

from benchmarks import paper_costs, two_bleus
from collab.app.estimate import describe, estimate
from collab.chat.base import Sampling
from collab.chat.completions import request_body
from collab.config.checks import check
from collab.config.policies import system_prompt
from collab.config.schema import Config, LLMJudgeConfig, LLMUserConfig
from collab.conversation import Goal
from collab.datamodules.goals import GoalSplits
from collab.randomness import RngKey

# CollabLLM (arXiv 2502.00640), section 4 and appendix B; from the authors' scripts: schedule and choice of the data
# (scripts/train/*.py), temperature of the policy (scripts/config.sh).
ALGORITHMS = {  # learning rate, total batch, epochs, schedule, what is learned of the stored conversations
    "sft": (1e-5, 64, 3, "cosine", {"best_path": True}),
    "dpo": (5e-6, 64, 8, "cosine", {"minimum_gap": 0.02}),
    "online_dpo": (5e-6, 32, 1, "cosine", {}),
    "ppo": (2e-6, 64, 5, "constant", {}),
}
TASKS = {  # lambda a token, temperature, conversations, turns, test goals, metric of the task
    "doc_edit": (1e-4, 0.8, 500, 2303, 100, "bleu"),
    "code": (5e-4, 0.6, 500, 2627, 600, "pass_rate"),
    "math": (5e-4, 0.6, 500, 2527, 200, "accuracy"),
}
FEW = (("code", "sft"), ("math", "ppo"))  # beside all algorithms of doc_edit; the others are slow


def paper(task: str, *overrides: str) -> Config:
    return load_config("train", [f"experiment=paper/{task}", *overrides])


@pytest.mark.parametrize(
    ("task", "algorithm"),
    [*(("doc_edit", name) for name in ALGORITHMS), *FEW]
    + [slow(task, name) for task in ("code", "math") for name in ALGORITHMS if (task, name) not in FEW],
)
def test_each_algorithm_brings_its_figures(task: str, algorithm: str) -> None:
    config = paper(task, f"algorithm={algorithm}")
    check(config)
    lr, batch, epochs, schedule, chosen = ALGORITHMS[algorithm]
    penalty, temperature, conversations, turns, tests, metric = TASKS[task]
    units = conversations if algorithm == "sft" else turns
    steps = epochs * units / batch
    assert (config.algorithm.lr, config.trainer.goals_per_step, config.algorithm.epochs) == (lr, batch, 1)
    assert config.trainer.max_steps == pytest.approx(steps, rel=0.03)  # to a multiple of the validations
    assert (config.algorithm.schedule, config.algorithm.warmup_steps) == (schedule, 0)
    assert {name: getattr(config.algorithm, name) for name in chosen} == chosen
    assert (config.algorithm.data is None) == (algorithm in ("online_dpo", "ppo"))
    lora, sampler = config.model.lora, config.sampler
    assert (lora.r, lora.alpha, lora.dropout) == (32, 16, 0.1)
    assert config.algorithm.lora_dropout is (algorithm in ("sft", "dpo"))
    assert (sampler.window, sampler.num_samples, sampler.group_size) == (2, 3, 2)
    assert sampler.temperature == (1.0 if algorithm == "dpo" else temperature)  # its log-probs are those at 1
    assert (config.task.num_train, config.task.num_test) == (conversations, tests)
    assert config.model.path == "meta-llama/Llama-3.1-8B-Instruct"
    weights = {name: each.weight for name, each in config.task.metrics.items()}
    assert weights == {metric: 1, "tokens_read": pytest.approx(-1000 * penalty), "interactivity": 1, "tokens_typed": 0}
    assert isinstance(config.user, LLMUserConfig) and isinstance(config.judge, LLMJudgeConfig)
    assert (config.user.endpoint.model, config.user.temperature, config.judge.temperature) == ("gpt-6-luna", 1.0, 0.0)


@pytest.mark.parametrize("task", TASKS)
def test_base_proactive_and_trained_are_told_what_the_papers_are(task: str) -> None:
    told = paper(task).task
    base, proactive, trained = (system_prompt(told, name) for name in ("base", "proactive", "trained"))
    assert base == "" and 0 < len(proactive) < len(trained) / 2


def test_the_command_line_wins_over_the_figures() -> None:
    config = paper("math", "algorithm=ppo", "algorithm.lr=1e-6", "trainer.max_steps=33")
    assert (config.algorithm.lr, config.trainer.max_steps) == (1e-6, 33)


@pytest.mark.parametrize("judge", paper_costs.JUDGES)
@pytest.mark.parametrize("user", ["openai", "gpt_4o_mini"])
def test_hosted_models_have_a_price(user: str, judge: str) -> None:
    config = paper("doc_edit", f"user={user}", f"judge={judge}")
    check(config)
    assert {config.user.endpoint.model, config.judge.endpoint.model} <= config.budget.prices.keys()  # type: ignore


@pytest.mark.parametrize(
    ("user", "asked"),
    [
        ("openai", {"model": "gpt-6-luna", "max_completion_tokens": 300, "reasoning_effort": "none"}),
        ("gpt_4o_mini", {"model": "gpt-4o-mini", "max_tokens": 300}),  # what it would refuse is not left over
    ],
)
def test_the_papers_user_and_the_one_after_it_are_asked_in_their_own_way(user: str, asked: dict[str, object]) -> None:
    config = paper("math", f"user={user}").user
    assert isinstance(config, LLMUserConfig)
    body = request_body(config.endpoint, [], Sampling(config.max_new_tokens, config.temperature), RngKey(1))
    fields = {name: value for name, value in body.items() if name not in ("messages", "top_p", "seed")}
    assert fields == {**asked, "temperature": 1.0}


@pytest.mark.parametrize(("algorithm", "chosen"), [("sft", {"best_path": True}), ("dpo", {"minimum_gap": 0.02})])
def test_the_choice_of_data_is_the_recipes_and_not_the_definitions(algorithm: str, chosen: dict[str, object]) -> None:
    ((name, value),) = chosen.items()
    given = {
        "paper": ["experiment=paper/math"],
        "collab": ["experiment=paper/math", "definitions=collab", "judge=none", "user=agenda"],
        "official": ["experiment=math", "definitions=official", "judge=local"],
    }
    found = {key: load_config("train", [*each, f"algorithm={algorithm}"]).algorithm for key, each in given.items()}
    assert {key: getattr(each, name) for key, each in found.items()} == {"paper": value, "collab": value, "official": 0}
    typed = load_config("train", [*given["paper"], f"algorithm={algorithm}", f"algorithm.{name}=0"]).algorithm
    assert not getattr(typed, name)


def test_an_estimate_has_the_papers_lengths_beside_the_limits() -> None:
    config = paper("doc_edit", "algorithm=online_dpo")
    goals = [Goal(str(number), "Write an article.", "word " * 300) for number in range(4)]
    found = estimate(config, GoalSplits(goals, goals, goals), "train")
    most, expected = ({call.role: call for call in calls} for calls in (found.total, found.expected))
    assert {role: call.calls for role, call in most.items()} == {role: call.calls for role, call in expected.items()}
    # 425 tokens of a reply instead of 2048 in each prompt, and 375 of an extracted article instead of 2048
    assert expected["user"].prompt_tokens < 0.5 * most["user"].prompt_tokens
    assert expected["extractor"].completion_tokens == pytest.approx(375 * expected["extractor"].calls, rel=0.01)
    # A judge reads a future as far as it goes: contexts at turns 1 to 5 and two turns more are 3, 4, 5, 5 and 5 turns.
    # A step has 32 contexts of two candidates with three futures, each judged for interactivity.
    made = {call.role: call for call in found.unit}["judge"]
    goal = 600 + 5 + 375  # instruction, prompt and reference
    assert made.calls == 32 * 2 * 3
    assert made.prompt_tokens / made.calls == goal + (3 + 4 + 5 + 5 + 5) / 5 * (64 + 2048)
    assert "expected, with replies as long as in the paper's Table 7" in describe(config, found)


PAGE = (Path(__file__).parents[2] / "docs/method/official.md").read_text(encoding="utf-8")


def test_the_page_has_both_bleus_of_the_showcase() -> None:
    assert two_bleus.table() in PAGE


def test_the_page_has_the_costs_that_its_command_prints() -> None:
    assert paper_costs.table(load_config) in PAGE
    for judge, model in paper_costs.JUDGES.items():
        config = load_config("train", [f"judge={judge}"])
        assert isinstance(config.judge, LLMJudgeConfig) and config.judge.endpoint.model == model
        assert model in config.budget.prices
