"""Prompts of different lengths are read in the calls that cost least."""

from __future__ import annotations

import itertools
import random

from collab.generation.modes import cheapest_cuts


def cost(lengths: list[int], cuts: list[int], call: int) -> int:
    return sum(call + (b - a) * lengths[b - 1] for a, b in itertools.pairwise(cuts))


def test_one_long_prompt_is_read_apart() -> None:
    assert cheapest_cuts([5, 6, 6, 300], call=32) == [0, 3, 4]
    assert cheapest_cuts([5, 6, 6, 8], call=32) == [0, 4]
    assert cheapest_cuts([7], call=32) == [0, 1]


def test_no_other_cuts_cost_less() -> None:
    draw = random.Random(1)
    for _ in range(50):
        lengths = sorted(draw.choices(range(1, 60), k=draw.randint(1, 8)))
        inner = range(1, len(lengths))
        every = (
            [0, *chosen, len(lengths)]
            for count in range(len(lengths))
            for chosen in itertools.combinations(inner, count)
        )
        assert cost(lengths, cheapest_cuts(lengths, 32), 32) == min(cost(lengths, cuts, 32) for cuts in every)
