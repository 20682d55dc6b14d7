"""From logits to the next token of each request: temperature, top-k, top-p, and two ways to draw.

Shapes: N requests, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from collab.chat.base import Sampling
from collab.util.errors import BadInput

# ([N, V] scores, a random stream for each request) -> [N] tokens, and the [N] logsumexp of each row
Draw = Callable[[torch.Tensor, Sequence[np.random.Generator]], tuple[torch.Tensor, torch.Tensor]]

_BLOCK = 256  # tokens of the vocabulary in a block; the probabilities of a block are added up first


def draw_tokens(
    logits: torch.Tensor, samplings: Sequence[Sampling], streams: Sequence[np.random.Generator], draw: Draw
) -> tuple[list[int], list[float]]:
    """One token for each request, and its log-prob under the distribution that it was drawn from.

    Args:
        logits: [N, V].
        samplings: How to draw each request's token.
        streams: Random stream of each request.
        draw: `by_inverse_cdf` or `by_gumbel_max`.

    Raises:
        BadInput: The logits are not finite.
    """
    temperatures = torch.tensor([sampling.temperature for sampling in samplings], device=logits.device)
    scaled = logits / temperatures.clamp(min=1e-6)[:, None]  # in fp32, as temperatures are
    if not scaled.amax(-1).isfinite().all():  # minus infinity, which forbids a token, passes
        raise BadInput(
            "The policy's logits are not finite: its weights have diverged or are damaged. Lower algorithm.lr and "
            "resume from an earlier checkpoint."
        )
    for i, sampling in enumerate(samplings):
        if sampling.top_k or sampling.top_p < 1:
            scaled[i] = filtered(scaled[i], sampling)
    drawn, normaliser = draw(scaled, streams)
    if any(sampling.temperature == 0 for sampling in samplings):
        drawn = torch.where(temperatures > 0, drawn, logits.argmax(-1))
    chosen = scaled.gather(-1, drawn[:, None])[:, 0] - normaliser
    return drawn.tolist(), chosen.tolist()


def filtered(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """`[V]` logits, with tokens outside of top-k and top-p at minus infinity."""
    if sampling.top_k:
        threshold = logits.topk(min(sampling.top_k, logits.shape[-1])).values[-1]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort(descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        logits = logits.index_fill(0, order[before >= sampling.top_p], -torch.inf)
    return logits


def by_inverse_cdf(scores: torch.Tensor, streams: Sequence[np.random.Generator]) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw with one uniform number of each stream; see `Draw`."""
    return inverse_cdf(scores, torch.tensor([stream.random() for stream in streams], device=scores.device))


def inverse_cdf(scores: torch.Tensor, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`[N, V]` scores and `[N]` numbers in 0..1 -> `[N]` tokens and the `[N]` logsumexp of each row.

    A running sum over the vocabulary is most of the cost of drawing. So it runs over sums of `_BLOCK` tokens, and then
    over the tokens of the block that was hit.
    """
    top = scores.amax(-1, keepdim=True)
    mass = (scores - top).exp_()
    missing = -mass.shape[1] % _BLOCK
    blocks = (F.pad(mass, (0, missing)) if missing else mass).unflatten(1, (-1, _BLOCK))
    reached = blocks.sum(-1).cumsum(-1)
    total = reached[:, -1]
    points = torch.minimum(uniforms * total, _just_below(total))[:, None]
    hit = torch.searchsorted(reached, points, right=True)
    passed = F.pad(reached, (1, 0)).gather(1, hit)
    inside = blocks.take_along_dim(hit[:, :, None], 1)[:, 0].cumsum(-1)
    rest = torch.minimum((points - passed).clamp(min=0), _just_below(inside[:, -1:]))
    return (hit * _BLOCK + torch.searchsorted(inside, rest, right=True))[:, 0], top[:, 0] + total.log()


def _just_below(mass: torch.Tensor) -> torch.Tensor:
    """The largest number below `mass`. Rounding may reach `mass` itself, and no possible token lies there."""
    return mass.nextafter(mass.new_zeros(()))


def by_gumbel_max(scores: torch.Tensor, streams: Sequence[np.random.Generator]) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the largest of perturbed scores, with V numbers of each stream; see `Draw`."""
    # A token with an exponential draw of 0 would win at any probability.
    exponential = np.stack([stream.standard_exponential(scores.shape[-1]) for stream in streams]).clip(min=1e-30)
    return (scores - torch.from_numpy(np.log(exponential)).to(scores)).argmax(-1), scores.logsumexp(-1)
