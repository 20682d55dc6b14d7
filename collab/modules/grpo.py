"""GRPO: every candidate of a context against the mean of its group (Shao et al. 2024), with MR as the reward.

Differs from that paper in its normalisation: the loss is a mean over all tokens of the step, not first over each
sequence, so a token counts the same in a short reply as in a long one (as in DAPO, Yu et al. 2025).
`loss_aggregation=sequences` is the paper's form. `scale_by_std=false` keeps rewards in their unit (as in Dr. GRPO, Liu
et al. 2025). The KL is that of the paper; TRL multiplies it by the probability ratio by default.

RLOO (Ahmadian et al. 2024, `algorithm=rloo`) is `leave_one_out`, `scale_by_std=false` and `loss_aggregation=sums`: the
mean over sequences of the sum over their tokens, so that a whole reply is one action. Differs from that paper:
`kl_coef` adds a term to the loss, as in GRPO, instead of subtracting the KL from the reward; and the ratio is clipped,
which has no effect on the first update of a rollout.

With `max_trained_candidates`, all candidates are compared, but only those with the largest |advantage| are trained on:
sampling is cheap and the update is not (as in PODS, Xu et al. 2025, which maximises the variance of the rewards).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from collab.conversation import Group
from collab.modules.base import Example, PolicyModule, mr_of
from collab.modules.losses import clipped_policy_losses, group_advantages, kl_estimates
from collab.modules.packing import PackedBatch
from collab.modules.policy import PolicyOutput


class GRPO(PolicyModule):
    """See the module's docstring; fields in `GRPOConfig`."""

    @property
    def loss_needs_reference(self) -> bool:
        return self.config.kl_coef > 0

    def examples(self, groups: Sequence[Group]) -> list[Example]:
        found = []
        for group in groups:
            advantages = self.advantages(group)
            if advantages is None:
                continue
            order = sorted(range(len(advantages)), key=lambda index: -abs(advantages[index]))
            chosen = sorted(order[: self.config.max_trained_candidates or None])
            replies = tuple(group.candidates[index].reply for index in chosen)
            found.append(Example(replies, tuple(advantages[index] for index in chosen)))
        return found

    def advantages(self, group: Group) -> list[float] | None:
        rewards = torch.tensor([mr_of(candidate) for candidate in group.candidates], dtype=torch.float64)
        if len(rewards) < 2 or rewards.max() == rewards.min():
            return None
        config = self.config
        return group_advantages(rewards, config.scale_by_std, config.std_eps, config.leave_one_out).tolist()

    def units(self, example: Example) -> int:
        if self.config.loss_aggregation == "tokens":
            return sum(len(reply.token_ids) for reply in example.replies)
        return len(example.replies)

    def loss(
        self, examples: Sequence[Example], batch: PackedBatch, output: PolicyOutput, ref_logprobs: torch.Tensor | None
    ) -> torch.Tensor:
        weights = torch.tensor([w for e in examples for w in e.weights], device=output.logprobs.device)
        proximal = self.proximal(examples, batch, output)
        losses = clipped_policy_losses(output.logprobs, proximal, weights[batch.sequence], self.config.clip_epsilon)
        losses = self.weighted(losses, batch, proximal)
        if ref_logprobs is not None and self.config.kl_coef:
            losses = losses + self.config.kl_coef * kl_estimates(output.logprobs, ref_logprobs)
        if self.config.loss_aggregation == "sequences":
            losses = losses / batch.sequence.bincount(minlength=batch.num_sequences)[batch.sequence]
        return losses.sum()
