"""DPO: the best candidate of a context against its worst, by MR (CollabLLM section 3.2; Rafailov et al. 2023).

Offline (`algorithm=dpo`) the groups are stored conversations; online (`algorithm=online_dpo`, Guo et al. 2024) the
policy has just drawn them itself. Nothing else differs. A pair whose gap in MR is not larger than `minimum_gap` is left
out and counted.

Departs from CollabLLM's setting in that more than two candidates may be drawn; the pair is then the extremes. Departs
from TRL in that log-probs are those at `sampler.temperature`, of the distribution that the policy speaks with (at 1
there is no difference).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from collab.conversation import Candidate, Group
from collab.modules.base import Example, PolicyModule, mr_of
from collab.modules.losses import dpo_losses, sequence_sums
from collab.modules.packing import PackedBatch
from collab.modules.policy import PolicyOutput
from collab.util.errors import BadInput


class DPO(PolicyModule):
    """See the module's docstring; fields in `DPOConfig`."""

    def examples(self, groups: Sequence[Group]) -> list[Example]:
        return [
            Example((best.reply, worst.reply))
            for best, worst in _pairs(groups)
            if _gap(best, worst) > self.config.minimum_gap
        ]

    def left_out(self, groups: Sequence[Group]) -> dict[str, int]:
        return {"dropped_pairs": len(_pairs(groups)) - len(self.examples(groups))}

    def check_data(self, groups: Sequence[Group]) -> str:
        kept, gaps = len(self.examples(groups)), [_gap(*pair) for pair in _pairs(groups)]
        if not kept:
            why = "none has two candidates with a score. Take data that keeps several candidates of a context."
            if gaps:
                why = (
                    f"the largest gap between the scores of a group is {max(gaps):.4g}, and it has to be more than "
                    f"algorithm.minimum_gap ({self.config.minimum_gap}). Set a smaller one, or take other data."
                )
            raise BadInput(
                f"algorithm.data={self.config.data} has no usable pair for {self.config.name} in its {len(groups)} "
                f"groups: {why}"
            )
        return f"{kept} pairs of {len(groups)} groups, {len(gaps) - kept} dropped by algorithm.minimum_gap"

    def units(self, example: Example) -> int:
        return 1  # a pair

    def loss(
        self, examples: Sequence[Example], batch: PackedBatch, output: PolicyOutput, ref_logprobs: torch.Tensor | None
    ) -> torch.Tensor:
        chosen, rejected = sequence_sums(output.logprobs, batch.sequence, batch.num_sequences).view(-1, 2).unbind(1)
        assert ref_logprobs is not None
        reference = sequence_sums(ref_logprobs, batch.sequence, batch.num_sequences)
        ref_chosen, ref_rejected = reference.view(-1, 2).unbind(1)
        return dpo_losses(chosen, rejected, ref_chosen, ref_rejected, self.config.beta).sum()


def _pairs(groups: Sequence[Group]) -> list[tuple[Candidate, Candidate]]:
    """(best, worst) by MR of each group that has two candidates."""
    ranked = [sorted(group.candidates, key=mr_of) for group in groups if len(group.candidates) > 1]
    return [(candidates[-1], candidates[0]) for candidates in ranked]


def _gap(best: Candidate, worst: Candidate) -> float:
    return mr_of(best) - mr_of(worst)
