"""PPO with MR as the reward (Schulman et al. 2017).

A response is an episode and each of its tokens an action. MR is the reward of the last token, and every token costs
`kl_coef` times its log-ratio to the reference. A linear value head on the policy's trunk estimates the value of the
state before each token, and GAE turns rewards and values into advantages. `epochs` passes over the rollout update
policy and head together, each in `num_minibatches` minibatches of whole groups. A response that was cut at its limit is
an episode like any other: its MR includes the consequences.

Differs from Schulman et al.:

- there is no entropy bonus;
- the value loss is clipped, as in the code of that paper, and halved;
- advantages are scaled over the whole rollout, on all processes, not over each minibatch: a minibatch here may be a few
  groups of very different MR;
- the minibatches of a rollout are the same in every pass.

Differs from TRL's former `PPOTrainer`: the coefficient of the KL is fixed; the ratio is to the probability that the
rollout engine sampled with, as in `grpo.py`, which corrects for rounding between engine and update, while the KL and
the values come from the update's own forward pass; rewards are not scaled.

With `rollout.max_staleness`, the policy that `prepare` runs is not the one that sampled, but the proximal one (see
`base.py`): advantages and values are the proximal policy's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from collab.conversation import Group
from collab.modules.base import Example, PolicyModule, mr_of, over_ranks
from collab.modules.losses import clipped_policy_losses, clipped_value_losses, generalised_advantages
from collab.modules.packing import PackedBatch
from collab.modules.policy import PolicyOutput


@dataclass(frozen=True, kw_only=True)
class Episodes(Example):
    """The replies to a context, with numbers for all n of their tokens, by the policy before the first update.

    Attributes:
        values: [n] value of the state before each token.
        advantages: [n] by GAE; scaled over the rollout.
        returns: [n] targets of the values.
    """

    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor


class PPO(PolicyModule):
    """See the module's docstring; fields in `PPOConfig`."""

    has_values = True
    loss_needs_reference = False  # the KL is in the rewards

    def examples(self, groups: Sequence[Group]) -> list[Example]:
        return [
            Example(tuple(candidate.reply for candidate in group.candidates), tuple(map(mr_of, group.candidates)))
            for group in groups
            if group.candidates
        ]

    @torch.no_grad()
    def prepare(self, examples: list[Example]) -> list[Example]:
        found: dict[int, Episodes] = {}
        for indices, batch in self.passes(examples):
            found |= zip(indices, self._episodes([examples[index] for index in indices], batch), strict=True)
        episodes = [found[index] for index in range(len(examples))]
        mean, variance = self._moments([e.advantages for e in episodes])
        spread = self._moments([e.returns for e in episodes])[1]
        unexplained = self._moments([e.returns - e.values for e in episodes])[1]
        self._log(values_explained=1 - unexplained / spread if spread else math.nan)
        return [replace(e, advantages=(e.advantages - mean) / (math.sqrt(variance) + 1e-8)) for e in episodes]

    def _episodes(self, examples: Sequence[Example], batch: PackedBatch) -> list[Episodes]:
        """Values, advantages and returns of a micro-batch, by the current policy."""
        assert self.policy is not None
        config = self.config
        output: PolicyOutput = self.policy(batch)
        values = output.values
        assert values is not None
        rewards = torch.zeros_like(values)
        if config.kl_coef:
            rewards = config.kl_coef * (self.policy(batch, reference=True).logprobs - output.logprobs)
        if not examples:
            return []
        sizes = [len(reply.token_ids) for example in examples for reply in example.replies]
        ends = torch.tensor(sizes, device=self.device).cumsum(0) - 1
        rewards[ends] += torch.tensor([mr for e in examples for mr in e.weights], device=self.device)
        paid, worth = (pad_sequence(flat.split(sizes), batch_first=True) for flat in (rewards, values))
        by_row = generalised_advantages(paid, worth, config.gamma, config.gae_lambda)
        advantages = torch.cat([row[:size] for row, size in zip(by_row, sizes, strict=True)])
        counts = [self.units(example) for example in examples]
        columns = [column.split(counts) for column in (values, advantages, advantages + values, output.logprobs)]
        return [
            Episodes(e.replies, e.weights, proximal=proximal, values=values, advantages=advantages, returns=returns)
            for e, values, advantages, returns, proximal in zip(examples, *columns, strict=True)
        ]

    def _moments(self, parts: Sequence[torch.Tensor]) -> tuple[float, float]:
        """Mean and variance of all numbers in `parts`, over all processes; 0 if there are none."""
        wide = [part.double() for part in parts]
        sums = [sum(map(len, wide)), sum(x.sum().item() for x in wide), sum(x.square().sum().item() for x in wide)]
        count, total, squares = over_ranks(self.trainer, sums)
        mean = total / count if count else 0.0
        return mean, max(0.0, squares / count - mean**2) if count else 0.0

    def units(self, example: Example) -> int:
        return sum(len(reply.token_ids) for reply in example.replies)

    def loss(
        self, examples: Sequence[Any], batch: PackedBatch, output: PolicyOutput, ref_logprobs: torch.Tensor | None
    ) -> torch.Tensor:
        config = self.config
        advantages = torch.cat([example.advantages for example in examples])
        proximal = self.proximal(examples, batch, output)
        policy = clipped_policy_losses(output.logprobs, proximal, advantages, config.clip_epsilon)
        policy = self.weighted(policy, batch, proximal)
        assert output.values is not None
        sampled_values = torch.cat([example.values for example in examples])
        returns = torch.cat([example.returns for example in examples])
        value = clipped_value_losses(output.values, sampled_values, returns, config.value_clip)
        return (policy + config.value_coef * value).sum()
