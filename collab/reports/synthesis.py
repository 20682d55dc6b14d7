"""Statistics of a synthesised data set: those of the paper's Table 5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any


def statistics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | int | None]:
    """The statistics of nested rows (`collab.datamodules.conversations`).

    Chosen and rejected are the best and the worst response of a turn, the pair that DPO uses. Turns with fewer than two
    scored responses have none. `chosen_proactive` is the share of chosen responses that were sampled under the
    proactive instruction. None stands for a mean of nothing.
    """
    turns = [turn["responses"] for row in rows for turn in row["turns"]]
    scored = [[response for response in responses if response["score"] is not None] for responses in turns]
    ranked = [sorted(responses, key=lambda r: r["score"]) for responses in scored if len(responses) > 1]
    return {
        "conversations": len(rows),
        "turns": len(turns),
        "turns_per_conversation": len(turns) / len(rows),
        "responses": sum(map(len, turns)),
        "chosen_mr": fmean(responses[-1]["score"] for responses in ranked) if ranked else None,
        "rejected_mr": fmean(responses[0]["score"] for responses in ranked) if ranked else None,
        "chosen_proactive": fmean(responses[-1]["proactive"] for responses in ranked) if ranked else None,
    }
