"""The conversation-level reward `R*` (Eq. 2-4): a weighted sum of metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from collab.conversation import Conversation, Score
from collab.rewards.metrics import Judged, Metric, applies


class ConversationReward:
    """`R*(t | g) = R_ext + R_int = sum over metrics of weight * value`.

    Args:
        metrics: Name -> (weight, metric). In the paper, BLEU is the extrinsic part; interactivity and the token
            penalty (weight -1) are the intrinsic part. A metric of weight 0 is measured and logged only.
    """

    def __init__(self, metrics: Mapping[str, tuple[float, Metric]]) -> None:
        self.metrics = dict(metrics)

    async def __call__(self, conversation: Conversation) -> Score:
        """Score a finished conversation.

        The reward is None if a metric with a weight has no value. Metrics that do not apply to the goal are left out.
        An invalid conversation is not measured.
        """
        metrics = {name: pair for name, pair in self.metrics.items() if applies(pair[1], conversation.goal)}
        if not conversation.valid:
            return Score(None, dict.fromkeys(metrics))
        values = await asyncio.gather(*(metric(conversation) for _, metric in metrics.values()))
        found = dict(zip(metrics, values, strict=True))
        raw = {name: value.replies for name, value in found.items() if isinstance(value, Judged)}
        parts = {name: value.value if isinstance(value, Judged) else value for name, value in found.items()}
        weighted = [(weight, parts[name]) for name, (weight, _) in metrics.items() if weight]
        products = [weight * value for weight, value in weighted if value is not None]
        return Score(sum(products) if len(products) == len(weighted) else None, parts, raw)
