"""The conversation-level reward `R*` (Eq. 2-4): a weighted sum of metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from collab.conversation import Conversation, Score
from collab.rewards.metrics import Judged, Metric, applies


class ConversationReward:
    """`R*(t | g) = R_ext + R_int = sum over metrics of weight * value`.

    Args:
        metrics: Name -> (weight, metric). In the paper's terms: BLEU is the extrinsic part; the token penalty (with
            weight -1) and interactivity are the intrinsic one. A metric of weight 0 is only watched.
    """

    def __init__(self, metrics: Mapping[str, tuple[float, Metric]]) -> None:
        self.metrics = dict(metrics)

    async def __call__(self, conversation: Conversation) -> Score:
        """Score a finished conversation. Where a metric that counts has no value, the reward has none either.

        A metric that does not apply to the goal is no part of its reward. An invalid conversation is not measured.
        """
        metrics = {name: pair for name, pair in self.metrics.items() if applies(pair[1], conversation.goal)}
        if not conversation.valid:
            return Score(None, dict.fromkeys(metrics))
        values = await asyncio.gather(*(metric(conversation) for _, metric in metrics.values()))
        found = dict(zip(metrics, values, strict=True))
        raw = {name: value.replies for name, value in found.items() if isinstance(value, Judged)}
        parts = {name: value.value if isinstance(value, Judged) else value for name, value in found.items()}
        known = {name: value for name, value in parts.items() if value is not None}
        weights = {name: weight for name, (weight, _) in metrics.items() if weight}
        if weights.keys() - known.keys():
            return Score(None, parts, raw)
        return Score(sum(weight * known[name] for name, weight in weights.items()), parts, raw)
