"""Losses and the schedule by hand arithmetic, and by what must hold whatever the numbers are."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from collab.modules.base import learning_rate_scale
from collab.modules.losses import (
    MAX_WEIGHT,
    clipped_policy_losses,
    clipped_value_losses,
    dpo_losses,
    generalised_advantages,
    group_advantages,
    importance_weights,
    kl_estimates,
    sequence_sums,
)


def close(found: torch.Tensor, *expected: float) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), atol=1e-6, rtol=1e-5)


@pytest.fixture
def noise() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# --- sums ------------------------------------------------------------------------------------------------------------


def test_sequence_sums_by_hand() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    close(sequence_sums(values, torch.tensor([0, 0, 2, 0, 2]), 4), 11, 0, 20, 0)


# --- DPO -------------------------------------------------------------------------------------------------------------


def test_dpo_by_hand() -> None:
    chosen, rejected = torch.tensor([-10.0, -3.0]), torch.tensor([-12.0, -2.0])
    ref_chosen, ref_rejected = torch.tensor([-11.0, -3.5]), torch.tensor([-11.5, -5.0])
    # Margins: (1 - -0.5) = 1.5 and (0.5 - 3) = -2.5.
    expected = [math.log(1 + math.exp(-0.1 * 1.5)), math.log(1 + math.exp(0.1 * 2.5))]
    close(dpo_losses(chosen, rejected, ref_chosen, ref_rejected, beta=0.1), *expected)


def test_dpo_is_log_two_where_policy_and_reference_agree(noise: torch.Generator) -> None:
    chosen, rejected = -10 * torch.rand(2, 5, generator=noise)
    close(dpo_losses(chosen, rejected, chosen, rejected, beta=3.0), *[math.log(2)] * 5)


def test_dpo_swapped_at_equality_turns_the_gradient_round(noise: torch.Generator) -> None:
    values = -10 * torch.rand(2, 4, generator=noise)

    def gradient(swapped: bool) -> torch.Tensor:
        logprobs = values.clone().requires_grad_()
        first, second = logprobs.flip(0) if swapped else logprobs
        ref_first, ref_second = values.flip(0) if swapped else values
        dpo_losses(first, second, ref_first, ref_second, beta=0.2).sum().backward()
        assert logprobs.grad is not None
        return logprobs.grad

    # d/dx -log sigmoid(beta x) at 0 is -beta / 2.
    torch.testing.assert_close(gradient(False), torch.tensor([[-0.1], [0.1]]).expand(2, 4))
    torch.testing.assert_close(gradient(True), -gradient(False))


def test_dpo_stays_finite_for_margins_that_are_huge() -> None:
    far, none = torch.tensor([2000.0]), torch.zeros(1)
    close(dpo_losses(-far, none, none, none, beta=1.0), 2000.0)
    close(dpo_losses(far, none, none, none, beta=1.0), 0.0)


# --- GRPO ------------------------------------------------------------------------------------------------------------


def test_advantages_by_hand() -> None:
    rewards = torch.tensor([1.0, 2.0, 6.0])
    close(group_advantages(rewards, scale_by_std=False, std_eps=1e-6), -2, -1, 3)
    std = math.sqrt((4 + 1 + 9) / 2)
    close(group_advantages(rewards, scale_by_std=True, std_eps=1e-6), -2 / std, -1 / std, 3 / std)


def test_a_floor_makes_small_differences_small_and_leaves_large_ones() -> None:
    apart, alike = torch.tensor([0.0, 10.0]), torch.tensor([0.0, 0.01])
    std = math.sqrt(0.5)  # of 0 and 1, with Bessel's correction
    close(group_advantages(apart, True, 0.1), -5 / (10 * std + 0.1), 5 / (10 * std + 0.1))
    close(group_advantages(alike, True, 0.1), -0.005 / (0.01 * std + 0.1), 0.005 / (0.01 * std + 0.1))
    close(group_advantages(alike, False, 0.1), -0.005, 0.005)


def test_advantages_against_the_others_by_hand() -> None:
    rewards = torch.tensor([1.0, 2.0, 6.0])
    close(group_advantages(rewards, False, 1e-6, leave_one_out=True), 1 - 4, 2 - 3.5, 6 - 1.5)
    std = math.sqrt((4 + 1 + 9) / 2)
    close(group_advantages(rewards, True, 1e-6, leave_one_out=True), -3 / std, -1.5 / std, 4.5 / std)
    close(group_advantages(torch.tensor([0.25, 1.0]), False, 1e-6, leave_one_out=True), -0.75, 0.75)
    close(group_advantages(torch.tensor([0.25]), False, 1e-6, leave_one_out=True), 0)


@pytest.mark.parametrize("scale_by_std", [True, False])
def test_advantages_centre_and_vanish_without_spread(noise: torch.Generator, scale_by_std: bool) -> None:
    rewards = torch.rand(8, generator=noise)
    advantages = group_advantages(rewards, scale_by_std, 1e-6)
    assert abs(advantages.sum()) < 1e-5 and advantages.argmax() == rewards.argmax()
    torch.testing.assert_close(group_advantages(-rewards, scale_by_std, 1e-6), -advantages)
    torch.testing.assert_close(group_advantages(rewards + 5, scale_by_std, 1e-6), advantages, atol=1e-5, rtol=1e-5)
    close(group_advantages(torch.full((4,), 0.3), scale_by_std, 1e-6), 0, 0, 0, 0)
    close(group_advantages(torch.tensor([0.3]), scale_by_std, 1e-6), 0)


def test_scaled_advantages_do_not_know_the_unit_of_reward(noise: torch.Generator) -> None:
    rewards = torch.rand(8, generator=noise)
    scaled = group_advantages(rewards, scale_by_std=True, std_eps=1e-6)
    torch.testing.assert_close(
        group_advantages(100 * rewards, scale_by_std=True, std_eps=1e-6), scaled, atol=1e-4, rtol=0
    )


def test_clipped_losses_by_hand() -> None:
    ratios = torch.tensor([1.0, 1.1, 1.5, 0.5, 1.5, 0.5])
    advantages = torch.tensor([2.0, 2.0, 2.0, 2.0, -2.0, -2.0])
    losses = clipped_policy_losses(ratios.log(), torch.zeros(6), advantages, clip_epsilon=0.2)
    # A better token gains nothing beyond 1.2, a worse one nothing below 0.8; moves that hurt count in full.
    close(losses, -2.0, -2.2, -2.4, -1.0, 3.0, 1.6)


def test_clipping_stops_the_gradient_only_where_it_lowers_the_objective() -> None:
    ratios = torch.tensor([1.5, 0.5, 1.5, 0.5])
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    logprobs = ratios.log().requires_grad_()
    clipped_policy_losses(logprobs, torch.zeros(4), advantages, 0.2).sum().backward()
    assert logprobs.grad is not None
    close(logprobs.grad, 0.0, -0.5, 1.5, 0.0)


def test_on_policy_the_gradient_is_that_of_plain_policy_gradient(noise: torch.Generator) -> None:
    sampled = -torch.rand(6, generator=noise)
    advantages = torch.randn(6, generator=noise)
    logprobs = sampled.clone().requires_grad_()
    clipped_policy_losses(logprobs, sampled, advantages, 0.2).sum().backward()
    torch.testing.assert_close(logprobs.grad, -advantages)


@pytest.mark.parametrize("advantage", [1.5, -1.5])
def test_weights_of_tokens_that_an_older_policy_sampled_by_hand(advantage: float) -> None:
    sampled = torch.tensor([0.5, 0.5, 0.1, 0.4]).log()
    proximal = torch.tensor([0.5, 0.25, 0.8, 0.6]).log()
    close(importance_weights(proximal, sampled), 1.0, 0.5, MAX_WEIGHT, 1.5)
    # In front of the clipped surrogate, whose ratio is to the proximal policy.
    logprobs = (proximal + torch.tensor([1.1, 1.0, 1.0, 0.9]).log()).requires_grad_()
    losses = importance_weights(proximal, sampled) * clipped_policy_losses(
        logprobs, proximal, torch.full((4,), advantage), clip_epsilon=0.2
    )
    close(losses, *(-advantage * x for x in (1.1, 0.5, 2.0, 1.5 * 0.9)))
    losses.sum().backward()
    assert logprobs.grad is not None
    close(logprobs.grad, *(-advantage * x for x in (1.1, 0.5, 2.0, 1.5 * 0.9)))


def test_where_nothing_is_stale_the_weighted_loss_is_the_strict_one_to_the_bit(noise: torch.Generator) -> None:
    sampled = -3 * torch.rand(999, generator=noise)
    start = sampled + 0.5 * torch.randn(999, generator=noise)
    advantages = torch.randn(999, generator=noise)

    def loss_and_gradient(weighted: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        logprobs = start.clone().requires_grad_()
        losses = clipped_policy_losses(logprobs, sampled, advantages, 0.2)
        if weighted:
            losses = importance_weights(sampled, sampled) * losses
        losses.sum().backward()
        return losses.detach(), logprobs.grad

    for strict, stale in zip(loss_and_gradient(False), loss_and_gradient(True), strict=True):
        assert strict is not None and stale is not None and torch.equal(strict, stale)


# --- PPO -------------------------------------------------------------------------------------------------------------


def test_advantages_of_tokens_by_hand() -> None:
    rewards = torch.tensor([[0.0, -0.5, 2.0], [1.0, 0.0, 0.0]])
    values = torch.tensor([[1.0, 0.5, 0.25], [0.5, 0.0, 0.0]])  # the second sequence has one token
    # Errors: 0 + 0.9 * 0.5 - 1 = -0.55; -0.5 + 0.9 * 0.25 - 0.5 = -0.775; 2 - 0.25 = 1.75; 1 - 0.5 = 0.5.
    first = -0.55 + 0.72 * (-0.775 + 0.72 * 1.75)
    found = generalised_advantages(rewards, values, gamma=0.9, lambda_=0.8)
    close(found.flatten(), first, -0.775 + 0.72 * 1.75, 1.75, 0.5, 0, 0)


def test_the_advantage_of_a_single_token_is_what_it_got_beyond_its_value() -> None:
    close(generalised_advantages(torch.tensor([[2.0]]), torch.tensor([[0.5]]), gamma=0.9, lambda_=0.8)[0], 1.5)


def test_advantages_at_the_ends_of_lambda(noise: torch.Generator) -> None:
    rewards, values = torch.randn(2, 3, 5, generator=noise)
    ahead = torch.cat([values[:, 1:], torch.zeros(3, 1)], 1)
    torch.testing.assert_close(generalised_advantages(rewards, values, 0.9, 0.0), rewards + 0.9 * ahead - values)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(generalised_advantages(rewards, values, 1.0, 1.0), to_go - values)


def test_true_values_leave_no_advantage() -> None:
    rewards = torch.tensor([[0.0, 0.0, 3.0]])
    close(generalised_advantages(rewards, torch.tensor([[3.0, 3.0, 3.0]]), 1.0, 0.7)[0], 0, 0, 0)


def test_clipped_value_losses_by_hand() -> None:
    before, returns = torch.zeros(5), torch.tensor([1.0, 1.0, 1.0, -1.0, 0.1])
    values = torch.tensor([0.2, 0.9, -0.9, 0.9, 0.5], requires_grad=True)
    losses = clipped_value_losses(values, before, returns, clip=0.5)
    # Within the clip; past it towards the return: held; away from it, and beyond: in full.
    close(losses, 0.5 * 0.8**2, 0.5 * 0.5**2, 0.5 * 1.9**2, 0.5 * 1.9**2, 0.5 * 0.4**2)
    losses.sum().backward()
    assert values.grad is not None
    close(values.grad, -0.8, 0.0, -1.9, 1.9, 0.4)


def test_values_are_clipped_around_those_of_the_rollout_on_both_sides() -> None:
    # 2 +- 0.5 is the range. Left towards the return on either side: held at 1.5 or 2.5. Within it: as it is.
    values, returns = torch.tensor([1.0, 3.0, 1.75, 2.25]), torch.tensor([0.0, 4.0, 1.75, 2.25])
    losses = clipped_value_losses(values, torch.full((4,), 2.0), returns, clip=0.5)
    close(losses, 0.5 * 1.5**2, 0.5 * 1.5**2, 0, 0)


# --- KL --------------------------------------------------------------------------------------------------------------


def test_kl_estimates_by_hand() -> None:
    difference = torch.tensor([0.0, 0.5, -0.5])  # log reference - log policy
    expected = [0.0, math.exp(0.5) - 1.5, math.exp(-0.5) - 0.5]
    close(kl_estimates(torch.full((3,), -2.0), difference - 2), *expected)


def test_kl_estimates_are_never_negative_and_average_to_the_kl(noise: torch.Generator) -> None:
    policy, reference = torch.randn(2, 10, generator=noise).log_softmax(-1)
    estimates = kl_estimates(policy, reference)  # of each possible token
    assert (estimates > 0).all() and (kl_estimates(policy, policy) == 0).all()
    expected = F.kl_div(reference, policy, log_target=True, reduction="sum")
    torch.testing.assert_close((policy.exp() * estimates).sum(), expected)


# --- the learning rate -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1, 1, 1]),
        ("constant", 4, [0.25, 0.5, 0.75, 1, 1, 1]),
        ("linear", 2, [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("linear", 0, [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("cosine", 2, [0.5, 1, 1, 0.5 + math.sqrt(2) / 4, 0.5, 0.5 - math.sqrt(2) / 4]),
        ("cosine", 6, [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1]),
    ],
)
def test_schedules_by_hand(schedule: str, warmup: int, expected: list[float]) -> None:
    scale = learning_rate_scale(schedule, warmup, max_steps=6)
    assert [scale(step) for step in range(6)] == pytest.approx(expected)


def test_schedules_never_go_below_zero_past_the_end() -> None:
    for schedule in ("linear", "cosine"):
        assert learning_rate_scale(schedule, 2, 6)(9) == pytest.approx(0)
