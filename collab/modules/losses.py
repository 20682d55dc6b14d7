"""Losses as pure functions of tensors.

Shapes: N candidate tokens, S sequences (candidates), P pairs, T tokens of the longest sequence. No loss is averaged
here: the caller divides by the number of units in the whole step, so that micro-batches add up.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

MAX_WEIGHT = 2.0  # of a token that an older policy sampled; see `importance_weights`


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
    """[S] rewards of one group -> [S] differences to the group's mean (GRPO, Shao et al. 2024).

    With `leave_one_out`, the difference is to the mean of the others (RLOO, Kool et al. 2019; Ahmadian et al. 2024):
    S / (S - 1) times the difference to the mean of all. With `scale_by_std`, it is divided by the group's standard
    deviation (with Bessel's correction) plus `std_eps`, so a group whose spread is far below `std_eps` counts little.
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
        clip_epsilon: The ratio is clipped to 1 +- clip_epsilon if that lowers the objective.
    """
    ratio = (logprobs - sampled_logprobs).exp()
    clipped = ratio.clamp(1 - clip_epsilon, 1 + clip_epsilon)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def importance_weights(proximal: torch.Tensor, sampled_logprobs: torch.Tensor) -> torch.Tensor:
    """Weight of each token that an older policy sampled, [N], in 0..`MAX_WEIGHT`, without gradient.

    The probability ratio of the proximal policy to the one that sampled, truncated from above (Espeholt et al. 2018,
    rho of Eq. 1). Times `clipped_policy_losses(logprobs, proximal, ...)` it is the decoupled loss of Hilton et al. 2022
    (Eq. 3), as AReaL has it (Fu et al. 2025, Eq. 5). Where both policies are the same, the weight is exactly 1.

    Args:
        proximal: [N] log-probs under the policy as it was before the first update with this rollout.
        sampled_logprobs: [N] under the policy that sampled.
    """
    return (proximal - sampled_logprobs).detach().exp().clamp(max=MAX_WEIGHT)


def kl_estimates(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """Non-negative estimate of KL(policy || reference) at each token, [N] (k3 of Schulman's note; used by GRPO)."""
    difference = ref_logprobs - logprobs
    return difference.exp() - difference - 1


def generalised_advantages(rewards: torch.Tensor, values: torch.Tensor, gamma: float, lambda_: float) -> torch.Tensor:
    """GAE of every token, [S, T] (Schulman et al. 2016, Eq. 16); the episode ends after a sequence's last token.

    Args:
        rewards: [S, T] reward of each token; 0 after a sequence's end.
        values: [S, T] value of the state before each token; 0 after a sequence's end, so that the final state has
            value 0 as well.
        gamma: Discount per token.
        lambda_: GAE lambda: 0 is one-step TD, 1 is Monte Carlo.
    """
    advantages = torch.zeros_like(rewards)
    advantage, next_value = torch.zeros_like(rewards[:, 0]), torch.zeros_like(values[:, 0])
    for t in reversed(range(rewards.shape[1])):
        advantage = rewards[:, t] + gamma * next_value - values[:, t] + gamma * lambda_ * advantage
        advantages[:, t], next_value = advantage, values[:, t]
    return advantages


def clipped_value_losses(
    values: torch.Tensor, sampled_values: torch.Tensor, returns: torch.Tensor, clip: float
) -> torch.Tensor:
    """Value loss of each token, [N], clipped to +-clip around the value at sampling time.

    Half the larger of two squared errors: that of the value and that of the clipped value. This is the form in the code
    of Schulman et al. 2017; the paper has the plain squared error (Eq. 9).

    Args:
        values: [N] by the head that is updated.
        sampled_values: [N] by the head as it was when the rollout was sampled.
        returns: [N] targets.
        clip: In units of the reward.
    """
    clipped = sampled_values + (values - sampled_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())
