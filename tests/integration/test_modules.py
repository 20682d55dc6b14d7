"""One optimizer step of scored groups: what it learns from, what it changes, what it logs and what it leaves behind."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from models import tiny_lm, with_adapter
from stepping import fit

from collab.callbacks.checkpoint import BatchCheckpoint
from collab.config.algorithms import DPOConfig, GRPOConfig, PPOConfig, SFTConfig
from collab.conversation import Candidate, Conversation, Goal, Group, Reply, Score
from collab.modules.base import PolicyModule
from collab.modules.dpo import DPO
from collab.modules.grpo import GRPO
from collab.modules.packing import pack
from collab.modules.ppo import PPO
from collab.modules.sft import SFT
from collab.util.errors import BadInput

VOCABULARY = 61
TEMPERATURE = 0.7
KINDS: dict[str, tuple[Any, Any]] = {
    "grpo": (GRPO, GRPOConfig),
    "dpo": (DPO, DPOConfig),
    "sft": (SFT, SFTConfig),
    "ppo": (PPO, PPOConfig),
}


def make_lm(adapter: bool = True) -> Any:
    """A tiny random Llama, under a fresh adapter (which changes nothing yet)."""
    lm = tiny_lm(VOCABULARY, tie_word_embeddings=True)
    return with_adapter(lm, lora_dropout=0.5) if adapter else lm


def make(kind: str, adapter: bool = True, max_steps: int = 4, **fields: Any) -> PolicyModule:
    fields = {"lr": 1e-2, "warmup_steps": 0, "max_grad_norm": 0.0, **fields}
    target, config_class = KINDS[kind]
    config = config_class(**fields)
    return target(config, lambda: make_lm(adapter), None, TEMPERATURE, max_steps)


def group(number: int, rewards: Sequence[float], lengths: Sequence[int] = (3, 5, 1, 4)) -> Group:
    """Random replies to a random context, with the log-probs that the untrained policy gives them."""
    draw = torch.Generator().manual_seed(number)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(VOCABULARY, (count,), generator=draw).tolist())

    prompt, lm = ids(4 + number), make_lm(adapter=False)
    candidates = []
    for reward, length in zip(rewards, lengths, strict=False):
        tokens = ids(length)
        with torch.no_grad():
            logits = lm(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1] / TEMPERATURE
        logprobs = logits.log_softmax(-1).gather(-1, torch.tensor(tokens)[:, None])[:, 0]
        candidates.append(Candidate(Reply("", tokens, tuple(logprobs.tolist()), "stop", prompt), mr=reward))
    return Group(Conversation(Goal(str(number), "p", "r")), tuple(candidates))


REWARDS = [(0.1, 0.5, 0.2, 0.4), (0.9, 0.3, 0.3, 0.7), (0.2, 0.25, 0.8, 0.1)]
FLAT = (0.5, 0.5, 0.5, 0.5)


def groups(rewards: Sequence[Sequence[float]] = REWARDS) -> list[Group]:
    return [group(number, mrs) for number, mrs in enumerate(rewards, start=1)]


def update_gradient(module: PolicyModule, found: Sequence[Group]) -> dict[str, torch.Tensor]:
    """Gradient of the sum of losses, straight from what an algorithm says."""
    module.configure_model()
    assert module.policy is not None
    module.zero_grad()
    examples = module.examples(found)
    batch = pack([example.replies for example in examples], TEMPERATURE)
    with torch.no_grad():
        ref_logprobs = module.policy(batch, reference=True).logprobs
    module.loss(examples, batch, module.policy(batch), ref_logprobs).backward()
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], factor: float = 1.0) -> None:
    assert found.keys() == expected.keys() and found
    for name in expected:
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(found[name], factor * expected[name], atol=2e-4 * abs(factor) * scale, rtol=0)


def weights(module: PolicyModule) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def logprobs(module: PolicyModule, reply: Reply) -> torch.Tensor:
    assert module.policy is not None
    with torch.no_grad():
        return module.policy(pack([[reply]], TEMPERATURE)).logprobs


# --- which replies are learned from ----------------------------------------------------------------------------------


def test_dpo_takes_the_best_against_the_worst() -> None:
    module = make("dpo")
    (example,) = module.examples([group(1, (0.1, 0.5, 0.2, 0.4))])
    replies = [candidate.reply for candidate in group(1, REWARDS[0]).candidates]
    assert example.replies == (replies[1], replies[0])
    assert module.units(example) == 1


def test_dpo_leaves_out_pairs_that_hardly_differ() -> None:
    found = [group(1, (0.5, 0.25)), group(2, (0.5, 0.5)), group(3, (-0.25, -1.0)), group(4, (0.5,)), group(5, ())]
    kept = [example.replies[0].prompt_ids for example in make("dpo").examples(found)]
    assert kept == [found[0].candidates[0].reply.prompt_ids, found[2].candidates[0].reply.prompt_ids]
    (example,) = make("dpo", minimum_gap=0.25).examples(found)  # a gap has to be larger
    assert example.replies[0] == found[2].candidates[0].reply


def test_dropped_pairs_are_counted() -> None:
    found = [group(1, (0.5, 0.25)), group(2, (0.5, 0.5)), group(3, (-0.25, -1.0)), group(4, (0.5,)), group(5, ())]
    for least, dropped in ((0.0, 1), (0.25, 2), (9.0, 3)):
        _, scored = fit(make("dpo", minimum_gap=least), found)
        assert scored.logged[0]["dropped_pairs"] == dropped
        assert scored.logged[0]["groups_without_spread"] == pytest.approx((dropped + 2) / 5)


def part_of(one: Group, *values: float | None) -> Group:
    """The group with values of the metric `bleu`, each in one forward sample."""
    candidates = [
        replace(candidate, scores=() if value is None else (Score(candidate.mr, {"bleu": value}),))
        for candidate, value in zip(one.candidates, values, strict=True)
    ]
    return Group(one.context, tuple(candidates))


def test_sft_learns_from_the_best_of_each_group() -> None:
    given = [group(1, (0.1, 0.5, 0.2)), group(2, (0.9, 0.3)), group(3, (0.4,)), group(4, ())]
    module = make("sft")
    best = [given[0].candidates[1].reply, given[1].candidates[0].reply, given[2].candidates[0].reply]
    assert [example.replies for example in module.examples(given)] == [(reply,) for reply in best]
    assert [module.units(example) for example in module.examples(given)] == [5, 3, 3]
    _, scored = fit(make("sft"), given)
    lm = make_lm(adapter=False)  # the untrained policy, at temperature 1 whatever it is sampled at
    logprobs = []
    for reply in best:
        ids = torch.tensor([[*reply.prompt_ids, *reply.token_ids]])
        with torch.no_grad():
            found = lm(input_ids=ids).logits[0, len(reply.prompt_ids) - 1 : -1].log_softmax(-1)
        logprobs += found.gather(-1, torch.tensor(reply.token_ids)[:, None])[:, 0].tolist()
    assert scored.logged[0]["loss"] == pytest.approx(-sum(logprobs) / len(logprobs), abs=1e-4)
    assert scored.logged[0]["filtered_groups"] == 0


def test_sft_filters_by_a_metric_of_the_best() -> None:
    given = [
        part_of(group(1, (0.1, 0.5)), 0.9, 0.4),
        part_of(group(2, (0.9, 0.3)), 0.6, 0.8),
        part_of(group(3, (0.2, 0.7)), 0.6, None),
    ]
    for fields, kept in (
        ({"minimum_metric": "bleu", "minimum_value": 0.5}, [1]),  # a metric that is missing is not reached
        ({"minimum_metric": "bleu", "minimum_value": 0.4}, [0, 1]),
        ({"minimum_metric": "mr", "minimum_value": 0.7}, [1, 2]),
        ({"minimum_value": 9.0}, [0, 1, 2]),
    ):
        module = make("sft", **fields)
        best = [given[number].candidates[(1, 0, 1)[number]].reply for number in kept]
        assert [example.replies for example in module.examples(given)] == [(reply,) for reply in best]
        assert module.left_out(given) == {"filtered_groups": 3 - len(kept)}


def test_what_stored_groups_are_worth_is_told() -> None:
    given = [part_of(group(1, (0.1, 0.5)), 0.9, 0.4), part_of(group(2, (0.9, 0.8)), 0.6, 0.8), group(3, (0.2,))]
    assert make("dpo", minimum_gap=0.2).check_data(given) == "1 pairs of 3 groups, 1 dropped by algorithm.minimum_gap"
    module = make("sft", minimum_metric="bleu", minimum_value=0.5)
    assert module.check_data(given) == "1 replies of 3 groups, 2 filtered by algorithm.minimum_metric"
    assert make("grpo").check_data(given) == "2 of 3 groups are learned from"


@pytest.mark.parametrize(
    ("kind", "fields", "given", "said"),
    [
        (
            "dpo",
            {"minimum_gap": 0.5},
            [(0.1, 0.5), (0.9, 0.8), (0.3,)],
            "algorithm.data=talks has no usable pair for dpo in its 3 groups: the largest gap between the scores of a "
            "group is 0.4, and it has to be more than algorithm.minimum_gap (0.5). Set a smaller one",
        ),
        ("dpo", {}, [(0.3,), (0.4,)], "in its 2 groups: none has two candidates with a score. Take data that keeps"),
        (
            "sft",
            {"minimum_metric": "blue"},
            [(0.1, 0.5)],
            "algorithm.minimum_metric=blue is no metric of algorithm.data=talks. It has mr, bleu. Set "
            "algorithm.minimum_metric to one of them, or to null to keep all.",
        ),
        (
            "sft",
            {"minimum_metric": "bleu", "minimum_value": 0.7},
            [(0.1, 0.5)],
            "no reply whose bleu is at least algorithm.minimum_value (0.7): the best has 0.25.",
        ),
        ("sft", {"minimum_metric": "mr", "minimum_value": 0.7}, [(0.1, 0.5)], "mr is at least"),
        ("sft", {}, [()], "has no scored reply for sft"),
        ("grpo", {}, [FLAT], "has nothing for grpo to learn from in its 1 groups"),
    ],
)
def test_stored_groups_that_teach_nothing_are_refused(
    kind: str, fields: dict[str, Any], given: list[tuple[float, ...]], said: str
) -> None:
    found = [part_of(group(number, mrs), *[0.25] * len(mrs)) for number, mrs in enumerate(given, 1)]
    with pytest.raises(BadInput) as error:
        make(kind, data="talks", **fields).check_data(found)
    assert said in str(error.value)


def test_grpo_weighs_every_candidate_against_its_group() -> None:
    (example,) = make("grpo", scale_by_std=False).examples([group(1, (0.1, 0.5, 0.2, 0.4)), group(2, FLAT)])
    assert example.weights == pytest.approx((-0.2, 0.2, -0.1, 0.1))
    assert make("grpo").units(example) == 3 + 5 + 1 + 4
    (scaled,) = make("grpo").examples([group(1, (0.1, 0.5, 0.2, 0.4))])
    std = math.sqrt((0.04 + 0.04 + 0.01 + 0.01) / 3)
    assert scaled.weights == pytest.approx((-0.2 / std, 0.2 / std, -0.1 / std, 0.1 / std), rel=1e-4)
    assert make("grpo").examples([group(1, (0.5,)), group(2, ())]) == []


def test_grpo_learns_from_those_that_stand_out() -> None:
    given = [group(1, (0.1, 0.5, 0.25, 0.4))]
    (example,), (whole,) = make("grpo", max_trained_candidates=3).examples(given), make("grpo").examples(given)
    assert example.replies == whole.replies[:2] + whole.replies[3:]  # the third is nearest to the mean
    assert example.weights == whole.weights[:2] + whole.weights[3:]  # compared with all, not with each other
    assert make("grpo", max_trained_candidates=9).examples(given) == [whole]


# --- the gradient ----------------------------------------------------------------------------------------------------


def test_negated_rewards_negate_the_gradient_of_grpo() -> None:
    plain = update_gradient(make("grpo"), groups())
    assert all("lora_" in name for name in plain)
    negated = update_gradient(make("grpo"), groups([[-mr for mr in mrs] for mrs in REWARDS]))
    assert_same(negated, plain, factor=-1)


def test_on_policy_grpo_is_the_plain_policy_gradient() -> None:
    module = make("grpo", scale_by_std=False)
    found = update_gradient(module, groups())
    module.zero_grad()
    assert module.policy is not None
    for one in groups():
        mean = sum(c.mr or 0 for c in one.candidates) / 4
        for candidate in one.candidates:
            batch = pack([[candidate.reply]], TEMPERATURE)
            (-(candidate.mr - mean) * module.policy(batch).logprobs.sum()).backward()  # type: ignore[operator]
    assert_same(found, {n: p.grad.clone() for n, p in module.named_parameters() if n in found and p.grad is not None})


def test_swapping_best_and_worst_turns_the_gradient_of_dpo_round() -> None:
    plain = update_gradient(make("dpo"), [group(1, (0.0, 1.0)), group(2, (1.0, 0.0))])
    swapped = update_gradient(make("dpo"), [group(1, (1.0, 0.0)), group(2, (0.0, 1.0))])
    assert_same(swapped, plain, factor=-1)


def test_dpo_starts_at_log_two_for_each_pair() -> None:
    module = make("dpo", tokens_per_micro_batch=30)
    _, scored = fit(module, groups())
    assert scored.logged[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize(("kind", "fields"), [("grpo", {}), ("grpo", {"kl_coef": 0.1}), ("dpo", {})])
def test_the_size_of_micro_batches_does_not_change_the_update(kind: str, fields: dict[str, Any]) -> None:
    # Two steps, so that policy and reference differ in the second.
    runs = [fit(make(kind, tokens_per_micro_batch=size, **fields), groups(), steps=2)[1] for size in (1, 32, 999)]
    for run in runs[1:]:
        for step in range(2):
            expected = runs[0].gradients[step]
            nonzero = {name for name, gradient in expected.items() if gradient.abs().max() > 0}
            assert_same({n: run.gradients[step][n] for n in nonzero}, {n: expected[n] for n in nonzero})
            assert run.logged[step] == pytest.approx(runs[0].logged[step], rel=1e-3, abs=1e-5)
    assert runs[0].logged[1]["kl"] > 1e-4


@pytest.mark.parametrize(("kl_coef", "expected"), [(0.0, 1), (0.1, 3)])
def test_the_reference_reads_all_of_a_step_only_where_the_loss_needs_it(kl_coef: float, expected: int) -> None:
    module = make("grpo", tokens_per_micro_batch=1, kl_coef=kl_coef)
    module.configure_model()
    assert module.policy is not None
    asked = []
    module.policy.register_forward_pre_hook(lambda _, args, kwargs: asked.append(kwargs), with_kwargs=True)
    _, scored = fit(module, groups(), steps=2)
    assert asked.count({"reference": True}) == 2 * expected and len(asked) == 2 * (expected + 3)
    assert scored.logged[1]["kl"] > 1e-4


def test_a_step_is_the_mean_over_its_units() -> None:
    total = update_gradient(make("grpo"), groups())
    _, scored = fit(make("grpo"), groups())
    units = sum(len(c.reply.token_ids) for g in groups() for c in g.candidates)
    assert_same({name: scored.gradients[0][name] for name in total}, total, factor=1 / units)


def test_the_kl_term_pulls_back_to_the_reference() -> None:
    reply = groups()[0].candidates[1].reply
    free, held = make("grpo", lr=3e-2), make("grpo", lr=3e-2, kl_coef=5.0)
    start = make("grpo")
    start.configure_model()
    before = logprobs(start, reply)
    moved = []
    for module in (free, held):
        fit(module, groups(), steps=4)
        moved.append(float((logprobs(module, reply) - before).abs().mean()))
    assert moved[1] < 0.7 * moved[0]


# --- a step through Lightning ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["grpo", "dpo", "sft", "ppo"])
def test_a_step_changes_the_adapter_alone_and_helps_the_better_reply(kind: str) -> None:
    module = make(kind, epochs=1)
    module.configure_model()
    before = weights(module)
    one = group(1, (0.0, 1.0))
    worse, better = (candidate.reply for candidate in one.candidates)
    gap = (logprobs(module, better).sum() - logprobs(module, worse).sum()).item()
    trainer, _ = fit(module, [one])
    changed = {name for name, weight in weights(module).items() if not torch.equal(weight, before[name])}
    head = {name for name in before if "value_head" in name}
    assert bool(head) == (kind == "ppo")
    assert changed == {name for name in before if "lora_B" in name} | head  # lora_A moves once B is not zero
    assert (logprobs(module, better).sum() - logprobs(module, worse).sum()).item() > gap
    assert trainer.global_step == 1


def test_full_fine_tuning_moves_the_policy_and_not_its_reference() -> None:
    module = make("grpo", adapter=False)
    module.configure_model()
    before = weights(module)
    _, scored = fit(module, groups(), steps=2)
    changed = {name for name, weight in weights(module).items() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if name.startswith("policy.lm.")}
    assert scored.logged[0]["kl"] == pytest.approx(0, abs=1e-6) and scored.logged[1]["kl"] > 1e-4


def test_what_is_logged() -> None:
    module = make("grpo", warmup_steps=4, max_grad_norm=1e-3)
    found = [*groups(), group(4, FLAT)]
    module.configure_model()
    assert module.policy is not None
    with torch.no_grad():
        batch = pack([[c.reply for c in g.candidates] for g in groups()], TEMPERATURE)
        entropy = module.policy(batch).entropy.mean().item()
    _, scored = fit(module, found, steps=2)
    first, second = scored.logged
    assert first["entropy"] == pytest.approx(entropy, rel=1e-4)
    assert first["kl"] == pytest.approx(0, abs=1e-6)  # a fresh adapter changes nothing
    assert first["groups_without_spread"] == second["groups_without_spread"] == 0.25
    norm = math.sqrt(sum(float(g.square().sum()) for g in scored.gradients[0].values()))
    assert norm == pytest.approx(1e-3, rel=1e-2) and first["grad_norm"] > 10 * norm  # logged before it is clipped
    # On-policy the loss is the mean over tokens of -advantage.
    examples = module.examples(groups())
    total = sum(w * len(r.token_ids) for e in examples for w, r in zip(e.weights, e.replies, strict=True))
    assert first["loss"] == pytest.approx(-total / len(batch.targets), abs=1e-4)


def test_the_learning_rate_follows_the_steps() -> None:
    rates: list[float] = []

    class Rates(L.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    fit(make("grpo", lr=0.1, warmup_steps=2, schedule="linear", max_steps=6), groups(), 6, [Rates()])
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.075, 0.05, 0.025])


@pytest.mark.parametrize("kind", ["grpo", "dpo"])
@pytest.mark.parametrize("flat", [{0}, {1, 2, 3}, {0, 1, 3, 4}])
def test_the_schedule_reaches_its_end_whatever_steps_have_nothing_to_learn_from(kind: str, flat: set[int]) -> None:
    def per_step(step: int) -> list[Group]:
        return [group(1, FLAT)] if step in flat else [group(1, REWARDS[0])]

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*lr_scheduler.*")
        trainer, scored = fit(make(kind, lr=0.6, schedule="linear", max_steps=6), per_step, 6)
    assert [logged["lr"] for logged in scored.logged] == pytest.approx([0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    assert trainer.global_step == len(scored.gradients) == 6 - len(flat)


def test_a_step_without_spread_changes_nothing() -> None:
    module = make("dpo")
    module.configure_model()
    before = weights(module)
    trainer, scored = fit(module, [group(1, FLAT), group(2, FLAT)])
    assert trainer.global_step == 0 and not scored.gradients
    assert all(torch.equal(weight, before[name]) for name, weight in weights(module).items())
    assert scored.logged[0]["groups_without_spread"] == 1 and scored.logged[0]["loss"] == 0


def test_the_kl_is_read_off_the_first_update_that_there_is() -> None:
    found = [*(group(n, FLAT) for n in range(4, 7)), *groups()]
    _, scored = fit(make("grpo", num_minibatches=2), found, steps=2)
    assert len(scored.gradients) == 2
    assert scored.logged[0]["kl"] == pytest.approx(0, abs=1e-6) and scored.logged[1]["kl"] > 0


def test_groups_without_spread_do_not_water_down_the_others() -> None:
    _, alone = fit(make("grpo"), groups())
    _, mixed = fit(make("grpo"), [group(7, FLAT), *groups(), group(8, (0.5,))])
    nonzero = {name for name, gradient in alone.gradients[0].items() if gradient.abs().max() > 0}
    assert_same({n: mixed.gradients[0][n] for n in nonzero}, {n: alone.gradients[0][n] for n in nonzero})


# --- PPO -------------------------------------------------------------------------------------------------------------


def prepared(module: PolicyModule, found: list[Group]) -> list[Any]:
    """The groups of `found` as PPO learns from them."""
    kept: list[Any] = []
    prepare = module.prepare
    module.prepare = lambda examples: kept.extend(prepare(examples)) or kept  # type: ignore[method-assign]
    fit(module, found)
    return kept


def test_an_untrained_head_leaves_the_reward_to_gae() -> None:
    """Values of zero and no KL: the reward at the end, discounted by gamma * lambda for each token before it."""
    module = make("ppo", gamma=0.9, gae_lambda=0.5)
    (found,) = prepared(module, [group(1, (0.5, -2.0), (3, 2))])
    assert found.values.tolist() == [0] * 5
    assert found.weights == (0.5, -2.0)
    expected = [0.5 * 0.45**2, 0.5 * 0.45, 0.5, -2.0 * 0.45, -2.0]
    assert found.returns.tolist() == pytest.approx(expected)


def test_what_departs_from_the_reference_pays_for_it() -> None:
    """Each token loses kl_coef times its log-ratio: seen at lambda 0 and values of zero."""
    module = make("ppo", kl_coef=0.5, gae_lambda=0.0, lr=0.0)
    module.configure_model()
    assert module.policy is not None
    with torch.no_grad():
        for name, parameter in module.policy.lm.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    one = group(1, (1.0,), (4,))
    batch = pack([[one.candidates[0].reply]], TEMPERATURE)
    with torch.no_grad():
        ratio = module.policy(batch).logprobs - module.policy(batch, reference=True).logprobs
    assert ratio.abs().max() > 0.01
    expected = -0.5 * ratio + torch.tensor([0.0, 0.0, 0.0, 1.0])
    torch.testing.assert_close(prepared(module, [one])[0].returns, expected, atol=1e-6, rtol=0)


def test_scaled_advantages_are_those_of_the_whole_rollout() -> None:
    kept = prepared(make("ppo", num_minibatches=3, tokens_per_micro_batch=30), groups())
    every = torch.cat([episodes.advantages for episodes in kept])
    assert len(kept) == 3 and abs(every.mean()) < 1e-5 and every.std(correction=0) == pytest.approx(1, abs=1e-4)
    assert any(abs(episodes.advantages.mean()) > 0.1 for episodes in kept)


def test_the_value_head_learns_what_replies_are_worth() -> None:
    """From nothing explained to most of it: the second group's replies are worth more."""
    found = [group(1, (0.1, 0.0)), group(2, (1.0, 0.9))]
    module = make("ppo", lr=3e-2, value_clip=1.0, value_coef=1.0, gae_lambda=1.0, kl_coef=0.0, epochs=8)
    _, scored = fit(module, found, steps=3)
    explained = [log["values_explained"] for log in scored.logged]
    assert explained[0] == pytest.approx(0, abs=1e-6) and explained[-1] > 0.8


