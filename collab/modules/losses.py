"""Losses as pure functions of tensors.

Shapes: N candidate tokens, S sequences (candidates), P pairs. Nothing here is averaged unless its name says so: the
caller divides by the number of units in the whole step, so that micro-batches add up.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def sequence_sums(values: torch.Tensor, sequence: torch.Tensor, num_sequences: int) -> torch.Tensor:
    """[N] values of tokens -> [S] sums over each sequence."""
    return values.new_zeros(num_sequences).index_add(0, sequence, values)


def dpo_losses(
    chosen: torch.Tensor, rejected: torch.Tensor, ref_chosen: torch.Tensor, ref_rejected: torch.Tensor, beta: float
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


def group_advantages(rewards: torch.Tensor, scale_by_std: bool, std_floor: float) -> torch.Tensor:
    """[S] rewards of one group -> how much better than the group's mean each is (GRPO, Shao et al. 2024).

    With `scale_by_std` the differences are divided by the group's standard deviation (with Bessel's correction) plus
    `std_floor`: groups whose candidates differ by much less than that count for little. A group without spread has zero
    advantages.
    """
    centred = rewards - rewards.mean()
    if not scale_by_std or len(rewards) < 2:
        return centred
    return centred / (rewards.std() + std_floor)


def clipped_policy_losses(
    logprobs: torch.Tensor, sampled_logprobs: torch.Tensor, advantages: torch.Tensor, clip_epsilon: float
) -> torch.Tensor:
    """The clipped surrogate of each token, [N] (Schulman et al. 2017, Eq. 7, negated).

    Args:
        logprobs: [N] under the policy that is updated.
        sampled_logprobs: [N] under the policy that sampled.
        advantages: [N] of the sequence that each token belongs to.
        clip_epsilon: The ratio is held in 1 +- this where that lowers the objective.
    """
    ratio = (logprobs - sampled_logprobs).exp()
    clipped = ratio.clamp(1 - clip_epsilon, 1 + clip_epsilon)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def kl_estimates(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """Non-negative estimate of KL(policy || reference) at each token, [N] (k3 of Schulman's note; used by GRPO)."""
    difference = ref_logprobs - logprobs
    return difference.exp() - difference - 1
