"""DPO: the best candidate of a context against its worst, by MR (CollabLLM section 3.2; Rafailov et al. 2023).

Offline (`algorithm=dpo`) the groups are stored conversations; online (`algorithm=online_dpo`, Guo et al. 2024) the
policy has just sampled them. Nothing else differs. Pairs whose gap in MR is not above `minimum_gap` are left out and
counted.

Differs from CollabLLM: more than two candidates may be sampled; the pair is then the best and the worst. Differs from
TRL: log-probs are those at `sampler.temperature`, the distribution that the policy speaks with (the same at 1).
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
        pairs = _pairs(groups)
        return [Example((best.reply, worst.reply)) for best, worst, gap in pairs if gap > self.config.minimum_gap]

    def left_out(self, groups: Sequence[Group]) -> dict[str, int]:
        return {"dropped_pairs": len(_pairs(groups)) - len(self.examples(groups))}

    def check_data(self, groups: Sequence[Group]) -> str:
        kept, gaps = len(self.examples(groups)), [gap for _, _, gap in _pairs(groups)]
        if kept:
            return f"{kept} pairs of {len(groups)} groups, {len(gaps) - kept} dropped by algorithm.minimum_gap"
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


def _pairs(groups: Sequence[Group]) -> list[tuple[Candidate, Candidate, float]]:
    """(best, worst, gap) by MR of each group with at least two candidates."""
    ranked = [sorted(group.candidates, key=mr_of) for group in groups if len(group.candidates) > 1]
    return [(candidates[-1], candidates[0], mr_of(candidates[-1]) - mr_of(candidates[0])) for candidates in ranked]