def test_each_pass_over_a_rollout_makes_its_updates() -> None:
    module = make("ppo", epochs=2, num_minibatches=3, warmup_steps=12)
    trainer, scored = fit(module, groups(), steps=2)
    assert trainer.global_step == len(scored.gradients) == 2 * 2 * 3
    assert [log["lr"] for log in scored.logged] == pytest.approx([1e-2 / 12, 7e-2 / 12])
    assert len(fit(make("grpo", epochs=2), groups())[1].gradients) == 2


def test_ppo_learns_from_single_candidates_and_from_none_at_all() -> None:
    module = make("ppo")
    module.configure_model()
    before = weights(module)
    _, scored = fit(module, [group(1, ())])
    assert not scored.gradients and scored.logged[0]["groups_without_spread"] == 1
    assert all(torch.equal(weight, before[name]) for name, weight in weights(module).items())
    _, scored = fit(make("ppo"), [group(1, (0.3,)), group(2, ()), group(3, FLAT)])
    assert len(scored.gradients) == 4 and scored.logged[0]["groups_without_spread"] == pytest.approx(1 / 3)


# --- steps that go too far -------------------------------------------------------------------------------------------


def after_one_step(one: Group, **fields: Any) -> tuple[dict[str, torch.Tensor], dict[str, float], PolicyModule]:
    module = make("grpo", **fields)
    _, scored = fit(module, [one])
    return weights(module), scored.logged[0], module


