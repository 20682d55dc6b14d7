"""The turns of the contexts, and the number of candidates at each."""

from __future__ import annotations

from collections.abc import Sequence

from collab.config.schema import SamplerConfig
from collab.randomness import RngKey


def context_turns(max_turns: int, last_turns: int = 1) -> list[int]:
    """The turns, from 1, at which contexts are drawn, each equally often; the last one occurs `last_turns` times."""
    return [*range(1, max_turns), *[max_turns] * last_turns]


def candidates_at(sampler: SamplerConfig, max_turns: int, turn: int) -> int:
    """Candidates of a context at a turn. With `equal_turns` they play as many turns as `group_size` whole windows."""
    if not sampler.equal_turns:
        return sampler.group_size
    left = min(sampler.window, max_turns - turn)
    return sampler.group_size * (1 + sampler.num_samples * sampler.window) // (1 + sampler.num_samples * left)


def context_turn(seed: int, number: int, turns: Sequence[int]) -> int:
    """The turn, from 1, at which the `number`-th context of a run is drawn.

    Every `len(turns)` contexts in a row have each entry of `turns` once, in random order.
    """
    cycle, place = divmod(number, len(turns))
    return turns[int(RngKey(seed, role="context", round=cycle).stream().permutation(len(turns))[place])]
