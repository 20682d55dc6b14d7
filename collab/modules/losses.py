"""Losses as pure functions of tensors.

Shapes: N candidate tokens, S sequences (candidates), P pairs, T tokens of the longest sequence. Nothing here is
averaged unless its name says so: the caller divides by the number of units in the whole step, so that micro-batches add
up.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def sequence_sums(values: torch.Tensor, sequence: torch.Tensor, num_sequences: int) -> torch.Tensor:
    """[N] values of tokens -> [S] sums over each sequence."""
    return values.new_zeros(num_sequences).index_add(0, sequence, values)


def dpo_losses(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    ref_chosen: torch.Tensor,
    ref_rejected: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """DPO's sigmoid loss of each pair, [P] (Rafailov et al. 2023, Eq. 7).

    Args:
        chosen: [P] log-probability of the better response under the policy, summed over its tokens.
        rejected: [P] the same of the worse one.
        ref_chosen: [P] under the reference.
        ref_rejected: [P] under the reference.
        beta: Strength of the pull to the reference.
    """
    return -F.logsigmoid(beta * ((chosen - ref_chosen) - (rejected - ref_rejected)))


def group_advantages(
    rewards: torch.Tensor, scale_by_std: bool, std_eps: float, leave_one_out: bool = False
) -> torch.Tensor:
    """[S] rewards of one group -> how much better than the group's mean each is (GRPO, Shao et al. 2024).

    With `leave_one_out` each is compared with the mean of the others, which does not hold its own reward (RLOO, Kool et
    al. 2019; Ahmadian et al. 2024): S / (S - 1) times the difference to the mean of all. With `scale_by_std` the
    differences are divided by the group's standard deviation (with Bessel's correction) plus `std_eps`: groups whose
    candidates differ by much less than that count for little. A group without spread has zero advantages.
    """
    size = len(rewards)
    centred = rewards - rewards.mean()
    if size < 2:
        return centred
    if leave_one_out:
        centred = centred * (size / (size - 1))
    return centred / (rewards.std() + std_eps) if scale_by_std else centred


def clipped_policy_losses(
    logprobs: torch.Tensor, sampled_logprobs: torch.Tensor, advantages: torch.Tensor, clip_epsilon: float
) -> torch.Tensor:
    """The clipped surrogate of each token, [N] (Schulman et al. 2017, Eq. 7, negated).

    Args:
        logprobs: [N] under the policy that is updated.
        sampled_logprobs: [N] under the policy that sampled.
        advantages: [N] of each token, or of the sequence that it belongs to.
        clip_epsilon: The ratio is held in 1 +- this where that lowers the objective.
    """
    ratio = (logprobs - sampled_logprobs).exp()
    clipped = ratio.clamp(1 - clip_epsilon, 1 + clip_epsilon)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def kl_estimates(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """Non-negative estimate of KL(policy || reference) at each token, [N] (k3 of Schulman's note; used by GRPO)."""
    difference = ref_logprobs - logprobs
    return difference.exp() - difference - 1


def generalised_advantages(rewards: torch.Tensor, values: torch.Tensor, gamma: float, lambda_: float) -> torch.Tensor:
    """GAE of every token, [S, T] (Schulman et al. 2016, Eq. 16); the episode ends behind a sequence's last token.

    Args:
        rewards: [S, T], paid for each token; 0 behind a sequence's end.
        values: [S, T], what the state before each token is worth; 0 behind a sequence's end, where the value of the
            state that the episode ends in is thereby 0 as well.
        gamma: Discount of rewards, per token.
        lambda_: Weight of longer looks ahead: 0 trusts the next value, 1 takes what came.
    """
    found = torch.zeros_like(rewards)
    ahead, next_value = torch.zeros_like(rewards[:, 0]), torch.zeros_like(values[:, 0])
    for t in reversed(range(rewards.shape[1])):
        ahead = rewards[:, t] + gamma * next_value - values[:, t] + gamma * lambda_ * ahead
        found[:, t], next_value = ahead, values[:, t]
    return found


def clipped_value_losses(
    values: torch.Tensor, sampled_values: torch.Tensor, returns: torch.Tensor, clip: float
) -> torch.Tensor:
    """Half the squared error of each value, [N]; a step away from the value at sampling time earns nothing beyond clip.

    The larger of two errors, that of the value and that of the value held in `sampled_values` +- `clip`: the form that
    came with the code of Schulman et al. 2017, whose paper has the plain squared error (Eq. 9).

    Args:
        values: [N] by the head that is updated.
        sampled_values: [N] by the head as it was when the rollout was sampled.
        returns: [N] what the values should have been.
        clip: In units of the reward.
    """
    held = sampled_values + (values - sampled_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns).square(), (held - returns).square())