def moved_by(module: PolicyModule, one: Group) -> float:
    """Half the mean square by which the log-probs of a group differ from those it was sampled with."""
    replies = [candidate.reply for candidate in one.candidates]
    sampled = torch.tensor([logprob for reply in replies for logprob in reply.logprobs])
    now = torch.cat([logprobs(module, reply) for reply in replies])
    return float((now - sampled).square().mean() / 2)


@pytest.mark.parametrize("adapter", [True, False])
def test_a_step_that_moves_the_policy_too_far_goes_a_part_of_its_way(adapter: bool) -> None:
    one, start = group(1, REWARDS[0]), make("grpo", adapter=adapter)
    start.configure_model()
    before = weights(start)
    whole, free, module = after_one_step(one, adapter=adapter, lr=1e-3)
    far = moved_by(module, one)
    target = far / 9
    part, logged, bound = after_one_step(one, adapter=adapter, lr=1e-3, target_kl=target)
    assert "step_kl" not in free
    assert logged["step_kl"] == pytest.approx(far, rel=1e-3) and logged["step_scale"] == pytest.approx(1 / 3, rel=1e-3)
    for name, weight in part.items():
        torch.testing.assert_close(weight - before[name], (whole[name] - before[name]) / 3, atol=1e-6, rtol=1e-3)
    assert moved_by(bound, one) < 2 * target  # so long a step is not quite quadratic


