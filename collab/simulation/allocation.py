"""Adaptive sampling: more forward samples for candidates whose place in the group is open, and MR stays unbiased.

Two stages. Let n be `num_samples`, the mean over the candidates. In the pilot each of the G candidates gets
p = floor(n / 2) samples. The other G (n - p) go where the pilot leaves the ranking open; each candidate gets at least
one of them, M_i in number. Then

    MR_i = w * (mean of the pilot) + (1 - w) * (mean of the second stage),    w = p / n.

Unbiased: M_i is a function of the pilots. Given these, the second stage is M_i fresh draws with mean mu_i, so that
E[MR_i | pilots] = w * pilot_i + (1 - w) * mu_i, and since E[pilot_i] = mu_i, E[MR_i] = mu_i. It holds for any rule of
allocation, any distribution of the scores, and with user randomness shared between candidates. It needs M_i >= 1 and a
weight that the pilot has no say in. The plain mean of all p + M_i samples is biased: a candidate that an unlucky pilot
sets apart gets few further samples, and keeps its bad luck. Such weighted two-stage means are those of Dudewicz and
Dalal (1975), "Allocation of observations in ranking and selection with unequal variances". With M_i = n - p for all, MR
is the plain mean.

The rule is that of optimal computing budget allocation (Chen, Lin, Yucesan and Chick 2000, "Simulation budget
allocation for further enhancing the efficiency of ordinal optimization"): put what the pilot tells into the
probability of a wrong ranking, and spend each sample where that falls most. Chen et al. want the best candidate found;
an update compares all of them, so here it is the expected number of pairs ranked wrongly,

    sum over pairs of Phi(-gap_ij / sqrt(V_i + V_j)),    V_i = v_i * (w^2 / p + (1 - w)^2 / M_i),

with v_i the variance of one score. So few pilots know v_i badly: it is taken as half the candidate's own and half the
group's. And they know the gap badly: gap^2 is taken as the square of what the pilot shows plus that of its standard
error, or pairs that happen to tie would seem hopeless.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

LEAST_SAMPLES = 4  # of a pilot's noise nothing is known below two samples, which is half of these
_MOST = 2  # times `num_samples` is the most that one candidate gets: further ones hardly move a mean of fixed weights


def adaptive_problem(window: int, num_samples: int) -> str:
    """Why forward samples cannot be allocated adaptively, and the way out; "" if they can."""
    if window < 1:
        return (
            f"sampler.window ({window}) must be at least 1 with sampler.adaptive=true: without a future there is "
            "nothing to sample. Set sampler.window=1, or sampler.adaptive=false."
        )
    if num_samples < LEAST_SAMPLES:
        return (
            f"sampler.num_samples ({num_samples}) must be at least {LEAST_SAMPLES} with sampler.adaptive=true: half "
            "of the samples are a pilot, and it takes two to see how much they scatter. "
            f"Set sampler.num_samples={LEAST_SAMPLES}, or sampler.adaptive=false."
        )
    return ""


def pilot_samples(num_samples: int) -> int:
    """p, the samples that each candidate gets before anything is known."""
    return num_samples // 2


def allocate(pilots: Sequence[Sequence[float]], num_samples: int) -> list[int]:
    """The second stage: how many further samples each candidate gets, from what its pilot scored.

    Args:
        pilots: For each candidate of a group the scores of its pilot that could be had, p at most. A candidate without
            any counts as open.
        num_samples: Samples per candidate on average, pilot included; at least `LEAST_SAMPLES`.

    Returns:
        M_i of each candidate, at least 1; together G (num_samples - p).
    """
    own = [statistics.variance(scores) if len(scores) > 1 else None for scores in pilots]
    known = [variance for variance in own if variance is not None]
    pooled = statistics.fmean(known) if known else 0.0
    variances = [pooled if variance is None else (variance + pooled) / 2 for variance in own]
    means = [statistics.fmean(scores) if scores else None for scores in pilots]
    errors = [variance / max(len(scores), 1) for variance, scores in zip(variances, pilots, strict=True)]

    def gap(i: int, j: int) -> float:
        mine, other = means[i], means[j]
        shown = 0.0 if mine is None or other is None else mine - other
        return math.sqrt(shown**2 + errors[i] + errors[j])

    gaps = [[gap(i, j) for j in range(len(pilots))] for i in range(len(pilots))]
    return spend(gaps, variances, num_samples)


def spend(gaps: Sequence[Sequence[float]], variances: Sequence[float], num_samples: int) -> list[int]:
    """The second stage for given gaps: one sample after the other, each where it leaves the fewest pairs wrong.

    Args:
        gaps: `[G, G]`, how far apart the expected scores of two candidates are, at least 0.
        variances: Variance of one score of each candidate.
        num_samples: As in `allocate`.

    Returns:
        As `allocate`.
    """
    size, pilot = len(variances), pilot_samples(num_samples)
    weight = pilot / num_samples

    def variance(i: int, count: int) -> float:
        return variances[i] * (weight**2 / pilot + (1 - weight) ** 2 / count)

    def wrong(i: int, count: int) -> float:
        """Expected number of wrong pairs with candidate i, were its second stage of this size."""
        return sum(_tail(gaps[i][j], variance(i, count) + variance(j, counts[j])) for j in range(size) if j != i)

    counts = [1] * size
    for _ in range(size * (num_samples - pilot - 1)):
        below = [i for i in range(size) if pilot + counts[i] < _MOST * num_samples]
        # Where nothing is gained anywhere, samples are dealt out in turn.
        best = max(below, key=lambda i: (wrong(i, counts[i]) - wrong(i, counts[i] + 1), -counts[i], -i))
        counts[best] += 1
    return counts


def mean_of_stages(stages: Sequence[Sequence[float]], weights: Sequence[float]) -> float | None:
    """MR: the means of the stages under fixed weights, which sum to 1.

    A stage without any score leaves its weight to the other; None where no stage has one.
    """
    known = [(sum(scores) / len(scores), weight) for scores, weight in zip(stages, weights, strict=True) if scores]
    total = sum(weight for _, weight in known)
    return sum(mean * weight for mean, weight in known) / total if known else None


def _tail(gap: float, variance: float) -> float:
    """Phi(-gap / sd): the probability that noise turns a pair round."""
    return math.erfc(gap / math.sqrt(2 * variance)) / 2 if variance > 0 else 0.0


def context_turns(max_turns: int, last_turns: int = 1) -> list[int]:
    """The turns, from 1, at which contexts are drawn, each equally often; the last one `last_turns` times."""
    return [*range(1, max_turns + 1), *[max_turns] * (last_turns - 1)]


def candidates_at(position: int, max_turns: int, window: int, num_samples: int, group_size: int) -> int:
    """Candidates of a context at a turn that play as many turns as `group_size` whole windows (`equal_turns`)."""
    left = min(window, max_turns - position)
    return group_size * (1 + num_samples * window) // (1 + num_samples * left)
