"""Online DPO: the best candidate of a context against its worst, by MR (CollabLLM section 3.2; Guo et al. 2024).

Departs from the paper's setting in that more than two candidates may be drawn; the pair is then the extremes.
A pair whose gap in MR is not larger than `minimum_gap` teaches nothing and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from collab.conversation import Group
from collab.modules.base import Example, PolicyModule
from collab.modules.losses import dpo_losses, sequence_sums
from collab.modules.packing import PackedBatch
from collab.modules.policy import PolicyOutput


class OnlineDPO(PolicyModule):
    """See the module's docstring; fields in `OnlineDPOConfig`."""

    def examples(self, groups: Sequence[Group]) -> list[Example]:
        found = []
        for group in groups:
            ranked = sorted(group.candidates, key=lambda candidate: candidate.mr or 0.0)
            if len(ranked) < 2:
                continue
            worst, best = ranked[0], ranked[-1]
            assert worst.mr is not None and best.mr is not None
            if best.mr - worst.mr > self.config.minimum_gap:
                found.append(Example((best.reply, worst.reply)))
        return found

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