def test_a_step_that_does_not_go_too_far_is_left_alone() -> None:
    one = group(1, REWARDS[0])
    whole, _, module = after_one_step(one, lr=1e-3)
    bound, logged, _ = after_one_step(one, lr=1e-3, target_kl=1.1 * moved_by(module, one))
    assert logged["step_scale"] == 1 and all(torch.equal(weight, whole[name]) for name, weight in bound.items())


def test_a_rollout_without_steps_has_no_length_of_a_step() -> None:
    _, scored = fit(make("grpo", target_kl=0.1), [group(1, FLAT)])
    assert math.isnan(scored.logged[0]["step_kl"]) and math.isnan(scored.logged[0]["step_scale"])


# --- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "adapter"), [("dpo", True), ("dpo", False), ("ppo", True)])
def test_a_checkpoint_holds_the_trained_weights_alone(tmp_path: Path, kind: str, adapter: bool) -> None:
    module = make(kind, adapter=adapter)
    trainer, _ = fit(module, groups(), steps=2)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert set(state) == trained
    head = {name for name in state if "value_head" in name}
    assert len(head) == 2 * (kind == "ppo")
    assert all(("lora_" in name) == adapter and "reference" not in name for name in state.keys() - head)
    fresh = make(kind, adapter=adapter)
    fresh.configure_model()
    fresh.load_state_dict(state, strict=False)
    assert fresh.policy is not None and module.policy is not None
    batch = pack([[groups()[0].candidates[0].reply]], TEMPERATURE)
    with torch.no_grad():
        found, expected = fresh.policy(batch), module.policy(batch)
    assert torch.equal(found.logprobs, expected.logprobs)
    if head:
        assert torch.equal(found.values, expected.values) and expected.values.abs().min() > 0


@pytest.mark.parametrize(("kind", "adapter"), [("grpo", True), ("grpo", False), ("ppo", True)])
def test_a_run_that_is_taken_up_ends_as_if_it_had_not_stopped(tmp_path: Path, kind: str, adapter: bool) -> None:
    def per_step(step: int) -> list[Group]:
        return [group(10 + step, REWARDS[step % 3])]

    fields: dict[str, Any] = {
        "adapter": adapter,
        "schedule": "cosine",
        "warmup_steps": 1,
        "epochs": 1,
        "target_kl": 1e-4,
    }
    whole = make(kind, **fields)
    fit(whole, per_step, 4, [BatchCheckpoint(tmp_path, every_n_steps=2)])
    again = make(kind, **fields)
    _, scored = fit(again, per_step, 4, ckpt_path=str(tmp_path / "step-000002.ckpt"))
    assert len(scored.gradients) == 2
    expected = weights(whole)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(again).items())
