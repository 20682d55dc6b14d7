"""SFT: the likelihood of the best candidate of each context, by MR, in stored conversations (CollabLLM section 3.2).

Only the candidate's own tokens count, its end of turn included; the system prompt, the user's messages and earlier
replies are context. If every context continues the best candidate of the one before, as in synthesised conversations,
this is the likelihood of everything that the assistant said on the best path. The loss is a mean over all tokens of a
step. Groups whose best candidate is below `minimum_value` in `minimum_metric` are left out and counted. The turns of a
conversation are one example: what they share is computed once. `trainer.goals_per_step` counts conversations.

The likelihood is that at temperature 1, as in TRL and in CollabLLM's code, whatever `sampler.temperature` is.

Held-out conversations, if there are any, are scored at each validation: `val/log_likelihood`, nats per token of their
replies, and `val/perplexity`.

Differs from CollabLLM's code, which learns the path that the best reply of the last turn ends, and keeps or drops it by
the metric of that turn: each turn has its own best reply, and is kept or dropped on its own. `algorithm.best_path=true`
does as that code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from collab.conversation import Candidate, Group, Reply
from collab.modules.base import Example, PolicyModule, mr_of, over_ranks
from collab.modules.packing import PackedBatch, continues
from collab.modules.policy import PolicyOutput
from collab.util.errors import BadInput


class SFT(PolicyModule):
    """See the module's docstring; fields in `SFTConfig`."""

    loss_needs_reference = False
    whole_conversations = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.temperature = 1.0
        self._held_out = [0.0, 0.0]  # log-likelihood and tokens of the current validation, on this process

    def examples(self, groups: Sequence[Group]) -> list[Example]:
        chains: list[list[Reply]] = []  # each reply continues the one before it
        for reply in sorted((best.reply for best in self._learned(groups)), key=lambda reply: len(reply.prompt_ids)):
            chain = next((chain for chain in chains if continues(reply, chain[-1])), None)
            if chain is None:
                chains.append([reply])
            else:
                chain.append(reply)
        return [Example(tuple(chain), contexts=len(chain)) for chain in chains]

    def _learned(self, groups: Sequence[Group]) -> list[Candidate]:
        return [best for best in _best(groups) if self._kept(best)]

    def _kept(self, candidate: Candidate) -> bool:
        if self.config.minimum_metric is None:
            return True
        value = _metric_value(candidate, self.config.minimum_metric)
        return value is not None and value >= self.config.minimum_value

    def left_out(self, groups: Sequence[Group]) -> dict[str, int]:
        return {"filtered_groups": len(_best(groups)) - len(self._learned(groups))}

    def check_data(self, groups: Sequence[Group]) -> str:
        config, best, kept = self.config, _best(groups), len(self._learned(groups))
        metric = config.minimum_metric
        data = f"algorithm.data={config.data}"
        if not best:
            raise BadInput(f"{data} has no scored reply for {config.name} to learn from. Take data with scores.")
        if kept:
            return f"{kept} replies of {len(groups)} groups, {len(best) - kept} filtered by algorithm.minimum_metric"
        values = [value for candidate in best if (value := _metric_value(candidate, metric)) is not None]
        if not values:
            known = sorted({name for candidate in best for score in candidate.scores for name in score.parts})
            raise BadInput(
                f"algorithm.minimum_metric={metric} is no metric of {data}. It has {', '.join(['mr', *known])}. Set "
                "algorithm.minimum_metric to one of them, or to null to keep all."
            )
        raise BadInput(
            f"{data} has no reply whose {metric} is at least algorithm.minimum_value ({config.minimum_value}): the "
            f"best has {max(values):.4g}. Set a smaller one."
        )

    def units(self, example: Example) -> int:
        return sum(len(reply.token_ids) for reply in example.replies)

    def loss(
        self, examples: Sequence[Example], batch: PackedBatch, output: PolicyOutput, ref_logprobs: torch.Tensor | None
    ) -> torch.Tensor:
        return -output.logprobs.sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if not batch.groups:
            return
        assert self.policy is not None
        with torch.no_grad():
            for indices, packed in self.passes(self.examples(batch.groups)):
                logprobs = self.policy(packed).logprobs
                if indices:
                    self._held_out[0] += logprobs.sum().item()
                    self._held_out[1] += len(logprobs)

    def on_validation_epoch_end(self) -> None:
        total, tokens = over_ranks(self.trainer, self._held_out)
        self._held_out = [0.0, 0.0]
        if tokens:
            mean = total / tokens
            values = {"val/log_likelihood": mean, "val/perplexity": math.exp(-mean)}
            self.log_dict(values, batch_size=1, sync_dist=self.trainer.world_size > 1)


def _metric_value(candidate: Candidate, metric: str) -> float | None:
    """`mr`, or the mean of one part of the reward; None if the candidate does not have it."""
    return candidate.mr if metric == "mr" else candidate.part(metric)


def _best(groups: Sequence[Group]) -> list[Candidate]:
    """The candidate with the highest MR of each group that has candidates."""
    return [max(group.candidates, key=mr_of) for group in groups if group.candidates]
