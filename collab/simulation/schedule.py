"""At which turns contexts are drawn, and how many candidates each gets."""

from __future__ import annotations

from collections.abc import Sequence

from collab.randomness import RngKey


def context_turns(max_turns: int, last_turns: int = 1) -> list[int]:
    """The turns, from 1, at which contexts are drawn, each equally often; the last one `last_turns` times."""
    return [*range(1, max_turns + 1), *[max_turns] * (last_turns - 1)]


def candidates_at(turn: int, max_turns: int, window: int, num_samples: int, group_size: int) -> int:
    """Candidates of a context at a turn that play as many turns as `group_size` whole windows (`equal_turns`)."""
    left = min(window, max_turns - turn)
    return group_size * (1 + num_samples * window) // (1 + num_samples * left)


def context_turn(seed: int, number: int, turns: Sequence[int]) -> int:
    """The turn, from 1, at which the `number`-th context of a run is drawn.

    Each run of as many contexts as `turns` has entries holds every entry once, in random order.
    """
    cycle, place = divmod(number, len(turns))
    return turns[int(RngKey(seed, role="context", round=cycle).stream().permutation(len(turns))[place])]
